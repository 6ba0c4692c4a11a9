"""Call the C++ kernels with torch tensors: float32, any strides, read and written in place."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lsa_kernels import build

NORMS = {"identity": 0, "filter_norm": 1, "softmax": 2}
Tensors = tuple[Tensor, ...]


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "height", "width", "depth")),
        *((name, ctypes.c_int) for name in ("use_qk", "norm", "mask")),
        ("scale", ctypes.c_float),
    )


class _Filters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "heads", "depth")),
        ("per_image", ctypes.c_int),
    )


class _Maps(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels"))


class _Windows(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "heads", "height", "width", "depth", "rows", "columns")
        ),
        ("use_qk", ctypes.c_int),
        ("norm", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


class _View(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5))


def _view(tensor: Tensor | None) -> _View:
    if tensor is None:
        return _View(None, (ctypes.c_int64 * 5)())
    return _View(tensor.data_ptr(), (ctypes.c_int64 * 5)(*tensor.stride()))


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _problem(v: Tensor, use_qk: bool, norm: str, border: str, scale: float) -> _Problem:
    return _Problem(*v.shape, int(use_qk), NORMS[norm], int(border == "mask"), scale)


def _check(code: int) -> None:
    if code:
        raise MemoryError("the C++ kernel could not have its scratch memory")


def heads_last(like: Tensor) -> Tensor:
    """An empty (B, h, H, W, d) whose memory lies as (B, H, W, h, d), as the projections want it."""
    batch, heads, height, width, depth = like.shape
    return like.new_empty(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4)


def kept_shapes(v: Tensor, size: int) -> tuple[list[int], list[int]]:
    """Shapes of what the forward keeps for the way back: weights of the taps, and spreads."""
    batch, heads, height, width, _ = v.shape
    lanes = build.library().lanes()
    wide = -(-width // lanes) * lanes
    return [batch, heads, height, size * size, wide], [batch, heads, height, wide]


def forward(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: int, border: str, scale: float,
    keep: bool,
) -> Tensors:  # fmt: skip
    """Output, and what the way back needs (empty unless ``keep``)."""
    out = heads_last(v)
    weights_shape, spreads_shape = kept_shapes(v, size) if keep else ([0], [0])
    weights, spreads = v.new_empty(weights_shape), v.new_empty(spreads_shape)
    tables = [None if t is None else t.contiguous() for t in (rel_k, rel_q, rel_bias)]
    problem, views = _problem(v, use_qk, norm, border, scale), [_view(t) for t in (q, k, v)]
    if v.numel():
        code = build.library().neighboring_forward(
            ctypes.byref(problem), size, *map(ctypes.byref, views),
            *(ctypes.c_void_p(_at(t)) for t in tables), ctypes.byref(_view(out)),
            ctypes.c_void_p(_at(weights) if keep else None),
            ctypes.c_void_p(_at(spreads) if keep else None),
        )  # fmt: skip
        _check(code)
    return out, weights, spreads


def backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, use_qk: bool, norm: str,
    size: int, border: str, scale: float,
) -> Tensors:  # fmt: skip
    """Gradients of q, k, v and the three tables; empty where the input is absent."""
    tables = [None if t is None else t.contiguous() for t in (rel_k, rel_q, rel_bias)]
    to_maps = [None if t is None else heads_last(v) for t in (q, k)]
    to_values = heads_last(v)
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        problem = _problem(v, use_qk, norm, border, scale)
        code = build.library().neighboring_backward(
            ctypes.byref(problem), size, *(ctypes.byref(_view(t)) for t in (q, k, v)),
            *(ctypes.c_void_p(_at(t)) for t in tables), ctypes.c_void_p(_at(weights)),
            ctypes.c_void_p(_at(spreads)),
            *(ctypes.byref(_view(t)) for t in (grad, *to_maps, to_values)),
            *(ctypes.c_void_p(_at(t)) for t in to_tables),
        )  # fmt: skip
        _check(code)
    found = (*to_maps, to_values, *to_tables)
    return tuple(v.new_empty(0) if t is None else t for t in found)


def kept_window_shapes(v: Tensor, rows: int, columns: int) -> tuple[list[int], list[int]]:
    """Shapes of what the window's forward keeps: weights of all pairs, and spreads."""
    batch, heads, height, width, _ = v.shape
    pixels, together = rows * columns, build.window_lanes()
    groups = -(-batch * (height // rows) * (width // columns) // together)
    return [heads, groups, pixels, pixels, together], [heads, groups, pixels, together]


def window_forward(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, excluded: Tensor | None, use_qk: bool, norm: str, rows: int,
    columns: int, scale: float, keep: bool,
) -> Tensors:  # fmt: skip
    """Output, and what the way back needs (empty unless ``keep``)."""
    out = heads_last(v)
    kept, spread = kept_window_shapes(v, rows, columns) if keep else ([0], [0])
    weights, spreads = v.new_empty(kept), v.new_empty(spread)
    tables = [None if t is None else t.contiguous() for t in (rel_k, rel_q, rel_bias, excluded)]
    if v.numel():
        problem = _Windows(*v.shape, rows, columns, int(use_qk), NORMS[norm], scale)
        code = build.library().window_forward(
            ctypes.byref(problem), *(ctypes.byref(_view(t)) for t in (q, k, v)),
            *(ctypes.c_void_p(_at(t)) for t in tables), ctypes.byref(_view(out)),
            ctypes.c_void_p(_at(weights) if keep else None),
            ctypes.c_void_p(_at(spreads) if keep else None),
        )  # fmt: skip
        _check(code)
    return out, weights, spreads


def window_backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor,
    rel_k: Tensor | None, rel_q: Tensor | None, rel_bias: Tensor | None, excluded: Tensor | None,
    use_qk: bool, norm: str, rows: int, columns: int, scale: float,
) -> Tensors:  # fmt: skip
    """Gradients of q, k, v and the three tables; empty where the input is absent."""
    *tables, excluded = (
        None if t is None else t.contiguous() for t in (rel_k, rel_q, rel_bias, excluded)
    )
    to_maps = [None if t is None else heads_last(v) for t in (q, k)]
    to_values = heads_last(v)
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if v.numel():
        problem = _Windows(*v.shape, rows, columns, int(use_qk), NORMS[norm], scale)
        code = build.library().window_backward(
            ctypes.byref(problem), *(ctypes.byref(_view(t)) for t in (q, k, v)),
            *(ctypes.c_void_p(_at(t)) for t in (*tables, excluded, weights, spreads)),
            *(ctypes.byref(_view(t)) for t in (grad, *to_maps, to_values)),
            *(ctypes.c_void_p(_at(t)) for t in to_tables),
        )  # fmt: skip
        _check(code)
    found = (*to_maps, to_values, *to_tables)
    return tuple(v.new_empty(0) if t is None else t for t in found)


def _by_heads(values: Tensor, heads: int) -> Tensor:
    """(B, H, W, C) as a (B, H, W, h, d) view."""
    by_heads: Tensor = torch.unflatten(values, -1, (heads, values.shape[-1] // heads))
    return by_heads


def _filter_problem(values: Tensor, heads: int, mul: Tensor | None, add: Tensor | None) -> _Filters:
    batch, height, width, channels = values.shape
    table = mul if mul is not None else add
    per_image = table is not None and table.dim() == 3
    return _Filters(batch, height, width, heads, channels // heads, int(per_image))


def filters_forward(
    values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None, heads: int,
    size: int,
) -> Tensor:  # fmt: skip
    """(B, H, W, C) values weighed by their filters."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    tables = [None if t is None else t.contiguous() for t in (mul, add)]
    if values.numel():
        views = [_view(_by_heads(values, heads)), _view(filters)]
        code = build.library().filters_forward(
            ctypes.byref(_filter_problem(values, heads, mul, add)), size,
            *map(ctypes.byref, views), *(ctypes.c_void_p(_at(t)) for t in tables),
            ctypes.byref(_view(_by_heads(out, heads))),
        )  # fmt: skip
        _check(code)
    return out


def filters_backward(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Tensors:  # fmt: skip
    """Gradients of values, filters, mul and add; empty where the input is absent."""
    tables = [None if t is None else t.contiguous() for t in (mul, add)]
    to_values = torch.empty_like(values, memory_format=torch.contiguous_format)
    to_filters = (
        None
        if filters is None
        else torch.empty_like(filters, memory_format=torch.contiguous_format)
    )
    to_tables = [None if t is None else torch.zeros_like(t) for t in tables]
    if values.numel():
        views = [_by_heads(values, heads), filters]
        gradients = [_by_heads(grad, heads), _by_heads(to_values, heads), to_filters]
        code = build.library().filters_backward(
            ctypes.byref(_filter_problem(values, heads, mul, add)), size,
            *(ctypes.byref(_view(t)) for t in views), *(ctypes.c_void_p(_at(t)) for t in tables),
            *(ctypes.byref(_view(t)) for t in gradients),
            *(ctypes.c_void_p(_at(t)) for t in to_tables),
        )  # fmt: skip
        _check(code)
    return tuple(
        values.new_empty(0) if t is None else t for t in (to_values, to_filters, *to_tables)
    )


def grouped_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) maps convolved in groups."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        tables = [None if t is None else t.contiguous() for t in (weight, bias)]
        code = build.library().grouped_conv_forward(
            ctypes.byref(_Maps(*x.shape)), weight.shape[-1], weight.shape[1],
            ctypes.byref(_view(x)), *(ctypes.c_void_p(_at(t)) for t in tables),
            ctypes.byref(_view(out)),
        )  # fmt: skip
        _check(code)
    return out


def grouped_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, weight and bias; empty where the input is absent."""
    to_maps = torch.empty_like(x, memory_format=torch.contiguous_format)
    weight = weight.contiguous()
    to_weight = torch.zeros_like(weight)
    to_bias = None if bias is None else torch.zeros_like(bias)
    if x.numel():
        code = build.library().grouped_conv_backward(
            ctypes.byref(_Maps(*x.shape)), weight.shape[-1], weight.shape[1],
            ctypes.byref(_view(x)), ctypes.c_void_p(_at(weight)),
            *(ctypes.byref(_view(t)) for t in (grad, to_maps)),
            *(ctypes.c_void_p(_at(t)) for t in (to_weight, to_bias)),
        )  # fmt: skip
        _check(code)
    return to_maps, to_weight, x.new_empty(0) if to_bias is None else to_bias
