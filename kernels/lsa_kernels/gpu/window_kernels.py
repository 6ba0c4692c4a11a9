# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on shared windows of DOWN x ACROSS pixels, forward and backward.

A program holds a tile, ROWS * COLUMNS pixels of one window in a row, and walks the window's keys,
each of which is read once for the whole tile. Nothing of all pairs is stored; of the forward two
numbers a pixel are kept (``norms``). SIDE is that of a square as large as the window.

The backward is three kernels, each of which alone writes what it writes: queries, and two numbers
a pixel that turn gradients of weights into gradients of logits; keys and values; tables, a program
per offset.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lsa_kernels.gpu.norms import filter_pull, grow, slope, soften, spread, weigh
from lsa_kernels.gpu.tiles import at, read, write, write_share


@triton.jit
def _tile(heads, height, width, DOWN: tl.constexpr, ACROSS: tl.constexpr, LANES: tl.constexpr):
    """Plane (image and head), window of the image, and pixels of the window: some beyond it."""
    blocks: tl.constexpr = (DOWN * ACROSS + LANES - 1) // LANES
    windows = height // DOWN * (width // ACROSS)
    window = tl.program_id(0) // blocks
    lane = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    return window // windows, window % windows, lane


@triton.jit
def _corner(base, strides, image, head, window, width, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Address of a window's first pixel."""
    start = image.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    y = window // (width // ACROSS) * DOWN
    x = window % (width // ACROSS) * ACROSS
    return base + start + (y * strides[2] + x * strides[3])


@triton.jit
def _pixel(corner, strides, pixel, channel, ACROSS: tl.constexpr, DEPTH: tl.constexpr):
    """Numbers (1, channels) of one pixel of a window."""
    step = pixel // ACROSS * strides[2] + pixel % ACROSS * strides[3]
    return read(corner + step + channel, channel < DEPTH)[None, :]


@triton.jit
def _offset(i, j, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Place of pos(j) - pos(i) in a head's table."""
    dy = j // ACROSS - i // ACROSS + DOWN - 1
    return dy * (2 * ACROSS - 1) + (j % ACROSS - i % ACROSS + ACROSS - 1)


@triton.jit
def _seen(excluded, window, i, j, lane, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Which pairs have a say."""
    if excluded is None:
        seen = lane >= 0
    else:
        start = window.to(tl.int64) * (DOWN * ACROSS * DOWN * ACROSS)
        seen = tl.load(excluded + start + (i * (DOWN * ACROSS) + j)) == 0
    return seen


@triton.jit
def _rows(table, place, channel, DEPTH: tl.constexpr):
    """A table's entries, (places, channels)."""
    address = table + place[:, None] * DEPTH + channel[None, :]
    return read(address, (channel < DEPTH)[None, :])


@triton.jit
def _side(numbers, table, place, channel, USE_QK: tl.constexpr, DEPTH: tl.constexpr):
    """Keys plus r^k, which queries are multiplied with; or queries plus r^q, which keys are."""
    if table is None:
        side = numbers if USE_QK else tl.zeros_like(numbers)
    elif USE_QK:
        side = numbers + _rows(table, place, channel, DEPTH)
    else:
        side = _rows(table, place, channel, DEPTH)
    return side


@triton.jit
def _logit(numbers, side, others, table, bias, place, channel, scale, DEPTH: tl.constexpr):
    """Logits of pairs: numbers times their side, others times their table; ``place`` in it."""
    products = numbers * side
    if table is not None:
        products += others * _rows(table, place, channel, DEPTH)
    logit = tl.sum(products, 1) * scale
    if bias is not None:
        logit += tl.load(bias + place).to(tl.float32)
    return logit


@triton.jit
def _both(kept, pixel, area):
    """The two numbers that are kept of a pixel."""
    return tl.load(kept + pixel), tl.load(kept + area + pixel)


@triton.jit
def _meet(
    query, j, k_at, k_strides, rel_k, rel_q, bias, head, i, channel, scale, USE_QK: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits of the tile's queries with one key, and what the queries are multiplied with."""
    key = tl.zeros_like(channel).to(tl.float32)[None, :]
    if k_at is not None:
        key = _pixel(k_at, k_strides, j, channel, ACROSS, DEPTH)
    offsets: tl.constexpr = (2 * DOWN - 1) * (2 * ACROSS - 1)
    place = head * offsets + _offset(i, j, DOWN, ACROSS)
    side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
    return _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH), side


@triton.jit
def _mean_and_spread(
    query, k_at, k_strides, rel_k, rel_q, bias, excluded, window, head, i, lane, channel, scale,
    USE_QK: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Mean of every pixel's logits, and deviation plus epsilon, in one walk."""
    count = (lane * 0).to(tl.float32)
    mean = count
    squares = count
    for j in range(DOWN * ACROSS):
        logit, _ = _meet(
            query, j, k_at, k_strides, rel_k, rel_q, bias, head, i, channel, scale, USE_QK, DOWN,
            ACROSS, DEPTH,
        )  # fmt: skip
        seen = _seen(excluded, window, i, j, lane, DOWN, ACROSS)
        count, mean, squares = grow(logit, seen, count, mean, squares)
    return mean, spread(count, squares)


@triton.jit
def forward_kernel(
    q, k, v, rel_k, rel_q, bias, excluded, out, kept, q_strides, k_strides, v_strides, out_strides,
    heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Output of a tile of pixels, and the two numbers kept of each."""
    plane, window, lane = _tile(heads, height, width, DOWN, ACROSS, ROWS * COLUMNS)
    image, head = plane // heads, plane % heads
    # Lanes beyond the window do again what its last pixel does; nothing of theirs is stored.
    i = tl.minimum(lane, DOWN * ACROSS - 1)
    y = window // (width // ACROSS) * DOWN + i // ACROSS
    x = window % (width // ACROSS) * ACROSS + i % ACROSS
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    own = (lane < DOWN * ACROSS)[:, None] & known
    k_at = None if k is None else _corner(k, k_strides, image, head, window, width, DOWN, ACROSS)
    v_at = _corner(v, v_strides, image, head, window, width, DOWN, ACROSS)
    total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    query = total
    if q is not None:
        query = read(at(q, q_strides, image, head, y, x, channel), known)

    first = tl.full([ROWS * COLUMNS], float("-inf") if NORM == "softmax" else 0.0, tl.float32)
    second = tl.zeros([ROWS * COLUMNS], tl.float32)
    if NORM == "filter_norm":
        first, second = _mean_and_spread(
            query, k_at, k_strides, rel_k, rel_q, bias, excluded, window, head, i, lane, channel,
            scale, USE_QK, DOWN, ACROSS, DEPTH,
        )  # fmt: skip
    for j in range(DOWN * ACROSS):
        logit, _ = _meet(
            query, j, k_at, k_strides, rel_k, rel_q, bias, head, i, channel, scale, USE_QK, DOWN,
            ACROSS, DEPTH,
        )  # fmt: skip
        seen = _seen(excluded, window, i, j, lane, DOWN, ACROSS)
        if NORM == "softmax":
            first, second, fade, weight = soften(logit, seen, first, second)
            total = total * fade[:, None]
        else:
            weight = weigh(logit, seen, first, second, NORM, SIDE)
        total += weight[:, None] * _pixel(v_at, v_strides, j, channel, ACROSS, DEPTH)
    if NORM == "softmax":
        second = 1.0 / second
        total *= second[:, None]
    write(at(out, out_strides, image, head, y, x, channel), total, own)
    if kept is not None:
        area = height * width
        pixel = plane.to(tl.int64) * 2 * area + y * width + x
        tl.store(kept + pixel, first, mask=lane < DOWN * ACROSS)
        tl.store(kept + area + pixel, second, mask=lane < DOWN * ACROSS)


@triton.jit
def _pull_and_push(
    to_out, out, v_at, v_strides, excluded, window, i, lane, channel, second,
    NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """What the norm takes off the gradients of a pixel's weights: for the weight, and for all."""
    pull = tl.sum(to_out * out, 1)
    push = tl.zeros_like(pull)
    if NORM == "filter_norm":
        values = tl.zeros_like(out)
        count = tl.zeros_like(pull)
        for j in range(DOWN * ACROSS):
            seen = _seen(excluded, window, i, j, lane, DOWN, ACROSS)
            value = _pixel(v_at, v_strides, j, channel, ACROSS, DEPTH)
            values += tl.where(seen[:, None], value, 0.0)
            count += seen.to(tl.float32)
        push = tl.sum(to_out * values, 1) / count
        pull = filter_pull(pull, count, second, SIDE)
    return pull, push


@triton.jit
def queries_kernel(
    q, k, v, rel_k, rel_q, bias, excluded, out, to_out, kept, norms, to_q, q_strides, k_strides,
    v_strides, out_strides, to_out_strides, to_q_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; and ``norms``, what the other two kernels need of each pixel."""
    plane, window, lane = _tile(heads, height, width, DOWN, ACROSS, ROWS * COLUMNS)
    image, head = plane // heads, plane % heads
    i = tl.minimum(lane, DOWN * ACROSS - 1)
    y = window // (width // ACROSS) * DOWN + i // ACROSS
    x = window % (width // ACROSS) * ACROSS + i % ACROSS
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    real = lane < DOWN * ACROSS
    k_at = None if k is None else _corner(k, k_strides, image, head, window, width, DOWN, ACROSS)
    v_at = _corner(v, v_strides, image, head, window, width, DOWN, ACROSS)
    grad = read(at(to_out, to_out_strides, image, head, y, x, channel), known)
    result = read(at(out, out_strides, image, head, y, x, channel), known)
    area = height * width
    pixel = plane.to(tl.int64) * 2 * area + y * width + x
    first, second = _both(kept, pixel, area)
    pull, push = _pull_and_push(
        grad, result, v_at, v_strides, excluded, window, i, lane, channel, second, NORM, DOWN,
        ACROSS, SIDE, DEPTH,
    )  # fmt: skip
    tl.store(norms + pixel, pull, mask=real)
    tl.store(norms + area + pixel, push, mask=real)
    if to_q is not None:
        query = read(at(q, q_strides, image, head, y, x, channel), known)
        total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
        for j in range(DOWN * ACROSS):
            logit, side = _meet(
                query, j, k_at, k_strides, rel_k, rel_q, bias, head, i, channel, scale, USE_QK,
                DOWN, ACROSS, DEPTH,
            )  # fmt: skip
            seen = _seen(excluded, window, i, j, lane, DOWN, ACROSS)
            weight = weigh(logit, seen, first, second, NORM, SIDE)
            to_weight = tl.sum(grad * _pixel(v_at, v_strides, j, channel, ACROSS, DEPTH), 1)
            to_logit = slope(to_weight, weight, seen, second, pull, push, NORM, SIDE)
            total += to_logit[:, None] * side
        address = at(to_q, to_q_strides, image, head, y, x, channel)
        write(address, total * scale, real[:, None] & known)


@triton.jit
def keys_kernel(
    q, k, v, rel_k, rel_q, bias, excluded, to_out, kept, norms, to_k, to_v, q_strides, k_strides,
    v_strides, to_out_strides, to_k_strides, to_v_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: what the window's queries send to a tile of them."""
    plane, window, lane = _tile(heads, height, width, DOWN, ACROSS, ROWS * COLUMNS)
    image, head = plane // heads, plane % heads
    j = tl.minimum(lane, DOWN * ACROSS - 1)
    top = window // (width // ACROSS) * DOWN
    left = window % (width // ACROSS) * ACROSS
    y = top + j // ACROSS
    x = left + j % ACROSS
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    own = (lane < DOWN * ACROSS)[:, None] & known
    q_at = None if q is None else _corner(q, q_strides, image, head, window, width, DOWN, ACROSS)
    grad_at = _corner(to_out, to_out_strides, image, head, window, width, DOWN, ACROSS)
    value = read(at(v, v_strides, image, head, y, x, channel), known)
    key = tl.zeros_like(value)
    if k is not None:
        key = read(at(k, k_strides, image, head, y, x, channel), known)
    area = height * width
    corner = plane.to(tl.int64) * 2 * area + top * width + left
    offsets: tl.constexpr = (2 * DOWN - 1) * (2 * ACROSS - 1)
    key_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    value_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    for i in range(DOWN * ACROSS):
        query = tl.zeros_like(channel).to(tl.float32)[None, :]
        if q is not None:
            query = _pixel(q_at, q_strides, i, channel, ACROSS, DEPTH)
        grad = _pixel(grad_at, to_out_strides, i, channel, ACROSS, DEPTH)
        place = head * offsets + _offset(i, j, DOWN, ACROSS)
        side = _side(query, rel_q, place, channel, USE_QK, DEPTH)
        logit = _logit(key, side, query, rel_k, bias, place, channel, scale, DEPTH)
        seen = _seen(excluded, window, i, j, lane, DOWN, ACROSS)
        source = corner + i // ACROSS * width + i % ACROSS
        first, second = _both(kept, source, area)
        weight = weigh(logit, seen, first, second, NORM, SIDE)
        value_total += weight[:, None] * grad
        if to_k is not None:
            pull, push = _both(norms, source, area)
            to_weight = tl.sum(grad * value, 1)
            to_logit = slope(to_weight, weight, seen, second, pull, push, NORM, SIDE)
            key_total += to_logit[:, None] * side
    write(at(to_v, to_v_strides, image, head, y, x, channel), value_total, own)
    if to_k is not None:
        write(at(to_k, to_k_strides, image, head, y, x, channel), key_total * scale, own)


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
def tables_kernel(
    q, k, v, rel_k, rel_q, bias, excluded, to_out, kept, norms, to_rel_k, to_rel_q, to_bias,
    q_strides, k_strides, v_strides, to_out_strides, heads, height, width, scale, windows, together,
    USE_QK: tl.constexpr, NORM: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One offset's share of the tables' gradients: over ``together`` of a head's ``windows``."""
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
        y = window // (width // ACROSS) * DOWN + down
        x = window % (width // ACROSS) * ACROSS + right
        value = _apart(v, v_strides, image, head, y + dy, x + dx, channel, known)
        grad = _apart(to_out, to_out_strides, image, head, y, x, channel, known)
        to_weight = tl.sum(grad * value, 1)
        query = _apart(q, q_strides, image, head, y, x, channel, known)
        key = _apart(k, k_strides, image, head, y + dy, x + dx, channel, known)
        side = _side(key, rel_k, place, channel, USE_QK, DEPTH)
        logit = _logit(query, side, key, rel_q, bias, place, channel, scale, DEPTH)
        i = down * ACROSS + right
        seen = real & _seen(excluded, window, i, i + dy * ACROSS + dx, lane, DOWN, ACROSS)
        pixel = (image.to(tl.int64) * heads + head) * 2 * area + y * width + x
        first, second = _both(kept, pixel, area)
        pull, push = _both(norms, pixel, area)
        weight = weigh(logit, seen, first, second, NORM, SIDE)
        to_logit = slope(to_weight, weight, seen, second, pull, push, NORM, SIDE)
        k_total += to_logit[:, None] * query
        q_total += to_logit[:, None] * key
        b_total += to_logit
    share = tl.program_id(0).to(tl.int64)
    write_share(to_rel_k, share, k_total, channel, scale, DEPTH)
    write_share(to_rel_q, share, q_total, channel, scale, DEPTH)
    if to_bias is not None:
        tl.store(to_bias + share, tl.sum(b_total, 0))
