"""A kernel as a torch operator: what all four have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsa_kernels import build, gpu

DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (*DTYPES, torch.float16)
SIZES = (3, 5, 7, 9, 11, 13)
"""Sides of a neighborhood that are compiled."""


class Eq4Inputs(NamedTuple):
    """What Eq. 4 reads: maps (B, h, H, W, d), tables (h, offsets, d), a bias (h, offsets).

    q and k are None where no chosen term reads them; a table is None where its term is left out.
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    rel_k: Tensor | None = None
    rel_q: Tensor | None = None
    rel_bias: Tensor | None = None
    use_qk: bool = True

    @property
    def reads_q(self) -> bool:
        """Whether a chosen term reads q."""
        return self.use_qk or self.rel_k is not None

    @property
    def reads_k(self) -> bool:
        """Whether a chosen term reads k."""
        return self.use_qk or self.rel_q is not None

    @property
    def tables(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The parameters."""
        return self.rel_k, self.rel_q, self.rel_bias

    def of_maps(self, function: Callable[[Tensor], Tensor]) -> Eq4Inputs:
        """The same with a function of each map."""
        q, k = (None if t is None else function(t) for t in (self.q, self.k))
        return Eq4Inputs(q, k, function(self.v), *self[3:])

    def read(self) -> Eq4Inputs:
        """What the kernels read, in a type they take.

        A map that no term reads is left out, so that its gradient is None, not zeros.
        """
        q, k = self.q if self.reads_q else None, self.k if self.reads_k else None
        if on_gpu(self.v):
            return Eq4Inputs(q, k, *self[2:])
        rel_k, rel_q, bias = in_float32(*self.tables)
        return Eq4Inputs(readable(q), readable(k), self.v, rel_k, rel_q, bias, self.use_qk)


def readable(values: Tensor | None) -> Tensor | None:
    """A map as the C++ kernels read it: as it is, or in float32 if that is no type of theirs."""
    return values if values is None or values.dtype in DTYPES else values.float()


def in_float32(*tables: Tensor | None) -> list[Tensor | None]:
    """Tables as the C++ kernels read them: their gradients are sums over all images."""
    return [None if t is None else t.float() for t in tables]


def on_gpu(tensor: Tensor) -> bool:
    """Whether Triton's kernels take this tensor, not the C++ ones."""
    return tensor.is_cuda


def why_not_here(
    first: Tensor, *others: Tensor | None, kinds: Sequence[Tensor | None] = ()
) -> str | None:
    """Say why tensors lie where no kernel reads them, or None.

    Args:
        first: the tensor whose device decides. others: must be beside it.
        kinds: further tensors whose type must be one that the kernels take, as that of ``first``.
    """
    given = [first, *(t for t in others if t is not None)]
    if first.device.type not in ("cpu", "cuda"):
        return f"values are on {first.device}, the C++ kernel runs on a CPU, the Triton one on CUDA"
    if any(t.device != first.device for t in given):
        return f"inputs are on {', '.join(sorted({str(t.device) for t in given}))}, not together"
    known = GPU_DTYPES if on_gpu(first) else DTYPES
    if any(t.dtype not in known for t in (first, *kinds) if t is not None):
        types = ", ".join(sorted({str(t.dtype) for t in (first, *kinds) if t is not None}))
        *names, last = (str(t).removeprefix("torch.") for t in known)
        return f"inputs are {types}, the kernel takes {', '.join(names)} and {last}"
    return None


def why_not_compiled(size: int) -> str | None:
    """Say that no kernel has this side of a neighborhood, or None."""
    known = ", ".join(map(str, SIZES))
    return None if size in SIZES else f"size={size} is not compiled; known: {known}"


def why_not_ready(first: Tensor, *others: Tensor | None, family: str = "") -> str | None:
    """Say why the kernels of this device are missing or cannot address the tensors, or None.

    Args:
        family: neighboring, window or filters, whose kernels are tried on a GPU.
    """
    if on_gpu(first):
        lacks = gpu.too_large(first, *others) or gpu.why_missing()
        if lacks or not family:
            return lacks
        return gpu.why_not_tried(family, first.dtype, first.device.index)
    reason: str | None = build.why_missing()
    return reason


def why_not_eq4(
    x: Eq4Inputs, *others: Tensor | None, compiled: str | None, family: str
) -> str | None:
    """Say why the kernels of Eq. 4 cannot take these inputs, or None.

    Args:
        family: as of ``why_not_ready``.
        others: further tensors that must be beside the values.
        compiled: why there is no kernel of this area.
    """
    if reason := why_not_here(x.v, x.q, x.k, *x.tables, *others):
        return reason
    if on_gpu(x.v) and x.v.shape[-1] > gpu.DEEPEST:
        return f"heads have {x.v.shape[-1]} channels, the kernel takes up to {gpu.DEEPEST}"
    return compiled or why_not_ready(x.v, x.q, x.k, family=family)


def wants_gradients(tensors: Sequence[Any]) -> bool:
    """Whether the forward must keep what its backward reads."""
    given = (t for t in tensors if isinstance(t, Tensor))
    return torch.is_grad_enabled() and any(t.requires_grad for t in given)


def heads_last(like: Tensor) -> Tensor:
    """An empty (B, h, H, W, d) whose memory lies as (B, H, W, h, d), as the projections want it."""
    batch, heads, height, width, depth = like.shape
    return like.new_empty(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4)


def contiguous(like: Tensor) -> Tensor:
    """An empty tensor of this shape, whatever the strides."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def packed(*tables: Tensor | None) -> list[Tensor | None]:
    """Tables as the kernels read them."""
    return [None if t is None else t.contiguous() for t in tables]


def eq4_like(like: Tensor) -> Tensor:
    """An empty gradient of one of Eq. 4's inputs: maps lie as the projections want them."""
    return heads_last(like) if like.dim() == 5 else contiguous(like)


def eq4_outputs(
    v: Tensor, shapes: Callable[[], tuple[list[int], list[int]]], keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty output of Eq. 4, and what its forward keeps for the backward: nothing unless ``keep``.

    Args:
        shapes: of what is kept on a CPU: weights of all pairs, and spreads. On a GPU it is two
            numbers a pixel, from which the backward finds the weights again.
    """
    first, second = [0], [0]
    if keep:
        first, second = (gpu.kept_shape(v), [0]) if on_gpu(v) else shapes()
    weights, spreads = (v.new_empty(shape, dtype=torch.float32) for shape in (first, second))
    return heads_last(v), weights, spreads


class Kernels(NamedTuple):
    """A pair of functions for one kind of device.

    ``forward(*inputs)`` gives the output, and what is kept with it. ``backward(gradient, *kept,
    *inputs)``, without the last input if anything is kept, gives a gradient for every tensor among
    the inputs but the constant ones, and None where the input is absent.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Sequence[Tensor | None]]


def register(
    name: str, inputs: str, cpu: Kernels, gpu_module: str | None = None, *,
    shapes: Callable[..., Any], like: Callable[[Tensor], Tensor] = contiguous,
    pack: Callable[[Sequence[Any]], Sequence[Any]] = tuple, kept: int = 0, constant: int = 0,
) -> None:  # fmt: skip
    """Make ``torch.ops.lsa_kernels.<name>`` and its backward, with fakes and autograd.

    Args:
        inputs: their types and names, as in a torch schema. If anything is kept, the last one says
            whether to keep it, and the backward does without.
        gpu_module: holds ``forward`` and ``backward`` for GPUs; imported when first asked for,
            since it needs Triton.
        shapes: the forward's results, empty. like: a gradient, empty, for an input.
        pack: gathers the inputs for these functions.
        kept: tensors that the forward keeps for its backward; on a GPU its output is the last.
        constant: how many of the last tensors have no gradient.
    """
    kinds = [argument.split()[0] for argument in inputs.split(",")]
    places = [at for at, kind in enumerate(kinds) if kind.startswith("Tensor")]
    moving = places[: len(places) - constant]

    def kernels(given: Sequence[Any]) -> Any:
        first = next(t for t in given if isinstance(t, Tensor))
        return importlib.import_module(gpu_module) if gpu_module and on_gpu(first) else cpu

    @torch.library.custom_op(
        f"lsa_kernels::{name}", mutates_args=(),
        schema=f"({inputs}) -> {_tuple_of(1 + kept)}",
    )  # fmt: skip
    def forward(*given: Any) -> Any:
        return kernels(given).forward(*pack(given))

    @forward.register_fake
    def _(*given: Any) -> Any:
        return shapes(*pack(given))

    behind = ",".join(inputs.split(",")[:-1]) if kept else inputs
    before = ", ".join(["Tensor grad", *(f"Tensor kept{at}" for at in range(kept))])

    @torch.library.custom_op(
        f"lsa_kernels::{name}_backward", mutates_args=(),
        schema=f"({before}, {behind}) -> {_tuple_of(len(moving))}",
    )  # fmt: skip
    def backward(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
        run = kernels(given[kept:]).backward
        found = run(grad, *given[:kept], *pack(given[kept:]))
        return tuple(grad.new_empty(0) if t is None else t for t in found)

    @backward.register_fake
    def _(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
        tensors = (given[kept + at] for at in moving)
        return tuple(grad.new_empty(0) if t is None else like(t) for t in tensors)

    setup, back = _autograd(backward, places, moving, kept)
    forward.register_autograd(back, setup_context=setup)


def _autograd(
    backward: Callable[..., Any], places: list[int], moving: list[int], kept: int
) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        ctx.present = [at for at in places if inputs[at] is not None]
        ctx.given = [None if at in places else value for at, value in enumerate(inputs)]
        out, *found = output if kept else (output,)
        if kept and on_gpu(out):
            found[-1] = out
        ctx.save_for_backward(*found, *(inputs[at] for at in ctx.present))

    def back(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        given, saved = list(ctx.given), ctx.saved_tensors
        for at, tensor in zip(ctx.present, saved[kept:], strict=True):
            given[at] = tensor
        found = backward(grad, *saved[:kept], *(given[:-1] if kept else given))
        there = dict(zip(moving, found, strict=True))
        return tuple(there.get(at) if at in ctx.present else None for at in range(len(given)))

    return setup, back


def _tuple_of(number: int) -> str:
    return "Tensor" if number == 1 else f"({', '.join(['Tensor'] * number)})"
