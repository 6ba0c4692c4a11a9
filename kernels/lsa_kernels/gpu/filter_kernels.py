# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Filters on every pixel's own neighborhood, expanded to channels by mul and add.

Channels are cut into heads and those into blocks of WIDE. A program holds a tile of pixels of one
block and walks the taps, or holds one tap and walks the tiles. Tables lie as (image, tap, channel).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lsa_kernels.gpu.tiles import at, inside, pixels, read, write


@triton.jit
def _weights(filters_at, shift, mask, mul, add, row, channel, known):
    """Weights of one tap, (pixels, channels) or what broadcasts to it."""
    if filters_at is not None:
        weight = read(filters_at + shift, mask)[:, None]
        if mul is not None:
            weight = weight * read(mul + row + channel, known)[None, :]
        if add is not None:
            weight = weight + read(add + row + channel, known)[None, :]
    else:
        weight = read(add + row + channel, known)[None, :]
    return weight


@triton.jit
def _filters_at(filters, strides, image, head, y, x):
    """Addresses of the first tap of these pixels' filters."""
    start = image.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    return filters + start + (y * strides[2] + x * strides[3])


@triton.jit
def apply_kernel(
    x_map, filters, mul, add, out, x_strides, filters_strides, out_strides, table_stride,
    heads, height, width,
    BACK: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Weighed sums of values, or with BACK the values' gradient from the output's.

    The way back reads every tap at the pixel whose filter has sent it there.
    """
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    blocks = tl.cdiv(DEPTH, WIDE)
    plane = tl.program_id(0) // tiles // blocks
    image, head = plane // heads, plane % heads
    y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    channel = tl.program_id(0) // tiles % blocks * WIDE + tl.arange(0, WIDE)
    known = channel < DEPTH
    x_at = at(x_map, x_strides, image, head, y, x, channel)
    filters_at = (
        None if filters is None else _filters_at(filters, filters_strides, image, head, y, x)
    )
    total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    for tap in range(SIZE * SIZE):
        dy = tap // SIZE - SIZE // 2
        dx = tap % SIZE - SIZE // 2
        if BACK:
            dy = -dy
            dx = -dx
        there = real & inside(y + dy, x + dx, height, width)
        numbers = read(
            x_at + dy * x_strides[2] + dx * x_strides[3], there[:, None] & known[None, :]
        )
        shift = tap
        if BACK:
            shift += dy * filters_strides[2] + dx * filters_strides[3]
        row = image.to(tl.int64) * table_stride + (tap * heads + head) * DEPTH
        total += _weights(filters_at, shift, there, mul, add, row, channel, known) * numbers
    mask = real[:, None] & known[None, :]
    write(at(out, out_strides, image, head, y, x, channel), total, mask)


@triton.jit
def filters_kernel(
    values, mul, to_out, to_filters, values_strides, to_out_strides, to_filters_strides,
    table_stride, heads, height, width,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the filters: the output's against every neighbor's values."""
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    plane = tl.program_id(0) // tiles
    image, head = plane // heads, plane % heads
    y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    lane = tl.arange(0, WIDE)
    grads_at = at(to_out, to_out_strides, image, head, y, x, lane)
    values_at = at(values, values_strides, image, head, y, x, lane)
    to_filters_at = _filters_at(to_filters, to_filters_strides, image, head, y, x)
    for tap in range(SIZE * SIZE):
        dy = tap // SIZE - SIZE // 2
        dx = tap % SIZE - SIZE // 2
        there = real & inside(y + dy, x + dx, height, width)
        row = image.to(tl.int64) * table_stride + (tap * heads + head) * DEPTH
        shift = dy * values_strides[2] + dx * values_strides[3]
        total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
        for start in range(0, DEPTH, WIDE):
            known = start + lane < DEPTH
            mask = there[:, None] & known[None, :]
            products = read(grads_at + start, mask) * read(values_at + shift + start, mask)
            if mul is not None:
                products *= read(mul + row + start + lane, known)[None, :]
            total += products
        write(to_filters_at + tap, tl.sum(total, 1), real)


@triton.jit
def tables_kernel(
    values, filters, to_out, to_mul, to_add, values_strides, filters_strides, to_out_strides,
    heads, height, width,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tap's share of the gradients of mul and add: every so many rows of tiles."""
    blocks = tl.cdiv(DEPTH, WIDE)
    tap = tl.program_id(0) % (SIZE * SIZE)
    plane = tl.program_id(0) // (SIZE * SIZE) // blocks
    image, head = plane // heads, plane % heads
    dy = tap // SIZE - SIZE // 2
    dx = tap % SIZE - SIZE // 2
    channel = tl.program_id(0) // (SIZE * SIZE) % blocks * WIDE + tl.arange(0, WIDE)
    known = channel < DEPTH
    mul_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    add_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    lane = tl.arange(0, ROWS * COLUMNS)
    x = lane % COLUMNS
    for row in range(tl.program_id(1), tl.cdiv(height, ROWS), tl.num_programs(1)):
        y = row * ROWS + lane // COLUMNS
        grads_at = at(to_out, to_out_strides, image, head, y, x, channel)
        values_at = at(values, values_strides, image, head, y + dy, x + dx, channel)
        filters_at = (
            None if filters is None else _filters_at(filters, filters_strides, image, head, y, x)
        )
        for left in range(0, width, COLUMNS):
            real = inside(y, x + left, height, width)
            there = real & inside(y + dy, x + left + dx, height, width)
            mask = there[:, None] & known[None, :]
            products = read(grads_at + left * to_out_strides[3], mask)
            products *= read(values_at + left * values_strides[3], mask)
            add_total += products
            if to_mul is not None:
                weights = read(filters_at + left * filters_strides[3] + tap, there)
                mul_total += weights[:, None] * products
    images = tl.num_programs(0) // (SIZE * SIZE * blocks * heads)
    share = (tl.program_id(1) * images + image).to(tl.int64) * SIZE * SIZE + tap
    start = (share * heads + head) * DEPTH
    if to_mul is not None:
        tl.store(to_mul + start + channel, tl.sum(mul_total, 0), mask=known)
    if to_add is not None:
        tl.store(to_add + start + channel, tl.sum(add_total, 0), mask=known)
