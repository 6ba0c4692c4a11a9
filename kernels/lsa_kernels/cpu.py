"""Call the C++ kernels with torch tensors, of any strides, read and written in place.

Maps are float32 or bfloat16, and so are their gradients; tables and all sums are float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsa_kernels import build
from lsa_kernels.operators import Eq4Inputs, contiguous, eq4_outputs, heads_last, packed

NORMS = {"identity": 0, "filter_norm": 1, "softmax": 2}
Grads = Sequence[Tensor | None]


class _Neighborhoods(ctypes.Structure):
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


class _Strided(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("batch", "height", "width", "heads", "depth", "rows", "columns", "size",
                     "stride", "dilation")
    )  # fmt: skip


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
        ("vectors", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


class _View(ctypes.Structure):
    _fields_ = (
        ("at", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5), ("half", ctypes.c_int64),
    )  # fmt: skip


def _view(tensor: Tensor | None) -> _View:
    if tensor is None:
        return _View(None, (ctypes.c_int64 * 5)(), 0)
    strides = (ctypes.c_int64 * 5)(*tensor.stride())
    return _View(tensor.data_ptr(), strides, int(tensor.dtype == torch.bfloat16))


def _call(name: str, problem: ctypes.Structure, *arguments: Any) -> None:
    """Call a kernel; tensors go as addresses, views with their strides."""
    given = (
        argument if isinstance(argument, int)
        else ctypes.byref(argument) if isinstance(argument, _View)
        else ctypes.c_void_p(None if argument is None else argument.data_ptr())
        for argument in arguments
    )  # fmt: skip
    if getattr(build.library(), name)(ctypes.byref(problem), *given):
        raise MemoryError("the C++ kernel could not have its scratch memory")


def _zeros(*tensors: Tensor | None) -> list[Tensor | None]:
    return [
        None if t is None else torch.zeros_like(t, memory_format=torch.contiguous_format)
        for t in tensors
    ]


def _neighborhoods(x: Eq4Inputs, norm: str, border: str, scale: float) -> _Neighborhoods:
    mask = int(border == "mask")
    return _Neighborhoods(*x.v.shape, int(x.use_qk), NORMS[norm], mask, scale)


def kept_shapes(v: Tensor, size: int) -> tuple[list[int], list[int]]:
    """Shapes of what the forward keeps for its backward: weights of the taps, and spreads."""
    batch, heads, height, width, _ = v.shape
    lanes = build.library().lanes()
    wide = -(-width // lanes) * lanes
    return [batch, heads, height, size * size, wide], [batch, heads, height, wide]


def neighboring_forward(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and what the backward needs (empty unless ``keep``)."""
    out, *kept = eq4_outputs(x.v, lambda: kept_shapes(x.v, size), keep)
    _call(
        "neighboring_forward", _neighborhoods(x, norm, border, scale), size,
        *map(_view, x[:3]), *packed(*x.tables), _view(out), *(kept if keep else (None, None)),
    )  # fmt: skip
    return out, kept[0], kept[1]


def neighboring_backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, x: Eq4Inputs, norm: str, size: int, border: str,
    scale: float,
) -> Grads:  # fmt: skip
    """Gradients of q, k, v and the three tables."""
    problem = _neighborhoods(x, norm, border, scale)
    return _eq4_backward("neighboring_backward", problem, [size], x, [weights, spreads], grad)


def _eq4_backward(
    name: str, problem: ctypes.Structure, size: list[int], x: Eq4Inputs, given: Grads, grad: Tensor
) -> Grads:
    to_maps = [None if t is None else heads_last(t) for t in x[:3]]
    to_tables = _zeros(*x.tables)
    _call(
        name, problem, *size, *map(_view, x[:3]), *packed(*x.tables), *given,
        *map(_view, (grad, *to_maps)), *to_tables,
    )  # fmt: skip
    return (*to_maps, *to_tables)


