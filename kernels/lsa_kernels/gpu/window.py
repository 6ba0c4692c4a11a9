"""Run Eq. 4 on windows on a GPU; as the CPU's, on any of float32, bfloat16 and float16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lsa_kernels.gpu import window_kernels as kernels
from lsa_kernels.gpu.tiles import SPAN, dense, launch, packed, ready, strides
from lsa_kernels.operators import Eq4Inputs, eq4_outputs, heads_last


def forward(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, and the two numbers a pixel that the backward needs (empty unless ``keep``)."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        maps, tables = ready(*x[:3]), packed(*x.tables, excluded)
        launch(
            kernels.forward_kernel, _programs(x.v, rows, columns), x.v, *maps, *tables, out,
            kept if keep else None, *map(strides, (*maps, out)), *x.v.shape[1:4], scale,
            **_constants(x, norm, rows, columns),
        )  # fmt: skip
    return out, kept, unused


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, excluded: Tensor | None, norm: str,
    rows: int, columns: int, scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the three tables; None where the input is absent."""
    v = x.v
    to_q, to_k = (None if t is None else heads_last(t) for t in x[:2])
    to_v = heads_last(v)
    *tables, excluded = packed(*x.tables, excluded)
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        maps, grad = ready(*x[:3]), dense(grad)
        norms = torch.empty_like(kept)
        read, programs = (*maps, *tables, excluded), _programs(v, rows, columns)
        options = (*v.shape[1:4], scale)
        constants = _constants(x, norm, rows, columns)
        launch(
            kernels.queries_kernel, programs, v, *read, out, grad, kept, norms, to_q,
            *map(strides, (*maps, out, grad, to_q)), *options, **constants,
        )  # fmt: skip
        launch(
            kernels.keys_kernel, programs, v, *read, grad, kept, norms, to_k, to_v,
            *map(strides, (*maps, grad, to_k, to_v)), *options, **constants,
        )  # fmt: skip
        if any(t is not None for t in tables):
            windows = v.shape[0] * (v.shape[2] // rows) * (v.shape[3] // columns)
            together = max(SPAN // (rows * columns), 1)
            number = -(-windows // together)
            shares = [
                None if t is None else v.new_empty(number, *t.shape, dtype=torch.float32)
                for t in tables
            ]
            offsets = (2 * rows - 1) * (2 * columns - 1)
            launch(
                kernels.tables_kernel, (number * v.shape[1] * offsets,), v, *read, grad, kept,
                norms, *shares, *map(strides, (*maps, grad)), *options, windows, together,
                **constants,
            )  # fmt: skip
            to_tables = [
                None if t is None or s is None else s.sum(0).to(t.dtype)
                for t, s in zip(tables, shares, strict=True)
            ]
    return (to_q, to_k, to_v, *to_tables)


def _constants(x: Eq4Inputs, norm: str, rows: int, columns: int) -> dict[str, Any]:
    depth = x.v.shape[-1]
    return {
        "USE_QK": x.use_qk, "NORM": norm, "DOWN": rows, "ACROSS": columns,
        "SIDE": math.sqrt(rows * columns), "DEPTH": depth, "WIDE": triton.next_power_of_2(depth),
    }  # fmt: skip


def _programs(v: Tensor, rows: int, columns: int) -> Callable[[Mapping[str, int]], tuple[int]]:
    planes, height, width = v.shape[0] * v.shape[1], *v.shape[2:4]
    windows = planes * (height // rows) * (width // columns)
    return lambda meta: (windows * -(-rows * columns // (meta["ROWS"] * meta["COLUMNS"])),)
