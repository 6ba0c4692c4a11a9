"""Filters of pixels on every stride-th pixel's neighborhood: a strided dynamic filter layer.

On a CPU, in C++ and float32. :mod:`lsa_kernels.filters` is for every pixel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsa_kernels import cpu
from lsa_kernels.operators import Kernels, on_gpu, register, why_not_here, why_not_ready


def why_not_strided(
    values: Tensor, filters: Tensor, mul: Tensor | None, add: Tensor | None
) -> str | None:
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    others = (filters, mul, add)
    if reason := why_not_here(values, *others, kinds=others):
        return reason
    if on_gpu(values):
        return f"inputs are on {values.device}, the kernel runs on a CPU"
    return why_not_ready(values, filters)


def apply_strided(
    values: Tensor, filters: Tensor, *, mul: Tensor | None = None, add: Tensor | None = None,
    size: int, stride: int, dilation: int = 1,
) -> Tensor:  # fmt: skip
    r"""Weigh the neighborhood of every stride-th pixel; outside the map values read as zero.

    .. math:: out_{c,p} = \sum_t (mul_{c,t} \, filters_{h(c),t,p} + add_{c,t}) \, values_{c,s p+o_t}

    Args:
        values: (B, H, W, C), float32 or bfloat16, any strides.
        filters: (B, ceil(H/s), ceil(W/s), heads, size**2) with heads a divisor of C.
        mul, add: (B, C, size**2), one table per image; None means 1 and 0.
        size: odd.
        stride: s, pixels between two that are kept. dilation: pixels between two taps.

    Returns:
        (B, ceil(H/s), ceil(W/s), C), contiguous.

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_strided(values, filters, mul, add):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    # Channels of a tap side by side, as those of a pixel.
    tables = (None if t is None else t.float().transpose(1, 2) for t in (mul, add))
    out: Tensor = torch.ops.lsa_kernels.strided_filters(
        values.float(), filters.float(), *tables, size, stride, dilation
    )
    return out.to(values.dtype)


def _shapes(values: Tensor, filters: Tensor, *others: Any) -> Tensor:
    return values.new_empty(*filters.shape[:3], values.shape[3])


register(
    "strided_filters",
    "Tensor values, Tensor filters, Tensor? mul, Tensor? add, SymInt size, SymInt stride, "
    "SymInt dilation",
    Kernels(cpu.strided_forward, cpu.strided_backward), shapes=_shapes,
)  # fmt: skip
