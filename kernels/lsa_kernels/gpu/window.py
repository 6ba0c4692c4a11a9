"""Run Eq. 4 on windows on a GPU; as the CPU's, on any of float32, bfloat16 and float16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from lsa_kernels.cpu import heads_last
from lsa_kernels.gpu import kept_shape
from lsa_kernels.gpu import window_kernels as kernels
from lsa_kernels.gpu.tiles import SPAN, dense, launch, packed, ready, strides

Tensors = tuple[Tensor, ...]


def forward(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Tensors:  # fmt: skip
    """Output, and the two numbers a pixel for the way back (empty unless ``keep``)."""
    out = heads_last(v)
    kept = v.new_empty(kept_shape(v) if keep else [0], dtype=torch.float32)
    if v.numel():
        maps, tables = ready(q, k, v), packed(rel_k, rel_q, rel_bias, excluded)
        launch(
            kernels.forward_kernel, _programs(v, rows, columns), v, *maps, *tables, out,
            kept if keep else None, *map(strides, (*maps, out)), *v.shape[1:4], scale,
            **_constants(v, use_qk, norm, rows, columns),
        )  # fmt: skip
    return out, kept


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, excluded: Tensor | None,
    use_qk: bool, norm: str, rows: int, columns: int, scale: float,
) -> Tensors:  # fmt: skip
    """Gradients of q, k, v and the three tables; empty where the input is absent."""
    to_q, to_k = (None if t is None else heads_last(t) for t in (q, k))
    to_v = heads_last(v)
    *tables, excluded = packed(rel_k, rel_q, rel_bias, excluded)
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        maps, grad = ready(q, k, v), dense(grad)
        norms = torch.empty_like(kept)
        read, programs = (*maps, *tables, excluded), _programs(v, rows, columns)
        options = (*v.shape[1:4], scale)
        constants = _constants(v, use_qk, norm, rows, columns)
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
    found = (to_q, to_k, to_v, *to_tables)
    return tuple(v.new_empty(0) if t is None else t for t in found)


def _constants(v: Tensor, use_qk: bool, norm: str, rows: int, columns: int) -> dict[str, Any]:
    depth = v.shape[-1]
    return {
        "USE_QK": use_qk, "NORM": norm, "DOWN": rows, "ACROSS": columns,
        "SIDE": math.sqrt(rows * columns), "DEPTH": depth, "WIDE": triton.next_power_of_2(depth),
    }  # fmt: skip


def _programs(v: Tensor, rows: int, columns: int) -> Callable[[Mapping[str, int]], tuple[int]]:
    planes, height, width = v.shape[0] * v.shape[1], *v.shape[2:4]
    windows = planes * (height // rows) * (width // columns)
    return lambda meta: (windows * -(-rows * columns // (meta["ROWS"] * meta["COLUMNS"])),)
