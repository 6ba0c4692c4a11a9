"""Eq. 4 of the article on shared windows.

The kernels compute in float32, in C++ on a CPU and in Triton on a GPU; there tensor cores may
multiply bfloat16 and float16, with float32 sums.
``torch.ops.lsa_kernels.window`` gives the output and what its backward needs;
``window_attention`` is the function to call.
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
    why_not_eq4,
)

LARGEST = 16
"""Longest side of a window: on a CPU all pairs of its pixels are in memory at once."""


def why_not_window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, excluded: Tensor | None = None,
    *, size: tuple[int, int],
) -> str | None:  # fmt: skip
    """Say why the fused kernel cannot take these inputs, or None if it can."""
    long = f"size={size}: a side is longer than {LARGEST}" if max(size) > LARGEST else None
    x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias)
    return why_not_eq4(x, excluded, compiled=long, family="window")


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
    x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias, use_qk).read()
    given = (*x[:6], excluded, use_qk, norm, *size, scale, wants_gradients(x))
    out: Tensor = torch.ops.lsa_kernels.window(*given)[0]
    return out


def _shapes(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int, scale: float,
    keep: bool,
) -> Any:  # fmt: skip
    return eq4_outputs(x.v, lambda: cpu.kept_window_shapes(x, rows, columns), keep)


def _pack(given: Sequence[Any]) -> Sequence[Any]:
    return (Eq4Inputs._make((*given[:6], given[7])), given[6], *given[8:])


register(
    "window",
    "Tensor? q, Tensor? k, Tensor v, Tensor? rel_k, Tensor? rel_q, Tensor? rel_bias, "
    "Tensor? excluded, bool use_qk, str norm, SymInt rows, SymInt columns, float scale, bool keep",
    Kernels(cpu.window_forward, cpu.window_backward), "lsa_kernels.gpu.window",
    shapes=_shapes, like=eq4_like, pack=_pack, kept=2, constant=1,
)  # fmt: skip
