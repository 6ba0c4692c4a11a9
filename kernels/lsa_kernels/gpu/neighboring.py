"""Run Eq. 4 on a GPU; same arguments as the CPU's, any of float32, bfloat16 and float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lsa_kernels.gpu import neighboring_kernels as kernels
from lsa_kernels.gpu.tiles import SPAN, dense, launch, packed, ready, strides, tiles
from lsa_kernels.operators import Eq4Inputs, eq4_outputs, heads_last


def forward(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the two numbers a pixel that the backward needs (empty unless ``keep``)."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        maps, tables = ready(*x[:3]), packed(*x.tables)
        launch(
            kernels.forward_kernel, _programs(x.v), x.v, *maps, *tables, out,
            kept if keep else None, *map(strides, (*maps, out)), *x.v.shape[1:4], scale,
            **_constants(x, norm, border, size),
        )  # fmt: skip
    return out, kept, unused


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, norm: str, size: int, border: str,
    scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the three tables; None where the input is absent."""
    v = x.v
    to_q, to_k = (None if t is None else heads_last(t) for t in x[:2])
    to_v = heads_last(v)
    tables = packed(*x.tables)
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        maps, grad = ready(*x[:3]), dense(grad)
        norms = torch.empty_like(kept)
        options = (*v.shape[1:4], scale)
        constants = _constants(x, norm, border, size)
        launch(
            kernels.queries_kernel, _programs(v), v, *maps, *tables, out, grad, kept, norms, to_q,
            *map(strides, (*maps, out, grad, to_q)), *options, **constants,
        )  # fmt: skip
        launch(
            kernels.keys_kernel, _programs(v), v, *maps, *tables, grad, kept, norms, to_k, to_v,
            *map(strides, (*maps, grad, to_k, to_v)), *options, **constants,
        )  # fmt: skip
        if any(t is not None for t in tables):
            shares = _shares(v, tables)
            launch(
                kernels.tables_kernel, (v.shape[0] * v.shape[1] * size**2, _spans(v)), v, *maps,
                *tables, grad, kept, norms, *shares, *map(strides, (*maps, grad)), *options,
                **constants,
            )  # fmt: skip
            to_tables = [
                None if t is None or s is None else s.sum((0, 1)).to(t.dtype)
                for t, s in zip(tables, shares, strict=True)
            ]
    return (to_q, to_k, to_v, *to_tables)


def _constants(x: Eq4Inputs, norm: str, border: str, size: int) -> dict[str, Any]:
    depth = x.v.shape[-1]
    return {
        "USE_QK": x.use_qk, "NORM": norm, "MASK": border == "mask", "SIZE": size, "DEPTH": depth,
        "WIDE": triton.next_power_of_2(depth),
    }  # fmt: skip


def _programs(v: Tensor) -> Callable[[Mapping[str, int]], tuple[int]]:
    batch, heads, height, width, _ = v.shape
    return lambda meta: (batch * heads * tiles(height, width, meta),)


def _spans(v: Tensor) -> int:
    return -(-v.shape[2] * v.shape[3] // SPAN)


def _shares(v: Tensor, tables: list[Tensor | None]) -> list[Tensor | None]:
    """Room for what each program adds to the tables' gradients."""
    batch = v.shape[0]
    return [
        None if t is None else v.new_empty(_spans(v), batch, *t.shape, dtype=torch.float32)
        for t in tables
    ]
