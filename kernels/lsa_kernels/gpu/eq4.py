"""Run Eq. 4 on a GPU, on any of float32, bfloat16 and float16: what both areas have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lsa_kernels.gpu import eq4_kernels as kernels
from lsa_kernels.gpu.tiles import dense, launch, ready, strides
from lsa_kernels.operators import Eq4Inputs, eq4_outputs, heads_last, packed


class Area(NamedTuple):
    """How the kernels of one area are started."""

    constants: dict[str, Any]
    programs: Callable[[Mapping[str, int]], tuple[int]]
    """Of the kernels that work on a tile of pixels, for a choice of tile."""
    tables_kernel: Any
    """Makes the tables' gradients."""
    table_programs: tuple[int, ...]
    shares: tuple[int, ...]
    """In how many parts the tables' gradients are made."""
    share: tuple[int, ...] = ()
    """Further arguments of that kernel."""
    excluded: Tensor | None = None


def _constants(x: Eq4Inputs, area: Area) -> dict[str, Any]:
    depth = x.v.shape[-1]
    wide = triton.next_power_of_2(depth)
    return {"USE_QK": x.use_qk, "DEPTH": depth, "WIDE": wide} | area.constants


def forward(x: Eq4Inputs, area: Area, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the two numbers a pixel that the backward needs (empty unless ``keep``)."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        maps = ready(*x[:3])
        launch(
            kernels.forward_kernel, area.programs, x.v, (*maps, *packed(*x.tables, area.excluded)),
            out, kept if keep else None, tuple(map(strides, maps)), strides(out), *x.v.shape[1:4],
            scale, **_constants(x, area),
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
        read, steps = (*maps, *tables, *packed(area.excluded)), tuple(map(strides, maps))
        options, constants = (*v.shape[1:4], scale), _constants(x, area)
        launch(
            kernels.queries_kernel, area.programs, v, read, out, grad, kept, norms, to_q, steps,
            *map(strides, (out, grad, to_q)), *options, **constants,
        )  # fmt: skip
        launch(
            kernels.keys_kernel, area.programs, v, read, grad, kept, norms, to_k, to_v, steps,
            *map(strides, (grad, to_k, to_v)), *options, **constants,
        )  # fmt: skip
        if any(t is not None for t in tables):
            shares = [
                None if t is None else v.new_empty(*area.shares, *t.shape, dtype=torch.float32)
                for t in tables
            ]
            launch(
                area.tables_kernel, area.table_programs, v, read, grad, kept, norms, *shares,
                steps, strides(grad), *options, *area.share, **constants,
            )  # fmt: skip
            parts = tuple(range(len(area.shares)))
            to_tables = [
                None if t is None or s is None else s.sum(parts).to(t.dtype)
                for t, s in zip(tables, shares, strict=True)
            ]
    return (to_q, to_k, to_v, *to_tables)
