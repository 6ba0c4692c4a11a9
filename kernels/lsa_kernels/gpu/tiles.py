# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""What all kernels share: how a map is cut into tiles of pixels, and how a kernel is started."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows and columns; a tile with its border of taps should lie in the first cache.
SHAPES = ((8, 8), (4, 8), (4, 4))
WARPS = (1, 2, 4, 8)
# Pixels whose share of a table's gradient one program adds up: a map of 56 x 56 and less.
SPAN = 4096
KEY = ("height", "width", "DEPTH", "SIZE", "WINDOWS", "DOWN", "ACROSS")


def tiles(height: int, width: int, meta: Mapping[str, int]) -> int:
    """How many tiles a map has."""
    return -(-height // meta["ROWS"]) * -(-width // meta["COLUMNS"])


def choices(wide: int) -> list[dict[str, int]]:
    """Tiles and warps that give a thread 8 to 16 numbers: more would not fit its registers."""
    found = [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows, columns in SHAPES
        for warps in WARPS
        if 8 <= rows * columns * wide / (32 * warps) <= 16
    ]
    return found or [{"ROWS": 8, "COLUMNS": 8, "num_warps": 1}]


def launch(kernel: Any, grid: Any, on: Tensor, *given: Any, **constants: Any) -> None:
    """Start a kernel with the fastest of the known tiles, found by timing on first use.

    Other tiles add in another order. So that results repeat from run to run, nothing is timed
    under ``torch.use_deterministic_algorithms`` (nor in Triton's interpreter).

    Args:
        grid: gives the number of programs for a choice of tile.
        on: a tensor of the device to run on.
        given: arguments of the kernel. constants: what it is compiled for; it may leave some out.
    """
    # Triton warns where nothing says whether a * b + c may round once.
    constants = {name: c for name, c in constants.items() if name in kernel.arg_names}
    constants["enable_fp_fusion"] = True
    interpreted = not isinstance(kernel, triton.JITFunction)
    with torch.cuda.device_of(on):
        if interpreted or torch.are_deterministic_algorithms_enabled():
            kernel[grid](*given, **constants, **choices(constants["WIDE"])[0])
        else:
            _tuned(kernel, constants["WIDE"])[grid](*given, **constants)


@functools.cache
def _tuned(kernel: Any, wide: int) -> Any:
    configs = [
        triton.Config({"ROWS": c["ROWS"], "COLUMNS": c["COLUMNS"]}, num_warps=c["num_warps"])
        for c in choices(wide)
    ]
    key = [name for name in kernel.arg_names if name in KEY]
    return triton.autotune(configs=configs, key=key)(kernel)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself if its channels lie side by side in memory, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def ready(*maps: Tensor | None) -> list[Tensor | None]:
    """Maps as the kernels read them."""
    return [None if t is None else dense(t) for t in maps]


def strides(tensor: Tensor | None) -> tuple[int, ...]:
    """Steps of a (B, h, H, W, d), the last left out."""
    return (0, 0, 0, 0) if tensor is None else tensor.stride()[:4]


@triton.jit
def pixels(tile, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column of a tile's pixels, and whether they are on the map."""
    across = tl.cdiv(width, COLUMNS)
    lane = tl.arange(0, ROWS * COLUMNS)
    y = tile // across * ROWS + lane // COLUMNS
    x = tile % across * COLUMNS + lane % COLUMNS
    return y, x, (y < height) & (x < width)


@triton.jit
def inside(y, x, height, width):
    """Whether these pixels are on the map."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def at(base, strides, image, head, y, x, channel):
    """Addresses (pixels, channels) in a (B, h, H, W, d) whose channels lie side by side."""
    # 64 bits: a batch may hold more numbers than 32 can count; ``gpu.too_large`` keeps out images
    # that do.
    start = image.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    pixel = y * strides[2] + x * strides[3]
    return base + start + pixel[:, None] + channel[None, :]


@triton.jit
def read(address, mask):
    """Numbers in float32, zero where the mask is off."""
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write(address, numbers, mask):
    """Numbers in whatever type the memory has."""
    tl.store(address, numbers.to(address.dtype.element_ty), mask=mask)


@triton.jit
def write_share(to_table, share, total, channel, scale, DEPTH: tl.constexpr):
    """A program's part of a table's gradient, if the table is there."""
    if to_table is not None:
        tl.store(to_table + share * DEPTH + channel, tl.sum(total, 0) * scale, channel < DEPTH)
