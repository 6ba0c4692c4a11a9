"""Eq. 4 of the article on every pixel's own neighborhood, as torch operators.

The kernels compute in float32, in C++ on a CPU and in Triton on a GPU.
``torch.ops.lsa_kernels.neighboring`` gives the output and what its backward needs;
``neighboring_attention`` is the function to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build, cpu, gpu

SIZES = (3, 5, 7, 9, 11, 13)
DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (*DTYPES, torch.float16)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def why_not_neighboring(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, *, size: int,
) -> str | None:  # fmt: skip
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    given = [t for t in (q, k, v, rel_k, rel_q, rel_bias) if t is not None]
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
    if size not in SIZES:
        return f"size={size} is not compiled; known: {', '.join(map(str, SIZES))}"
    if _on_gpu(v):
        return gpu.too_large(q, k, v) or gpu.why_missing()
    reason: str | None = build.why_missing()
    return reason


def neighboring_attention(
    q: Tensor | None, k: Tensor | None, v: Tensor, *, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, use_qk: bool = True, norm: str,
    size: int, border: str = "zero", scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Apply Eq. 4 to every pixel's size x size neighborhood.

    Args:
        q, k, v: (B, h, H, W, d) of any strides, float32 or bfloat16, on a GPU also float16; q and
            k are None where the chosen terms do not read them.
        rel_k, rel_q: (h, size**2, d); rel_bias: (h, size**2); None leaves the term out.
        use_qk: whether q.k is in.
        norm: identity, filter_norm or softmax.
        size: odd, 3 to 13.
        border: zero (taps outside stay in the norm with a key of 0) or mask (left out).
        scale: on the three dot products, not on the bias; None means d**-0.5.

    Returns:
        (B, h, H, W, d), in memory (B, H, W, h, d).

    Raises:
        ValueError: the kernel cannot take these inputs; the message says why.
    """
    if reason := why_not_neighboring(q, k, v, rel_k, rel_q, rel_bias, size=size):
        raise ValueError(f"the fused kernel cannot run: {reason}")
    scale = v.shape[-1] ** -0.5 if scale is None else scale
    # Only what a chosen term reads goes in, so that the other gradients are None, not zeros.
    q = q if use_qk or rel_k is not None else None
    k = k if use_qk or rel_q is not None else None
    wide = [t if t is None or _on_gpu(t) else t.float() for t in (q, k, v, rel_k, rel_q, rel_bias)]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in wide)
    out: Tensor = torch.ops.lsa_kernels.neighboring(*wide, use_qk, norm, size, border, scale, keep)[
        0
    ]
    return out.to(v.dtype)


@torch.library.custom_op("lsa_kernels::neighboring", mutates_args=())
def _neighboring(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: int, border: str, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, weights, spreads = cpu.forward(
        q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, border, scale, keep
    )
    return out, weights, spreads


@_neighboring.register_kernel("cuda")
def _neighboring_on_gpu(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: int, border: str, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from lsa_kernels.gpu import neighboring as on_gpu

    out, kept = on_gpu.forward(
        q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, border, scale, keep
    )
    return out, kept, v.new_empty(0)


@_neighboring.register_fake
def _(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: int, border: str, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if _on_gpu(v):
        kept = v.new_empty(gpu.kept_shape(v) if keep else [0], dtype=torch.float32)
        return cpu.heads_last(v), kept, v.new_empty(0)
    weights, spreads = cpu.kept_shapes(v, size) if keep else ([0], [0])
    return cpu.heads_last(v), v.new_empty(weights), v.new_empty(spreads)


@torch.library.custom_op("lsa_kernels::neighboring_backward", mutates_args=())
def _neighboring_backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, use_qk: bool, norm: str,
    size: int, border: str, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q_, k_, v_, rel_k_, rel_q_, bias_ = cpu.backward(
        grad, weights, spreads, q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, border, scale
    )
    return q_, k_, v_, rel_k_, rel_q_, bias_


@_neighboring_backward.register_kernel("cuda")
def _neighboring_backward_on_gpu(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, use_qk: bool, norm: str,
    size: int, border: str, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from lsa_kernels.gpu import neighboring as on_gpu

    q_, k_, v_, rel_k_, rel_q_, bias_ = on_gpu.backward(
        grad, weights, spreads, q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, border, scale
    )
    return q_, k_, v_, rel_k_, rel_q_, bias_


@_neighboring_backward.register_fake
def _(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, use_qk: bool, norm: str,
    size: int, border: str, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q_, k_ = (v.new_empty(0) if t is None else cpu.heads_last(t) for t in (q, k))
    rel_k_, rel_q_, bias_ = (
        v.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (rel_k, rel_q, rel_bias)
    )
    return q_, k_, cpu.heads_last(v), rel_k_, rel_q_, bias_


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, ctx.options = inputs[:6], inputs[6:11]
    ctx.present = [t is not None for t in tensors]
    # The way back needs weights and spreads on a CPU, on a GPU two numbers a pixel and the output.
    kept = (output[1], output[0]) if _on_gpu(output[0]) else output[1:]
    ctx.save_for_backward(*(t for t in tensors if t is not None), *kept)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    *given, weights, spreads = ctx.saved_tensors
    found = iter(given)
    tensors = [next(found) if there else None for there in ctx.present]
    grads = torch.ops.lsa_kernels.neighboring_backward(
        grad, weights, spreads, *tensors, *ctx.options
    )
    used = [g if there else None for g, there in zip(grads, ctx.present, strict=True)]
    return (*used, *[None] * 6)


_neighboring.register_autograd(_backward, setup_context=_setup)
