"""Grouped convolution of channels-last maps: it makes ELSA's filters.

On a CPU, in C++, summed in float32. A GPU has torch's own, which :func:`why_not_grouped_conv` says.
"""

from __future__ import annotations

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
    why_not_here,
    why_not_ready,
)

SIZES = (3, 5, 7)
GROUP_WIDTHS = (4, 8, 16)


def why_not_grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    if reason := why_not_here(x, weight, bias, kinds=(weight, bias)):
        return reason
    if on_gpu(x):
        return f"inputs are on {x.device}, the kernel runs on a CPU"
    if x.dim() != 4 or weight.dim() != 4:
        return f"x {tuple(x.shape)} must be (B, H, W, C), weight {tuple(weight.shape)} (C, G, K, K)"
    channels, width, size = weight.shape[:3]
    if bias is not None and tuple(bias.shape) != (channels,):
        return f"bias {tuple(bias.shape)} does not fit {channels} channels"
    if channels != x.shape[-1] or channels % width:
        return f"weight {tuple(weight.shape)} does not keep the {x.shape[-1]} channels of x"
    if size not in SIZES or weight.shape[3] != size:
        known = ", ".join(map(str, SIZES))
        return f"taps {tuple(weight.shape[2:])} are not compiled; known: squares of {known}"
    if width not in GROUP_WIDTHS:
        known = ", ".join(map(str, GROUP_WIDTHS))
        return f"groups of {width} channels are not compiled; known: {known}"
    return why_not_ready(x)


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Convolve groups of channels; outside the map x reads as zero.

    .. math:: out_{o,p} = bias_o + \sum_{i,t} weight_{o,i,t} \, x_{G \lfloor o/G \rfloor + i, p+o_t}

    ``torch.nn.functional.conv2d`` with ``groups=C // G`` and ``padding=K // 2``, channels last.

    Args:
        x: (B, H, W, C), float32 or bfloat16, any strides.
        weight: (C, G, K, K): G of 4, 8 or 16 divides C, K is 3, 5 or 7.
        bias: (C,).

    Returns:
        (B, H, W, C), contiguous, of x's type; summed in float32.

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_grouped_conv(x, weight, bias):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    out: Tensor = torch.ops.lsa_kernels.grouped_conv(x, *in_float32(weight, bias))
    return out


def _shapes(x: Tensor, *others: Any) -> Tensor:
    return contiguous(x)


register(
    "grouped_conv", "Tensor x, Tensor weight, Tensor? bias",
    Kernels(cpu.grouped_conv_forward, cpu.grouped_conv_backward), shapes=_shapes,
)  # fmt: skip
