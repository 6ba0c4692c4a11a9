"""Triton's kernels tried on the device that they run on, before they are first taken there.

A node may lack a C compiler, or a Triton and a GPU that do not fit each other may compute nonsense.
Whatever goes wrong is a reason to do without the kernels, never a crash. ``tensor_cores`` tries its
own, case by case.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_kernels.operators import Eq4Inputs, Kernels

SIDE, SCALE, DEPTH = 3, 0.3, 20
"""Tensor cores take no heads of so many channels, so that it is these kernels that are tried."""
HEIGHT, WIDTH = 9, 12
ALLOWED = {torch.float32: 1e-3}
"""Share of the largest number, well above rounding and far below what a wrong tap brings."""
ALLOWED_OF_HALVES = 0.05

_known: dict[tuple[str, torch.dtype, int | None], str | None] = {}


def why_not(family: str, dtype: torch.dtype, index: int | None) -> str | None:
    """Say why the kernels of a family do not work on a GPU, or None; found out once in a process.

    Args:
        family: neighboring, window or filters.
    """
    key = (family, dtype, index)
    if key not in _known:
        if torch.cuda.is_current_stream_capturing():
            return "not tried yet, and a CUDA graph is being captured"
        # A thread has none of its caller's modes: of gradients, autocast or dispatch.
        with ThreadPoolExecutor(1) as thread:
            device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
            _known[key] = thread.submit(_attempt, family, dtype, device).result()
        if _known[key] is not None:
            warnings.warn(f"no Triton kernels of {family}: {_known[key]}", stacklevel=2)
    return _known[key]


def _attempt(family: str, dtype: torch.dtype, device: torch.device) -> str | None:
    try:
        with torch.cuda.device(device):
            module: Any = importlib.import_module(f"lsa_kernels.gpu.{family}")
            return compare(family, dtype, device, Kernels(module.forward, module.backward))
    except Exception as error:  # whatever it is, there is the definition
        return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def compare(family: str, dtype: torch.dtype, device: torch.device, kernels: Kernels) -> str | None:
    """Say which result of a family's kernels differs from the definition, or None."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device, dtype)

    given: list[Tensor]
    if family == "filters":
        maps: tuple[int, ...] = (2, HEIGHT, WIDTH, 2 * DEPTH)
        tables = [normal(2 * DEPTH, SIDE**2) for _ in range(2)]
        given = [normal(*maps), normal(*maps[:3], 2, SIDE**2), *tables]
        options: tuple[Any, ...] = (2, SIDE)
        grad, right = normal(*maps), _filters
    else:
        maps = (2, 2, HEIGHT, WIDTH, DEPTH)
        offsets = SIDE**2 if family == "neighboring" else (2 * SIDE - 1) ** 2
        tables = [normal(2, offsets, DEPTH), normal(2, offsets, DEPTH), normal(2, offsets)]
        given, grad = [normal(*maps), normal(*maps), normal(*maps), *tables], normal(*maps)
        options = ("softmax", SIDE, "mask", SCALE)
        if family == "window":
            options = (None, "softmax", SIDE, SIDE, SCALE)
        right = _pairs(family, device)
    found = _run(kernels, family, given, grad, options)
    leaves = [t.float().requires_grad_() for t in given]
    want = right(*leaves)
    torch.autograd.backward(want, grad.float())
    wanted = [want.detach(), *(leaf.grad for leaf in leaves)]
    for at, (got, exact) in enumerate(zip(found, wanted, strict=True)):
        assert got is not None
        assert exact is not None
        error = (got.float() - exact).abs().max().item() / exact.abs().max().item()
        if not error <= ALLOWED.get(dtype, ALLOWED_OF_HALVES):
            name = f"gradient {at}" if at else "the output"
            return f"{name} in {dtype} is off by {error:.1%} of its largest number"
    return None


def _run(
    kernels: Kernels, family: str, given: Sequence[Tensor], grad: Tensor, options: tuple[Any, ...]
) -> list[Tensor | None]:
    if family == "filters":
        out = kernels.forward(*given, *options)
        return [out, *kernels.backward(grad, *given, *options)]
    x = Eq4Inputs._make((*given, True))
    out, *kept = kernels.forward(x, *options, True)
    if grad.is_cuda:
        kept[-1] = out
    return [out, *kernels.backward(grad, *kept, x, *options)]


def _pairs(family: str, device: torch.device) -> Callable[..., Tensor]:
    """Eq. 4 over all pairs of pixels of a map, of which those in one area count."""
    pixel = torch.arange(HEIGHT * WIDTH, device=device)
    y, x = pixel // WIDTH, pixel % WIDTH
    down, right = y[None] - y[:, None], x[None] - x[:, None]
    if family == "window":
        seen = (y[None] // SIDE == y[:, None] // SIDE) & (x[None] // SIDE == x[:, None] // SIDE)
        reach = SIDE - 1
    else:
        reach = SIDE // 2
        seen = (down.abs() <= reach) & (right.abs() <= reach)
    offset = ((down + reach) * (2 * reach + 1) + right + reach).where(seen, torch.zeros_like(down))

    def definition(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        rel_k, rel_q, bias = tables
        flat_q, flat_k, flat_v = (t.flatten(2, 3) for t in (q, k, v))
        logits = flat_q @ flat_k.mT
        logits = logits + torch.einsum("bhid,hijd->bhij", flat_q, rel_k[:, offset])
        logits = logits + torch.einsum("bhjd,hijd->bhij", flat_k, rel_q[:, offset])
        logits = SCALE * logits + bias[:, offset]
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.unflatten(weights @ flat_v, 2, (HEIGHT, WIDTH))

    return definition


def _filters(values: Tensor, filters: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    padded = F.pad(values, (0, 0, *(SIDE // 2,) * 4))
    weights = filters.repeat_interleave(DEPTH, 3) * mul + add
    taps = [padded[:, y : y + HEIGHT, x : x + WIDTH] for y in range(SIDE) for x in range(SIDE)]
    return (weights * torch.stack(taps, -1)).sum(-1)
