# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Gradients of Eq. 4's tables: a program per tap of the neighborhoods, or offset of the windows.

Names as in ``eq4_kernels``. The shares that programs write are added up by torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lsa_kernels.gpu.eq4_kernels import included, logits, pair
from lsa_kernels.gpu.norms import rate_of, slope, weigh
from lsa_kernels.gpu.tiles import at, inside, read, write_share


@triton.jit
def _to_logits(
    logit, to_weight, kept, norms, pixel, area, seen, real, NORM: tl.constexpr, SIDE: tl.constexpr
):  # fmt: skip
    """Gradients of the logits of pairs whose queries are these pixels."""
    first, second = pair(kept, pixel, area, real)
    pull, push = pair(norms, pixel, area, real)
    rate = rate_of(second, NORM, SIDE)
    weight = weigh(logit, seen, first, rate, NORM)
    return slope(to_weight, weight, seen, rate, pull, push, NORM)


@triton.jit
def neighborhoods_kernel(
    x, to_out, kept, norms, to_rel_k, to_rel_q, to_bias, map_strides, to_out_strides,
    heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tap's share of the tables' gradients: over every so many rows of a head's tiles."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    tap = tl.program_id(0) % (DOWN * ACROSS)
    plane = tl.program_id(0) // (DOWN * ACROSS)
    image, head = plane // heads, plane % heads
    dy = tap // ACROSS - DOWN // 2
    dx = tap % ACROSS - ACROSS // 2
    place = tl.zeros([1], tl.int32) + (head * (DOWN * ACROSS) + tap)
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    area = height * width
    lane = tl.arange(0, ROWS * COLUMNS)
    k_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    q_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    b_total = tl.zeros([ROWS * COLUMNS], tl.float32)
    for row in range(tl.program_id(1), tl.cdiv(height, ROWS), tl.num_programs(1)):
        down = row * ROWS + lane // COLUMNS
        for left in range(0, width, COLUMNS):
            right = left + lane % COLUMNS
            real = inside(down, right, height, width)
            own = real[:, None] & known
            there = real & inside(down + dy, right + dx, height, width)
            mask = there[:, None] & known
            value = read(at(v, map_strides[2], image, head, down + dy, right + dx, channel), mask)
            grad = read(at(to_out, to_out_strides, image, head, down, right, channel), own)
            to_weight = tl.sum(grad * value, 1)
            query = tl.zeros_like(value)
            key = tl.zeros_like(value)
            if q is not None:
                query = read(at(q, map_strides[0], image, head, down, right, channel), own)
            if k is not None:
                key = read(at(k, map_strides[1], image, head, down + dy, right + dx, channel), mask)
            logit, _ = logits(query, key, rel_k, rel_q, bias, place, channel, scale, USE_QK, DEPTH)
            seen = real & (there | (not MASK))
            pixel = plane.to(tl.int64) * 2 * area + down * width + right
            to_logit = _to_logits(
                logit, to_weight, kept, norms, pixel, area, seen, real, NORM, SIDE
            )
            k_total += to_logit[:, None] * query
            q_total += to_logit[:, None] * key
            b_total += to_logit
    share = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    write_share(to_rel_k, share, k_total, channel, scale, DEPTH)
    write_share(to_rel_q, share, q_total, channel, scale, DEPTH)
    if to_bias is not None:
        tl.store(to_bias + share, tl.sum(b_total, 0))


@triton.jit
def _apart(base, strides, image, head, y, x, channel, known):
    """Numbers (pixels, channels) of pixels each of which has its own image; zero without a map."""
    if base is None:
        found = tl.zeros([y.shape[0], channel.shape[0]], tl.float32)
    else:
        start = image.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        pixel = (start + (y * strides[2] + x * strides[3]))[:, None]
        found = read(base + pixel + channel[None, :], known)
    return found


@triton.jit
def windows_kernel(
    x, to_out, kept, norms, to_rel_k, to_rel_q, to_bias, map_strides, to_out_strides,
    heads, height, width, scale, windows, together,
    USE_QK: tl.constexpr, NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One offset's share of the tables' gradients: over ``together`` of a head's ``windows``."""
    q, k, v, rel_k, rel_q, bias, excluded = x[0], x[1], x[2], x[3], x[4], x[5], x[6]
    offsets: tl.constexpr = (2 * DOWN - 1) * (2 * ACROSS - 1)
    offset = tl.program_id(0) % offsets
    head = tl.program_id(0) // offsets % heads
    begin = tl.program_id(0) // offsets // heads * together
    dy = offset // (2 * ACROSS - 1) - (DOWN - 1)
    dx = offset % (2 * ACROSS - 1) - (ACROSS - 1)
    # Only so many pixels of a window have one that far away in it.
    broad = ACROSS - tl.abs(dx)
    pairs = (DOWN - tl.abs(dy)) * broad
    number = tl.minimum(together, windows - begin) * pairs
    place = tl.full([1], 0, tl.int32) + (head * offsets + offset)
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    per_image = height // DOWN * (width // ACROSS)
    area = height * width
    k_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    q_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    b_total = tl.zeros([ROWS * COLUMNS], tl.float32)
    for start in range(0, number, ROWS * COLUMNS):
        lane = start + tl.arange(0, ROWS * COLUMNS)
        real = lane < number
        lane = tl.minimum(lane, number - 1)
        image = (begin + lane // pairs) // per_image
        window = (begin + lane // pairs) % per_image
        down = lane % pairs // broad + tl.maximum(-dy, 0)
        right = lane % broad + tl.maximum(-dx, 0)
        row = window // (width // ACROSS) * DOWN + down
        column = window % (width // ACROSS) * ACROSS + right
        value = _apart(v, map_strides[2], image, head, row + dy, column + dx, channel, known)
        grad = _apart(to_out, to_out_strides, image, head, row, column, channel, known)
        to_weight = tl.sum(grad * value, 1)
        query = _apart(q, map_strides[0], image, head, row, column, channel, known)
        key = _apart(k, map_strides[1], image, head, row + dy, column + dx, channel, known)
        logit, _ = logits(query, key, rel_k, rel_q, bias, place, channel, scale, USE_QK, DEPTH)
        seen = real
        if excluded is not None:
            i = down * ACROSS + right
            j = i + dy * ACROSS + dx
            seen = real & included(excluded, window, i, j, DOWN * ACROSS)
        pixel = (image.to(tl.int64) * heads + head) * 2 * area + row * width + column
        to_logit = _to_logits(logit, to_weight, kept, norms, pixel, area, seen, real, NORM, SIDE)
        k_total += to_logit[:, None] * query
        q_total += to_logit[:, None] * key
        b_total += to_logit
    share = tl.program_id(0).to(tl.int64)
    write_share(to_rel_k, share, k_total, channel, scale, DEPTH)
    write_share(to_rel_q, share, q_total, channel, scale, DEPTH)
    if to_bias is not None:
        tl.store(to_bias + share, tl.sum(b_total, 0))
