"""Eq. 4 of the article on every pixel's own neighborhood.

The kernels compute in float32, in C++ on a CPU and in Triton on a GPU; there tensor cores may
multiply bfloat16 and float16, with float32 sums.
``torch.ops.lsa_kernels.neighboring`` gives the output and what its backward needs;
``neighboring_attention`` is the function to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsa_kernels import cpu
from lsa_kernels.operators import (
    Eq4Inputs,
    Kernels,
    eq4_like,
    eq4_outputs,
    register,
    wants_gradients,
    why_not_compiled,
    why_not_eq4,
)


def why_not_neighboring(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, *, size: int,
) -> str | None:  # fmt: skip
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias)
    return why_not_eq4(x, compiled=why_not_compiled(size), family="neighboring")


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
    x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias, use_qk).read()
    keep = wants_gradients(x)
    out: Tensor = torch.ops.lsa_kernels.neighboring(*x, norm, size, border, scale, keep)[0]
    return out


def _shapes(x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool) -> Any:
    return eq4_outputs(x.v, lambda: cpu.kept_shapes(x.v, size), keep)


def _pack(given: Sequence[Any]) -> Sequence[Any]:
    return (Eq4Inputs(*given[:7]), *given[7:])


register(
    "neighboring",
    "Tensor? q, Tensor? k, Tensor v, Tensor? rel_k, Tensor? rel_q, Tensor? rel_bias, bool use_qk, "
    "str norm, SymInt size, str border, float scale, bool keep",
    Kernels(cpu.neighboring_forward, cpu.neighboring_backward), "lsa_kernels.gpu.neighboring",
    shapes=_shapes, like=eq4_like, pack=_pack, kept=2,
)  # fmt: skip
