"""Run filters on a GPU; same arguments as the CPU's, any of float32, bfloat16 and float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lsa_kernels.gpu import filter_kernels as kernels
from lsa_kernels.gpu.tiles import SPAN, dense, launch, tiles

# Channels a program holds at most.
WIDEST = 64


def forward(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, heads: int,
    size: int,
) -> Tensor:  # fmt: skip
    """(B, H, W, C) values weighed by their filters.

    Args:
        values: (B, H, W, C). filters: (B, H, W, heads, size**2); None means 0, with ``add`` alone.
        mul, add: both (C, size**2) or both (B, C, size**2); None means 1 and 0.
    """
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    _apply(values, filters, mul, add, out, heads, size, back=False)
    return out


def backward(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Sequence[Tensor | None]:  # fmt: skip
    """Gradients of values, filters, mul and add; None where the input is absent."""
    new = torch.empty_like if values.numel() else torch.zeros_like
    to_values, to_filters, to_mul, to_add = (
        None if t is None else new(t, memory_format=torch.contiguous_format)
        for t in (values, filters, mul, add)
    )
    assert to_values is not None
    _apply(grad, filters, mul, add, to_values, heads, size, back=True)
    if values.numel():
        grad, values = dense(grad), dense(values)
        if to_filters is not None:
            _to_filters(grad, values, mul, to_filters, heads, size)
        if mul is not None or add is not None:
            to_mul, to_add = _to_tables(grad, values, filters, mul, add, heads, size)
    return to_values, to_filters, to_mul, to_add


def _apply(
    x: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, out: Tensor,
    heads: int, size: int, *, back: bool,
) -> None:  # fmt: skip
    if not x.numel():
        return
    x, filters = dense(x), None if filters is None else dense(filters)
    constants = _constants(x, heads, size)
    launch(
        kernels.apply_kernel, _programs(x, heads, constants), x, x, filters, *map(_taps_first,
        (mul, add)), out, _strides(x, heads), _filter_strides(filters), _strides(out, heads),
        _table_stride(mul, add), heads, *x.shape[1:3], BACK=back, **constants,
    )  # fmt: skip


def _to_filters(
    grad: Tensor, values: Tensor, mul: Tensor | None, to_filters: Tensor, heads: int, size: int
) -> None:
    constants = _constants(values, heads, size)
    launch(
        kernels.filters_kernel, _programs(values, heads), values, values, _taps_first(mul), grad,
        to_filters, _strides(values, heads), _strides(grad, heads), _filter_strides(to_filters),
        _table_stride(mul), heads, *values.shape[1:3], **constants,
    )  # fmt: skip


def _to_tables(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> list[Tensor | None]:  # fmt: skip
    filters = None if filters is None else dense(filters)
    batch, height, width, channels = values.shape
    constants = _constants(values, heads, size)
    spans = -(-height * width // SPAN)
    shares = [
        None if t is None else values.new_empty(spans, batch, size**2, channels).float()
        for t in (mul, add)
    ]
    launch(
        kernels.tables_kernel, (batch * heads * _blocks(constants) * size**2, spans), values,
        values, filters, grad, *shares, _strides(values, heads), _filter_strides(filters),
        _strides(grad, heads), heads, height, width, **constants,
    )  # fmt: skip
    return [
        None
        if t is None or s is None
        else s.sum((0, 1) if t.dim() == 2 else 0).transpose(-1, -2).to(t.dtype).contiguous()
        for t, s in zip((mul, add), shares, strict=True)
    ]


def _constants(values: Tensor, heads: int, size: int) -> dict[str, Any]:
    depth = values.shape[-1] // heads
    wide = min(WIDEST, triton.next_power_of_2(depth))
    return {"SIZE": size, "DEPTH": depth, "WIDE": wide}


def _blocks(constants: Mapping[str, int]) -> int:
    return -(-constants["DEPTH"] // constants["WIDE"])


def _programs(
    values: Tensor, heads: int, constants: Mapping[str, int] | None = None
) -> Callable[[Mapping[str, int]], tuple[int]]:
    """A program per tile of every head; and per block of channels, if these are given."""
    batch, height, width, _ = values.shape
    planes = batch * heads * (_blocks(constants) if constants else 1)
    return lambda meta: (planes * tiles(height, width, meta),)


def _strides(values: Tensor, heads: int) -> tuple[int, ...]:
    """Steps to the next image, head, row and pixel."""
    image, row, pixel, _ = values.stride()
    return image, values.shape[-1] // heads, row, pixel


def _filter_strides(filters: Tensor | None) -> tuple[int, ...]:
    if filters is None:
        return (0, 0, 0, 0)
    image, row, pixel, head, _ = filters.stride()
    return image, head, row, pixel


def _taps_first(table: Tensor | None) -> Tensor | None:
    """(..., C, taps) to (..., taps, C) in memory: a tap's channels are read together."""
    return None if table is None else table.transpose(-1, -2).contiguous()


def _table_stride(*tables: Tensor | None) -> int:
    """Step to the next image's table; 0 where one serves all."""
    table = next((t for t in tables if t is not None), None)
    return 0 if table is None or table.dim() == 2 else table[0].numel()
