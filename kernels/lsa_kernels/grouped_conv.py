"""Grouped convolution of channels-last maps, as a torch operator: it makes ELSA's filters.

On a CPU, in C++ and float32. A GPU has torch's own, which :func:`why_not_grouped_conv` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build, cpu
from lsa_kernels.neighboring import DTYPES

SIZES = (3, 5, 7)
GROUP_WIDTHS = (4, 8, 16)


def why_not_grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    given = [t for t in (x, weight, bias) if t is not None]
    if any(t.device.type != "cpu" for t in given):
        devices = ", ".join(sorted({str(t.device) for t in given}))
        return f"inputs are on {devices}, the kernel runs on a CPU"
    if any(t.dtype not in DTYPES for t in given):
        types = ", ".join(str(t.dtype) for t in given)
        return f"inputs are {types}, the kernel takes float32 and bfloat16"
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
    missing: str | None = build.why_missing()
    return missing


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
    given = [None if t is None else t.float() for t in (x, weight, bias)]
    out: Tensor = torch.ops.lsa_kernels.grouped_conv(*given)
    return out.to(x.dtype)


@torch.library.custom_op("lsa_kernels::grouped_conv", mutates_args=())
def _grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cpu.grouped_conv_forward(x, weight, bias)


@_grouped_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("lsa_kernels::grouped_conv_backward", mutates_args=())
def _grouped_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.grouped_conv_backward(grad, x, weight, bias)


@_grouped_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    maps, table = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight))
    return maps, table, x.new_empty(0) if bias is None else torch.empty_like(bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, *((bias,) if ctx.has_bias else ()))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *rest = ctx.saved_tensors
    bias = rest[0] if ctx.has_bias else None
    to_x, to_weight, to_bias = torch.ops.lsa_kernels.grouped_conv_backward(grad, x, weight, bias)
    return to_x, to_weight, to_bias if ctx.has_bias else None


_grouped_conv.register_autograd(_backward, setup_context=_setup)
