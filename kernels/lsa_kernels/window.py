"""Eq. 4 of the article on shared windows, as torch operators.

The kernel computes in float32. ``torch.ops.lsa_kernels.window`` gives the output and what its
backward needs; ``window_attention`` is the function to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build, cpu
from lsa_kernels.neighboring import DTYPES

LARGEST = 16
"""Longest side of a window: all pairs of its pixels are in memory at once."""
Three = tuple[Tensor, Tensor, Tensor]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def why_not_window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, *, size: tuple[int, int],
) -> str | None:  # fmt: skip
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    given = [t for t in (q, k, v, rel_k, rel_q, rel_bias) if t is not None]
    if any(t.device.type != "cpu" for t in given):
        return f"values are on {v.device}, the window kernel runs on a CPU"
    if v.dtype not in DTYPES:
        return f"values are {v.dtype}, the kernel takes float32 and bfloat16"
    if max(size) > LARGEST:
        return f"size={size}: a side is longer than {LARGEST}"
    reason: str | None = build.why_missing()
    return reason


def window_attention(
    q: Tensor | None, k: Tensor | None, v: Tensor, *, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, use_qk: bool = True, norm: str,
    size: tuple[int, int], excluded: Tensor | None = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Apply Eq. 4 to the windows of a map that is rolled and padded already.

    Args:
        q, k, v: (B, h, H, W, d) of any strides, float32 or bfloat16; q and k are None where the
            chosen terms do not read them. The window's sides divide H and W.
        rel_k, rel_q: (h, offsets, d); rel_bias: (h, offsets), with (2 * rows - 1) *
            (2 * columns - 1) offsets pos(j) - pos(i), row by row; None leaves the term out.
        use_qk: whether q.k is in.
        norm: identity, filter_norm or softmax.
        size: rows and columns of a window.
        excluded: boolean (windows of an image, pixels, pixels); True leaves a pair out of the norm
            and the sum.
        scale: on the three dot products, not on the bias; None means d**-0.5.

    Returns:
        (B, h, H, W, d), in memory (B, H, W, h, d).

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_window(q, k, v, rel_k, rel_q, rel_bias, size=size):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    scale = v.shape[-1] ** -0.5 if scale is None else scale
    # Only what a chosen term reads goes in, so that the other gradients are None, not zeros.
    q = q if use_qk or rel_k is not None else None
    k = k if use_qk or rel_q is not None else None
    wide = [None if t is None else t.float() for t in (q, k, v, rel_k, rel_q, rel_bias)]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in wide)
    out: Tensor = torch.ops.lsa_kernels.window(*wide, excluded, use_qk, norm, *size, scale, keep)[0]
    return out.to(v.dtype)


@torch.library.custom_op("lsa_kernels::window", mutates_args=())
def _window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Three:  # fmt: skip
    out, weights, spreads = cpu.window_forward(
        q, k, v, rel_k, rel_q, rel_bias, excluded, use_qk, norm, rows, columns, scale, keep
    )
    return out, weights, spreads


@_window.register_fake
def _(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Three:  # fmt: skip
    weights, spreads = cpu.kept_window_shapes(v, rows, columns) if keep else ([0], [0])
    return cpu.heads_last(v), v.new_empty(weights), v.new_empty(spreads)


@torch.library.custom_op("lsa_kernels::window_backward", mutates_args=())
def _window_backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, excluded: Tensor | None,
    use_qk: bool, norm: str, rows: int, columns: int, scale: float,
) -> Six:  # fmt: skip
    q_, k_, v_, rel_k_, rel_q_, bias_ = cpu.window_backward(
        grad, weights, spreads, q, k, v, rel_k, rel_q, rel_bias, excluded, use_qk, norm, rows,
        columns, scale,
    )  # fmt: skip
    return q_, k_, v_, rel_k_, rel_q_, bias_


@_window_backward.register_fake
def _(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, excluded: Tensor | None,
    use_qk: bool, norm: str, rows: int, columns: int, scale: float,
) -> Six:  # fmt: skip
    q_, k_ = (v.new_empty(0) if t is None else cpu.heads_last(v) for t in (q, k))
    rel_k_, rel_q_, bias_ = (
        v.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (rel_k, rel_q, rel_bias)
    )
    return q_, k_, cpu.heads_last(v), rel_k_, rel_q_, bias_


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    tensors, ctx.options = inputs[:7], inputs[7:12]
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(*(t for t in tensors if t is not None), *output[1:])


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    *given, weights, spreads = ctx.saved_tensors
    found = iter(given)
    tensors = [next(found) if there else None for there in ctx.present]
    grads = torch.ops.lsa_kernels.window_backward(grad, weights, spreads, *tensors, *ctx.options)
    used = [g if there else None for g, there in zip(grads, ctx.present[:6], strict=True)]
    return (*used, *[None] * 7)


_window.register_autograd(_backward, setup_context=_setup)
