# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on every pixel's own neighborhood, forward and backward.

A program holds a tile of pixels of one head of one image and walks the taps, so nothing of taps
times pixels is stored; of the forward two numbers a pixel are kept (``norms``).

The backward is three kernels, each of which alone writes what it writes: queries, and two numbers
a pixel that turn gradients of weights into gradients of logits; keys and values, through the
transposed taps; tables, a program per tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lsa_kernels.gpu.norms import filter_pull, grow, slope, soften, spread, weigh
from lsa_kernels.gpu.tiles import at, inside, pixels, read, write, write_share


@triton.jit
def _row(table, place, channel, DEPTH: tl.constexpr):
    return read(table + place * DEPTH + channel, channel < DEPTH)[None, :]


@triton.jit
def _side(numbers, table, place, channel, USE_QK: tl.constexpr, DEPTH: tl.constexpr):
    """Keys plus r^k, which queries are multiplied with; or queries plus r^q, which keys are."""
    if table is None:
        side = numbers
    elif USE_QK:
        side = numbers + _row(table, place, channel, DEPTH)
    else:
        side = _row(table, place, channel, DEPTH)
    return side


@triton.jit
def _logit(numbers, side, others, table, bias, place, channel, scale, DEPTH: tl.constexpr):
    """Logits of one tap: numbers times their side, others times their table; ``place`` in it."""
    products = tl.zeros_like(numbers)
    if side is not None:
        products += numbers * side
    if table is not None:
        products += others * _row(table, place, channel, DEPTH)
    logit = tl.sum(products, 1) * scale
    if bias is not None:
        logit += tl.load(bias + place).to(tl.float32)
    return logit


