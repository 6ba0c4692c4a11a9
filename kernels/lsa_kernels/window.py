"""Eq. 4 of the article on shared windows, as torch operators.

The kernels compute in float32, in C++ on a CPU and in Triton on a GPU.
``torch.ops.lsa_kernels.window`` gives the output and what its backward needs;
``window_attention`` is the function to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build, cpu, gpu
from lsa_kernels.neighboring import DTYPES, GPU_DTYPES

LARGEST = 16
"""Longest side of a window: on a CPU all pairs of its pixels are in memory at once."""
Three = tuple[Tensor, Tensor, Tensor]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def why_not_window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, excluded: Tensor | None = None,
    *, size: tuple[int, int],
) -> str | None:  # fmt: skip
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    given = [t for t in (q, k, v, rel_k, rel_q, rel_bias, excluded) if t is not None]
    if v.device.type not in ("cpu", "cuda"):
        return f"values are on {v.device}, the C++ kernel runs on a CPU, the Triton one on CUDA"
    if any(t.device != v.device for t in given):
        return f"inputs are on {', '.join(sorted({str(t.device) for t in given}))}, not together"
    if _on_gpu(v) and v.dtype not in GPU_DTYPES:
        return f"values are {v.dtype}, the kernel takes float32, bfloat16 and float16"
    if not _on_gpu(v) and v.dtype not in DTYPES:
        return f"values are {v.dtype}, the kernel takes float32 and bfloat16"
    if _on_gpu(v) and v.shape[-1] > gpu.DEEPEST:
        return f"heads have {v.shape[-1]} channels, the kernel takes up to {gpu.DEEPEST}"
    if max(size) > LARGEST:
        return f"size={size}: a side is longer than {LARGEST}"
    if _on_gpu(v):
        return gpu.too_large(q, k, v) or gpu.why_missing()
    reason: str | None = build.why_missing()
    return reason


def window_attention(
    q: Tensor | None, k: Tensor | None, v: Tensor, *, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, use_qk: bool = True, norm: str,
    size: tuple[int, int], excluded: Tensor | None = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Apply Eq. 4 to the windows of a map that is rolled and padded already.

    Args:
        q, k, v: (B, h, H, W, d) of any strides, float32 or bfloat16, on a GPU also float16; q and
            k are None where the chosen terms do not read them. The window's sides divide H and W.
        rel_k, rel_q: (h, offsets, d); rel_bias: (h, offsets), with (2 * rows - 1) *
            (2 * columns - 1) offsets pos(j) - pos(i), row by row; None leaves the term out.
        use_qk: whether q.k is in.
        norm: identity, filter_norm or softmax.
        size: rows and columns of a window, up to 16.
        excluded: boolean (windows of an image, pixels, pixels); True leaves a pair out of the norm
            and the sum.
        scale: on the three dot products, not on the bias; None means d**-0.5.

    Returns:
        (B, h, H, W, d), in memory (B, H, W, h, d).

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_window(q, k, v, rel_k, rel_q, rel_bias, excluded, size=size):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    scale = v.shape[-1] ** -0.5 if scale is None else scale
    # Only what a chosen term reads goes in, so that the other gradients are None, not zeros.
    q = q if use_qk or rel_k is not None else None
    k = k if use_qk or rel_q is not None else None
    wide = [t if t is None or _on_gpu(t) else t.float() for t in (q, k, v, rel_k, rel_q, rel_bias)]
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


@_window.register_kernel("cuda")
def _window_on_gpu(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Three:  # fmt: skip
    from lsa_kernels.gpu import window as on_gpu

    out, kept = on_gpu.forward(
        q, k, v, rel_k, rel_q, rel_bias, excluded, use_qk, norm, rows, columns, scale, keep
    )
    return out, kept, v.new_empty(0)


@_window.register_fake
def _(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Three:  # fmt: skip
    if _on_gpu(v):
        kept = v.new_empty(gpu.kept_shape(v) if keep else [0], dtype=torch.float32)
        return cpu.heads_last(v), kept, v.new_empty(0)
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


@_window_backward.register_kernel("cuda")
def _window_backward_on_gpu(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, excluded: Tensor | None,
    use_qk: bool, norm: str, rows: int, columns: int, scale: float,
) -> Six:  # fmt: skip
    from lsa_kernels.gpu import window as on_gpu

    q_, k_, v_, rel_k_, rel_q_, bias_ = on_gpu.backward(
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
    q_, k_ = (v.new_empty(0) if t is None else cpu.heads_last(t) for t in (q, k))
    rel_k_, rel_q_, bias_ = (
        v.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (rel_k, rel_q, rel_bias)
    )
    return q_, k_, cpu.heads_last(v), rel_k_, rel_q_, bias_


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    tensors, ctx.options = inputs[:7], inputs[7:12]
    ctx.present = [t is not None for t in tensors]
    # The way back needs weights and spreads on a CPU, on a GPU two numbers a pixel and the output.
    kept = (output[1], output[0]) if _on_gpu(output[0]) else output[1:]
    ctx.save_for_backward(*(t for t in tensors if t is not None), *kept)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    *given, weights, spreads = ctx.saved_tensors
    found = iter(given)
    tensors = [next(found) if there else None for there in ctx.present]
    grads = torch.ops.lsa_kernels.window_backward(grad, weights, spreads, *tensors, *ctx.options)
    used = [g if there else None for g, there in zip(grads, ctx.present[:6], strict=True)]
    return (*used, *[None] * 7)


_window.register_autograd(_backward, setup_context=_setup)