def kept_window_shapes(x: Eq4Inputs, rows: int, columns: int) -> tuple[list[int], list[int]]:
    """Shapes of what the window's forward keeps: weights of all pairs, and spreads."""
    heads, pixels, (windows, together) = x.v.shape[1], rows * columns, _lanes(x, rows, columns)
    groups = -(-windows // together)
    return [heads, groups, pixels, pixels, together], [heads, groups, pixels, together]


def _lanes(x: Eq4Inputs, rows: int, columns: int) -> tuple[int, int]:
    """How many windows there are, and how many are worked on together."""
    windows = x.v.shape[0] * (x.v.shape[2] // rows) * (x.v.shape[3] // columns)
    tables = x.rel_k is not None or x.rel_q is not None
    return windows, build.window_lanes(windows, tables=tables)


def _windows(x: Eq4Inputs, norm: str, rows: int, columns: int, scale: float) -> _Windows:
    vectors = _lanes(x, rows, columns)[1] // build.vector_lanes()
    return _Windows(*x.v.shape, rows, columns, int(x.use_qk), NORMS[norm], vectors, scale)


def window_forward(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, and what the backward needs (empty unless ``keep``)."""
    out, *kept = eq4_outputs(x.v, lambda: kept_window_shapes(x, rows, columns), keep)
    _call(
        "window_forward", _windows(x, norm, rows, columns, scale), *map(_view, x[:3]),
        *packed(*x.tables, excluded), _view(out), *(kept if keep else (None, None)),
    )  # fmt: skip
    return out, kept[0], kept[1]


def window_backward(
    grad: Tensor, weights: Tensor, spreads: Tensor, x: Eq4Inputs, excluded: Tensor | None,
    norm: str, rows: int, columns: int, scale: float,
) -> Grads:  # fmt: skip
    """Gradients of q, k, v and the three tables."""
    problem, given = _windows(x, norm, rows, columns, scale), [*packed(excluded), weights, spreads]
    return _eq4_backward("window_backward", problem, [], x, given, grad)


def _by_heads(values: Tensor, heads: int) -> _View:
    """(B, H, W, C) as a (B, H, W, h, d) view."""
    by_heads: Tensor = torch.unflatten(values, -1, (heads, values.shape[-1] // heads))
    return _view(by_heads)


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
    out = contiguous(values)
    _call(
        "filters_forward", _filter_problem(values, heads, mul, add), size,
        _by_heads(values, heads), _view(filters), *packed(mul, add), _by_heads(out, heads),
    )  # fmt: skip
    return out


def filters_backward(
    grad: Tensor, values: Tensor, filters: Tensor | None, mul: Tensor | None, add: Tensor | None,
    heads: int, size: int,
) -> Grads:  # fmt: skip
    """Gradients of values, filters, mul and add."""
    to_values, to_filters = contiguous(values), None if filters is None else contiguous(filters)
    to_tables = _zeros(mul, add)
    _call(
        "filters_backward", _filter_problem(values, heads, mul, add), size,
        _by_heads(values, heads), _view(filters), *packed(mul, add), _by_heads(grad, heads),
        _by_heads(to_values, heads), _view(to_filters), *to_tables,
    )  # fmt: skip
    return (to_values, to_filters, *to_tables)


def _strided_problem(values: Tensor, filters: Tensor, steps: Sequence[int]) -> _Strided:
    batch, height, width, channels = values.shape
    _, rows, columns, heads, _ = filters.shape
    return _Strided(batch, height, width, heads, channels // heads, rows, columns, *steps)


def strided_forward(
    values: Tensor, filters: Tensor, mul: Tensor | None, add: Tensor | None, *steps: int
) -> Tensor:
    """(B, H, W, C) values weighed where a stride keeps them; ``steps``: size, stride, dilation."""
    out = values.new_empty(*filters.shape[:3], values.shape[3])
    problem = _strided_problem(values, filters, steps)
    _call("strided_forward", problem, *packed(values, filters, mul, add), out)
    return out


def strided_backward(
    grad: Tensor, values: Tensor, filters: Tensor, mul: Tensor | None, add: Tensor | None,
    *steps: int,
) -> Grads:  # fmt: skip
    """Gradients of values, filters, mul and add."""
    found = _zeros(values, filters, mul, add)
    problem = _strided_problem(values, filters, steps)
    _call("strided_backward", problem, *packed(values, filters, mul, add, grad), *found)
    return found


def grouped_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) maps convolved in groups."""
    out = contiguous(x)
    _call(
        "grouped_conv_forward", _Maps(*x.shape), weight.shape[-1], weight.shape[1], _view(x),
        *packed(weight, bias), _view(out),
    )  # fmt: skip
    return out


def grouped_conv_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Grads:
    """Gradients of maps, weight and bias."""
    to_maps = contiguous(x)
    to_weight, to_bias = _zeros(weight, bias)
    _call(
        "grouped_conv_backward", _Maps(*x.shape), weight.shape[-1], weight.shape[1], _view(x),
        *packed(weight), _view(grad), _view(to_maps), to_weight, to_bias,
    )  # fmt: skip
    return to_maps, to_weight, to_bias
