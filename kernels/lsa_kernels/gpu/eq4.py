"""Run Eq. 4 on a GPU, on any of float32, bfloat16 and float16: what both areas have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsa_kernels.gpu.tiles import dense, launch, packed, ready, strides
from lsa_kernels.operators import Eq4Inputs, eq4_outputs, heads_last


class Area(NamedTuple):
    """How the kernels of one area are started."""

    kernels: ModuleType
    programs: Callable[[Mapping[str, int]], tuple[int]]
    """Of the kernels that work on a tile of pixels, for a choice of tile."""
    table_programs: tuple[int, ...]
    """Of the kernel that makes the tables' gradients."""
    shares: tuple[int, ...]
    """In how many parts the tables' gradients are made."""
    share: tuple[int, ...]
    """Further arguments of that kernel."""
    constants: dict[str, Any]
    excluded: tuple[Tensor | None, ...] = ()


def forward(x: Eq4Inputs, area: Area, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the two numbers a pixel that the backward needs (empty unless ``keep``)."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        maps, tables = ready(*x[:3]), packed(*x.tables, *area.excluded)
        launch(
            area.kernels.forward_kernel, area.programs, x.v, *maps, *tables, out,
            kept if keep else None, *map(strides, (*maps, out)), *x.v.shape[1:4], scale,
            **area.constants,
        )  # fmt: skip
    return out, kept, unused


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, area: Area, scale: float
) -> Sequence[Tensor | None]:
    """Gradients of q, k, v and the three tables; None where the input is absent."""
    v, tables = x.v, packed(*x.tables)
    to_q, to_k = (None if t is None else heads_last(t) for t in x[:2])
    to_v, to_tables = heads_last(v), [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        maps, grad, norms = ready(*x[:3]), dense(grad), torch.empty_like(kept)
        read = (*maps, *tables, *packed(*area.excluded))
        options = (*v.shape[1:4], scale)
        launch(
            area.kernels.queries_kernel, area.programs, v, *read, out, grad, kept, norms, to_q,
            *map(strides, (*maps, out, grad, to_q)), *options, **area.constants,
        )  # fmt: skip
        launch(
            area.kernels.keys_kernel, area.programs, v, *read, grad, kept, norms, to_k, to_v,
            *map(strides, (*maps, grad, to_k, to_v)), *options, **area.constants,
        )  # fmt: skip
        if any(t is not None for t in tables):
            shares = [
                None if t is None else v.new_empty(*area.shares, *t.shape, dtype=torch.float32)
                for t in tables
            ]
            launch(
                area.kernels.tables_kernel, area.table_programs, v, *read, grad, kept, norms,
                *shares, *map(strides, (*maps, grad)), *options, *area.share, **area.constants,
            )  # fmt: skip
            parts = tuple(range(len(area.shares)))
            to_tables = [
                None if t is None or s is None else s.sum(parts).to(t.dtype)
                for t, s in zip(tables, shares, strict=True)
            ]
    return (to_q, to_k, to_v, *to_tables)
