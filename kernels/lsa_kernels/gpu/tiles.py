# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""What all kernels share: how a map is cut into tiles of pixels, and how a kernel is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsa_kernels import gpu

# Rows and columns; a tile with its border of taps should lie in the first cache.
SHAPES = ((8, 8), (4, 8), (4, 4))
WARPS = (1, 2, 4, 8)
# Tiles that are compiled and timed at most.
FEW = 3
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
    return found[:FEW] or [{"ROWS": 8, "COLUMNS": 8, "num_warps": 1}]


def launch(kernel: Any, grid: Any, on: Tensor, *given: Any, **constants: Any) -> None:
    """Start a kernel with the tile that was measured as the fastest, or else with the first.

    Other tiles add in another order, so that nothing is timed during a run: its results would not
    repeat, and the ranks of a run would differ. ``gpu.timed_tiles`` is where tiles are timed.

    Args:
        grid: gives the number of programs for a choice of tile.
        on: a tensor of the device to run on.
        given: arguments of the kernel. constants: what it is compiled for; it may leave some out.
    """
    # Triton warns where nothing says whether a * b + c may round once.
    constants = {name: c for name, c in constants.items() if name in kernel.arg_names}
    constants["enable_fp_fusion"] = True
    named = dict(zip(kernel.arg_names, given, strict=False)) | constants
    facts = [kernel.fn.__name__, str(on.dtype).removeprefix("torch.")]
    key = " ".join(facts + [f"{name}={named[name]}" for name in KEY if name in named])
    known = choices(constants["WIDE"])
    with torch.cuda.device_of(on):
        if gpu.TIMING and key not in gpu.TILES:
            gpu.TILES[key] = fastest(
                [partial(kernel[grid], *given, **constants, **tile) for tile in known]
            )
        at = gpu.TILES.get(key, 0)
        kernel[grid](*given, **constants, **known[at if at < len(known) else 0])


def fastest(calls: Sequence[Callable[[], object]]) -> int:
    """Which of these calls takes least time on the GPU, by medians."""
    from triton.testing import do_bench

    times = [float(do_bench(call, warmup=5, rep=20, return_mode="median")) for call in calls]
    return times.index(min(times))


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