@triton.jit
def _count(y, x, height, width, SIZE: tl.constexpr, MASK: tl.constexpr):
    """How many taps of each pixel have a say."""
    if MASK:
        rows = tl.minimum(y + SIZE // 2, height - 1) - tl.maximum(y - SIZE // 2, 0) + 1
        columns = tl.minimum(x + SIZE // 2, width - 1) - tl.maximum(x - SIZE // 2, 0) + 1
        return (rows * columns).to(tl.float32)
    return (y * 0 + SIZE * SIZE).to(tl.float32)


@triton.jit
def _pair(kept, pixel, area, mask):
    """The two numbers that are kept of each pixel."""
    first = tl.load(kept + pixel, mask=mask, other=0.0)
    return first, tl.load(kept + area + pixel, mask=mask, other=1.0)


@triton.jit
def _neighbor(address, strides, dy, dx, mask, like):
    """Numbers of the pixels (dy, dx) away; zero where the mask is off or nothing is read at all."""
    if address is None:
        found = tl.zeros_like(like)
    else:
        found = read(address + dy * strides[2] + dx * strides[3], mask)
    return found


@triton.jit
def _mean_and_spread(
    query, k_at, k_strides, rel_k, rel_q, bias, head, channel, y, x, height, width, scale,
    USE_QK: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Mean of every pixel's logits, and deviation plus epsilon, in one walk (Welford's)."""
    count = (y * 0).to(tl.float32)
    mean = count
    squares = count
    for tap in range(SIZE * SIZE):
        dy = tap // SIZE - SIZE // 2
        dx = tap % SIZE - SIZE // 2
        there = inside(y + dy, x + dx, height, width)
        mask = there[:, None] & (channel < DEPTH)[None, :]
        key = _neighbor(k_at, k_strides, dy, dx, mask, query)
        place = head * SIZE * SIZE + tap
        side = None
        if USE_QK or rel_k is not None:
            side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
        logit = _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH)
        seen = there | (not MASK)
        count, mean, squares = grow(logit, seen, count, mean, squares)
    return mean, spread(count, squares)


@triton.jit
def forward_kernel(
    q, k, v, rel_k, rel_q, bias, out, kept, q_strides, k_strides, v_strides, out_strides,
    heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr,
    DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Output of a tile of pixels, and the two numbers kept of each."""
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    plane = tl.program_id(0) // tiles
    image, head = plane // heads, plane % heads
    y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    k_at = None if k is None else at(k, k_strides, image, head, y, x, channel)
    v_at = at(v, v_strides, image, head, y, x, channel)
    query = total
    if q is not None:
        query = read(at(q, q_strides, image, head, y, x, channel), real[:, None] & known)

    first = tl.full([ROWS * COLUMNS], float("-inf") if NORM == "softmax" else 0.0, tl.float32)
    second = tl.zeros([ROWS * COLUMNS], tl.float32)
    if NORM == "filter_norm":
        first, second = _mean_and_spread(
            query, k_at, k_strides, rel_k, rel_q, bias, head, channel, y, x, height, width, scale,
            USE_QK, MASK, SIZE, DEPTH,
        )  # fmt: skip
    for tap in range(SIZE * SIZE):
        dy = tap // SIZE - SIZE // 2
        dx = tap % SIZE - SIZE // 2
        there = inside(y + dy, x + dx, height, width)
        mask = there[:, None] & known
        key = _neighbor(k_at, k_strides, dy, dx, mask, query)
        value = _neighbor(v_at, v_strides, dy, dx, mask, query)
        place = head * SIZE * SIZE + tap
        side = None
        if USE_QK or rel_k is not None:
            side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
        logit = _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH)
        seen = there | (not MASK)
        if NORM == "softmax":
            first, second, fade, weight = soften(logit, seen, first, second)
            total = total * fade[:, None]
        else:
            weight = weigh(logit, seen, first, second, NORM, SIZE)
        total += weight[:, None] * value
    if NORM == "softmax":
        second = 1.0 / second
        total *= second[:, None]
    write(at(out, out_strides, image, head, y, x, channel), total, real[:, None] & known)
    if kept is not None:
        area = height * width
        pixel = plane.to(tl.int64) * 2 * area + y * width + x
        tl.store(kept + pixel, first, mask=real)
        tl.store(kept + area + pixel, second, mask=real)


@triton.jit
def _pull_and_push(
    to_out, out, v_at, v_strides, known, y, x, height, width, second,
    NORM: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What the norm takes off the gradients of a pixel's weights: for the weight, and for all."""
    pull = tl.sum(to_out * out, 1)
    push = tl.zeros_like(pull)
    if NORM == "filter_norm":
        values = tl.zeros_like(out)
        for tap in range(SIZE * SIZE):
            dy = tap // SIZE - SIZE // 2
            dx = tap % SIZE - SIZE // 2
            mask = inside(y + dy, x + dx, height, width)[:, None] & known
            values += _neighbor(v_at, v_strides, dy, dx, mask, out)
        count = _count(y, x, height, width, SIZE, MASK)
        push = tl.sum(to_out * values, 1) / count
        pull = filter_pull(pull, count, second, SIZE)
    return pull, push


@triton.jit
def queries_kernel(
    q, k, v, rel_k, rel_q, bias, out, to_out, kept, norms, to_q, q_strides, k_strides, v_strides,
    out_strides, to_out_strides, to_q_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr,
    DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; and ``norms``, what the other two kernels need of each pixel."""
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    plane = tl.program_id(0) // tiles
    image, head = plane // heads, plane % heads
    y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    own = real[:, None] & known
    k_at = None if k is None else at(k, k_strides, image, head, y, x, channel)
    v_at = at(v, v_strides, image, head, y, x, channel)
    grad = read(at(to_out, to_out_strides, image, head, y, x, channel), own)
    result = read(at(out, out_strides, image, head, y, x, channel), own)
    area = height * width
    pixel = plane.to(tl.int64) * 2 * area + y * width + x
    first, second = _pair(kept, pixel, area, real)
    pull, push = _pull_and_push(
        grad, result, v_at, v_strides, known, y, x, height, width, second, NORM, MASK, SIZE
    )
    tl.store(norms + pixel, pull, mask=real)
    tl.store(norms + area + pixel, push, mask=real)
    if to_q is not None:
        query = read(at(q, q_strides, image, head, y, x, channel), own)
        total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
        for tap in range(SIZE * SIZE):
            dy = tap // SIZE - SIZE // 2
            dx = tap % SIZE - SIZE // 2
            there = inside(y + dy, x + dx, height, width)
            mask = there[:, None] & known
            key = _neighbor(k_at, k_strides, dy, dx, mask, query)
            value = _neighbor(v_at, v_strides, dy, dx, mask, query)
            place = head * SIZE * SIZE + tap
            side = None
            if USE_QK or rel_k is not None:
                side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
            logit = _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH)
            seen = there | (not MASK)
            weight = weigh(logit, seen, first, second, NORM, SIZE)
            to_weight = tl.sum(grad * value, 1)
            to_logit = slope(to_weight, weight, seen, second, pull, push, NORM, SIZE)
            total += to_logit[:, None] * side
        write(at(to_q, to_q_strides, image, head, y, x, channel), total * scale, own)


@triton.jit
def keys_kernel(
    q, k, v, rel_k, rel_q, bias, to_out, kept, norms, to_k, to_v, q_strides, k_strides, v_strides,
    to_out_strides, to_k_strides, to_v_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr,
    DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: what the queries around a pixel send to it."""
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    plane = tl.program_id(0) // tiles
    image, head = plane // heads, plane % heads
    y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    own = real[:, None] & known
    q_at = None if q is None else at(q, q_strides, image, head, y, x, channel)
    grad_at = at(to_out, to_out_strides, image, head, y, x, channel)
    value = read(at(v, v_strides, image, head, y, x, channel), own)
    key = tl.zeros_like(value)
    if k is not None:
        key = read(at(k, k_strides, image, head, y, x, channel), own)
    area = height * width
    pixel = plane.to(tl.int64) * 2 * area + y * width + x
    key_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    value_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    for tap in range(SIZE * SIZE):
        dy = SIZE // 2 - tap // SIZE
        dx = SIZE // 2 - tap % SIZE
        there = real & inside(y + dy, x + dx, height, width)
        mask = there[:, None] & known
        query = _neighbor(q_at, q_strides, dy, dx, mask, value)
        grad = _neighbor(grad_at, to_out_strides, dy, dx, mask, value)
        place = head * SIZE * SIZE + tap
        side = None
        if USE_QK or rel_q is not None:
            side = _side(query, rel_q, place, channel, USE_QK, DEPTH)
        logit = _logit(key, side, query, rel_k, bias, place, channel, scale, DEPTH)
        source = pixel + dy * width + dx
        first, second = _pair(kept, source, area, there)
        weight = weigh(logit, there, first, second, NORM, SIZE)
        value_total += weight[:, None] * grad
        if to_k is not None:
            pull, push = _pair(norms, source, area, there)
            to_weight = tl.sum(grad * value, 1)
            to_logit = slope(to_weight, weight, there, second, pull, push, NORM, SIZE)
            key_total += to_logit[:, None] * side
    write(at(to_v, to_v_strides, image, head, y, x, channel), value_total, own)
    if to_k is not None:
        write(at(to_k, to_k_strides, image, head, y, x, channel), key_total * scale, own)


@triton.jit
def tables_kernel(
    q, k, v, rel_k, rel_q, bias, to_out, kept, norms, to_rel_k, to_rel_q, to_bias, q_strides,
    k_strides, v_strides, to_out_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, SIZE: tl.constexpr,
    DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tap's share of the tables' gradients: over every so many rows of a head's tiles."""
    tap = tl.program_id(0) % (SIZE * SIZE)
    plane = tl.program_id(0) // (SIZE * SIZE)
    image, head = plane // heads, plane % heads
    dy = tap // SIZE - SIZE // 2
    dx = tap % SIZE - SIZE // 2
    place = head * SIZE * SIZE + tap
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    area = height * width
    lane = tl.arange(0, ROWS * COLUMNS)
    k_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    q_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    b_total = tl.zeros([ROWS * COLUMNS], tl.float32)
    for row in range(tl.program_id(1), tl.cdiv(height, ROWS), tl.num_programs(1)):
        y = row * ROWS + lane // COLUMNS
        for left in range(0, width, COLUMNS):
            x = left + lane % COLUMNS
            real = inside(y, x, height, width)
            own = real[:, None] & known
            there = real & inside(y + dy, x + dx, height, width)
            mask = there[:, None] & known
            value = read(at(v, v_strides, image, head, y + dy, x + dx, channel), mask)
            grad = read(at(to_out, to_out_strides, image, head, y, x, channel), own)
            to_weight = tl.sum(grad * value, 1)
            query = tl.zeros_like(value)
            key = tl.zeros_like(value)
            if q is not None:
                query = read(at(q, q_strides, image, head, y, x, channel), own)
            if k is not None:
                key = read(at(k, k_strides, image, head, y + dy, x + dx, channel), mask)
            side = None
            if USE_QK or rel_k is not None:
                side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
            logit = _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH)
            seen = real & (there | (not MASK))
            pixel = plane.to(tl.int64) * 2 * area + y * width + x
            first, second = _pair(kept, pixel, area, real)
            pull, push = _pair(norms, pixel, area, real)
            weight = weigh(logit, seen, first, second, NORM, SIZE)
            to_logit = slope(to_weight, weight, seen, second, pull, push, NORM, SIZE)
            k_total += to_logit[:, None] * query
            q_total += to_logit[:, None] * key
            b_total += to_logit
    share = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    write_share(to_rel_k, share, k_total, channel, scale, DEPTH)
    write_share(to_rel_q, share, q_total, channel, scale, DEPTH)
    if to_bias is not None:
        tl.store(to_bias + share, tl.sum(b_total, 0))
