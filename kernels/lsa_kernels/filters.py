"""Filters on every pixel's own neighborhood, as torch operators.

One filter per pixel and head, expanded to channels by the ghost head (ELSA), times or plus one
filter per image (DDF), as given (Involution), or static filters alone (depthwise convolution). The
kernels compute in float32, in C++ on a CPU and in Triton on a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build, cpu, gpu
from lsa_kernels.neighboring import DTYPES, GPU_DTYPES, SIZES

Grads = tuple[Tensor, Tensor, Tensor, Tensor]


def why_not_filters(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, *, size: int
) -> str | None:
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    given = [t for t in (values, filters, mul, add) if t is not None]
    if any(t.device != values.device for t in given):
        return f"inputs are on {', '.join(sorted({str(t.device) for t in given}))}, not together"
    if values.device.type not in ("cpu", "cuda"):
        return f"values are on {values.device}, the kernels run on a CPU or on CUDA"
    known = GPU_DTYPES if values.is_cuda else DTYPES
    if any(t.dtype not in known for t in given):
        types = ", ".join(str(t.dtype) for t in given)
        names = ", ".join(str(t).removeprefix("torch.") for t in known)
        return f"inputs are {types}, the kernel takes {names}"
    if size not in SIZES:
        return f"size={size} is not compiled; known: {', '.join(map(str, SIZES))}"
    if values.is_cuda:
        reason: str | None = gpu.too_large(values, filters) or gpu.why_missing()
        return reason
    missing: str | None = build.why_missing()
    return missing


def apply_filters(
    values: Tensor, filters: Tensor | None, *, mul: Tensor | None = None,
    add: Tensor | None = None, size: int,
) -> Tensor:  # fmt: skip
    r"""Weigh every pixel's neighborhood; outside the map values read as zero.

    .. math:: out_{c,p} = \sum_t (mul_{c,t} \, filters_{h(c),t,p} + add_{c,t}) \, values_{c,p+o_t}

    Args:
        values: (B, H, W, C), float32 or bfloat16 (on a GPU also float16), any strides.
        filters: (B, H, W, heads, size**2) with heads a divisor of C; None means 0, and then
            ``add`` alone, one filter per channel, is applied.
        mul, add: (C, size**2), or (B, C, size**2) for one table per image; None means 1 and 0.
        size: odd, 3 to 13.

    Returns:
        (B, H, W, C), contiguous.

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_filters(values, filters, mul, add, size=size):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    if filters is None and (add is None or mul is not None):
        raise ValueError("without filters give add, and not mul: mul scales filters")
    tables = [t for t in (mul, add) if t is not None]
    if len({t.dim() for t in tables}) > 1:
        # One of them is the same for all images.
        batch = values.shape[0]
        mul, add = (
            None if t is None else t if t.dim() == 3 else t.expand(batch, *t.shape)
            for t in (mul, add)
        )
    heads = _parts(values.shape[-1]) if filters is None else filters.shape[3]
    given: list[Tensor | None] = [values, filters, mul, add]
    if not values.is_cuda:
        given = [None if t is None else t.float() for t in given]
    out: Tensor = torch.ops.lsa_kernels.filters(*given, heads, size)
    return out.to(values.dtype)


def _parts(channels: int) -> int:
    """Into how many tasks static filters are cut, of 32 channels where that divides."""
    together = math.gcd(channels, 32)
    return channels // together if together >= 8 else 1


@torch.library.custom_op("lsa_kernels::filters", mutates_args=())
def _filters(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, heads: int,
    size: int,
) -> Tensor:  # fmt: skip
    return cpu.filters_forward(values, filters, mul, add, heads, size)


@_filters.register_kernel("cuda")
def _(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, heads: int,
    size: int,
) -> Tensor:  # fmt: skip
    from lsa_kernels.gpu import filters as on_gpu

    return on_gpu.forward(values, filters, mul, add, heads, size)


@_filters.register_fake
def _(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, heads: int,
    size: int,
) -> Tensor:  # fmt: skip
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@torch.library.custom_op("lsa_kernels::filters_backward", mutates_args=())
def _filters_backward(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Grads:  # fmt: skip
    to_values, to_filters, to_mul, to_add = cpu.filters_backward(
        grad, values, filters, mul, add, heads, size
    )
    return to_values, to_filters, to_mul, to_add


@_filters_backward.register_kernel("cuda")
def _(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Grads:  # fmt: skip
    from lsa_kernels.gpu import filters as on_gpu

    to_values, to_filters, to_mul, to_add = on_gpu.backward(
        grad, values, filters, mul, add, heads, size
    )
    return to_values, to_filters, to_mul, to_add


@_filters_backward.register_fake
def _(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Grads:  # fmt: skip
    to_values, to_filters, to_mul, to_add = (
        values.new_empty(0)
        if t is None
        else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (values, filters, mul, add)
    )
    return to_values, to_filters, to_mul, to_add


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.options = inputs[:4], inputs[4:]
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(*(t for t in tensors if t is not None))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = iter(ctx.saved_tensors)
    tensors = [next(found) if there else None for there in ctx.present]
    grads = torch.ops.lsa_kernels.filters_backward(grad, *tensors, *ctx.options)
    used = [g if there else None for g, there in zip(grads, ctx.present, strict=True)]
    return (*used, None, None)


_filters.register_autograd(_backward, setup_context=_setup)
