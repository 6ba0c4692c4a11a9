"""Filters on every pixel's own neighborhood.

One filter per pixel and head, expanded to channels by the ghost head (ELSA), times or plus one
filter per image (DDF), as given (Involution), or static filters alone (depthwise convolution). The
kernels compute in float32, in C++ on a CPU and in Triton on a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lsa_kernels import cpu
from lsa_kernels.operators import (
    Kernels,
    contiguous,
    in_float32,
    on_gpu,
    register,
    why_not_compiled,
    why_not_here,
    why_not_ready,
)


def why_not_filters(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, *, size: int
) -> str | None:
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    others = (filters, mul, add)
    reason = why_not_here(values, *others, kinds=others) or why_not_compiled(size)
    return reason or why_not_ready(values, filters, family="filters")


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
    if not on_gpu(values):
        mul, add = in_float32(mul, add)
    out: Tensor = torch.ops.lsa_kernels.filters(values, filters, mul, add, heads, size)
    return out


def _parts(channels: int) -> int:
    """Into how many tasks static filters are cut, of 32 channels where that divides."""
    together = math.gcd(channels, 32)
    return channels // together if together >= 8 else 1


def _shapes(values: Tensor, *others: Any) -> Tensor:
    return contiguous(values)


register(
    "filters",
    "Tensor values, Tensor? filters, Tensor? mul, Tensor? add, SymInt heads, SymInt size",
    Kernels(cpu.filters_forward, cpu.filters_backward), "lsa_kernels.gpu.filters", shapes=_shapes,
)  # fmt: skip
