# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on areas of DOWN x ACROSS pixels, forward and backward.

An area is the neighborhood of every pixel, or with WINDOWS a window that its pixels share. A
program holds a tile of ROWS x COLUMNS pixels of one head of one image (with WINDOWS, as many of one
window in a row) and walks the area's keys; one of a window is read once for the whole tile. Nothing
of all pairs is stored; of the forward two numbers a pixel are kept (``norms``). SIDE is that of a
square as large as the area.

The backward is three kernels, each of which alone writes what it writes: queries, and two numbers
a pixel that turn gradients of weights into gradients of logits; keys and values, through the
transposed areas; tables (``table_kernels``).

``x`` is q, k, v, rel_k, rel_q, bias and excluded, ``map_strides`` those of the first three.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lsa_kernels.gpu.norms import filter_pull, grow, rate_of, slope, soften, spread, weigh
from lsa_kernels.gpu.tiles import at, inside, pixels, read, write


@triton.jit
def _tile(
    heads, height, width, WINDOWS: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    DEPTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a program works on: a plane, pixels of it, their areas, channels.

    Returns the plane, its image and head; the pixels' rows, columns, and whether they are real; the
    areas' first row and column, their window of the image, and the pixels' places in it; channels,
    which of them there are, and the same for real pixels alone.
    """
    if WINDOWS:
        blocks: tl.constexpr = (DOWN * ACROSS + ROWS * COLUMNS - 1) // (ROWS * COLUMNS)
        windows = height // DOWN * (width // ACROSS)
        plane = tl.program_id(0) // blocks // windows
        window = tl.program_id(0) // blocks % windows
        lane = tl.program_id(0) % blocks * (ROWS * COLUMNS) + tl.arange(0, ROWS * COLUMNS)
        real = lane < DOWN * ACROSS
        # Lanes beyond the window do again what its last pixel does; nothing of theirs is stored.
        own = tl.minimum(lane, DOWN * ACROSS - 1)
        top = tl.zeros([1], tl.int32) + window // (width // ACROSS) * DOWN
        left = tl.zeros([1], tl.int32) + window % (width // ACROSS) * ACROSS
        y = top + own // ACROSS
        x = left + own % ACROSS
    else:
        tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
        plane = tl.program_id(0) // tiles
        window = plane
        y, x, real = pixels(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
        own = y
        top = y - DOWN // 2
        left = x - ACROSS // 2
    channel = tl.arange(0, WIDE)
    known = (channel < DEPTH)[None, :]
    place = (plane, plane // heads, plane % heads)
    return place, (y, x, real), (top, left, window, own), channel, known, real[:, None] & known


@triton.jit
def included(excluded, window, i, j, PIXELS: tl.constexpr):
    """Which pairs of a window's pixels have a say."""
    start = window.to(tl.int64) * (PIXELS * PIXELS)
    return tl.load(excluded + start + (i * PIXELS + j)) == 0


@triton.jit
def _sight(
    excluded, area, i, j, step, height, width, MASK: tl.constexpr, WINDOWS: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Which pixels have a say in the pair (i, j); and whether their area's pixel is on the map."""
    top, left, window, own = area
    if WINDOWS:
        there = top >= 0
        seen = own >= 0
        if excluded is not None:
            seen = included(excluded, window, i, j, DOWN * ACROSS)
    else:
        there = inside(top + step // ACROSS, left + step % ACROSS, height, width)
        seen = there | (not MASK)
    return seen, there


@triton.jit
def _near(base, strides, step, mask, like, ACROSS: tl.constexpr):
    """Numbers of the areas' pixels; zero where the mask is off or nothing is read at all."""
    if base is None:
        found = tl.zeros_like(like)
    else:
        found = read(base + step // ACROSS * strides[2] + step % ACROSS * strides[3], mask)
    return found


@triton.jit
def _place(head, i, j, WINDOWS: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Places of key j in the tables: of pos(j) - pos(i) in a window, else j itself."""
    if WINDOWS:
        offsets: tl.constexpr = (2 * DOWN - 1) * (2 * ACROSS - 1)
        dy = j // ACROSS - i // ACROSS + DOWN - 1
        place = head * offsets + dy * (2 * ACROSS - 1) + (j % ACROSS - i % ACROSS + ACROSS - 1)
    else:
        place = tl.zeros([1], tl.int32) + (head * (DOWN * ACROSS) + j)
    return place


@triton.jit
def _rows(table, place, channel, DEPTH: tl.constexpr):
    """A table's entries, (places, channels)."""
    address = table + place[:, None] * DEPTH + channel[None, :]
    return read(address, (channel < DEPTH)[None, :])


@triton.jit
def logits(
    numbers, others, own, table, bias, place, channel, scale, USE_QK: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits of pairs, and what ``numbers`` are multiplied with: others plus their ``own`` table.

    That is keys plus r^k for queries, and queries plus r^q for keys; others times ``table`` is the
    third term.
    """
    side = others
    if own is not None:
        if USE_QK:
            side = others + _rows(own, place, channel, DEPTH)
        else:
            side = _rows(own, place, channel, DEPTH)
    products = tl.zeros_like(numbers)
    if USE_QK or own is not None:
        products += numbers * side
    if table is not None:
        products += others * _rows(table, place, channel, DEPTH)
    logit = tl.sum(products, 1) * scale
    if bias is not None:
        logit += tl.load(bias + place).to(tl.float32)
    return logit, side


@triton.jit
def pair(kept, pixel, plane, mask):
    """The two numbers that are kept of each pixel."""
    first = tl.load(kept + pixel, mask=mask, other=0.0)
    return first, tl.load(kept + plane + pixel, mask=mask, other=1.0)


@triton.jit
def _meet(
    query, x, base, strides, area, head, j, height, width, channel, scale, USE_QK: tl.constexpr,
    MASK: tl.constexpr, WINDOWS: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Queries with key j of their areas: logits, what they are multiplied with, and ``_sight``."""
    seen, there = _sight(
        x[6], area, area[3], j, j, height, width, MASK, WINDOWS, DOWN, ACROSS
    )  # fmt: skip
    mask = there[:, None] & (channel < DEPTH)[None, :]
    key = _near(base, strides, j, mask, query, ACROSS)
    place = _place(head, area[3], j, WINDOWS, DOWN, ACROSS)
    logit, side = logits(query, key, x[3], x[4], x[5], place, channel, scale, USE_QK, DEPTH)
    return logit, side, seen, mask


@triton.jit
def forward_kernel(
    x, out, kept, map_strides, out_strides, heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, WINDOWS: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Output of a tile of pixels, and the two numbers kept of each."""
    q, k, v = x[0], x[1], x[2]
    (plane, image, head), (row, column, real), area, channel, _known, own = _tile(
        heads, height, width, WINDOWS, DOWN, ACROSS, DEPTH, WIDE, ROWS, COLUMNS
    )
    k_at = None if k is None else at(k, map_strides[1], image, head, area[0], area[1], channel)
    v_at = at(v, map_strides[2], image, head, area[0], area[1], channel)
    total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    query = total
    if q is not None:
        query = read(at(q, map_strides[0], image, head, row, column, channel), own)

    first = tl.full([ROWS * COLUMNS], float("-inf") if NORM == "softmax" else 0.0, tl.float32)
    second = tl.zeros([ROWS * COLUMNS], tl.float32)
    if NORM == "filter_norm":
        # Mean of every pixel's logits, and deviation plus epsilon, in one walk (Welford's).
        count = second
        squares = second
        for j in range(DOWN * ACROSS):
            logit, _, seen, _ = _meet(
                query, x, k_at, map_strides[1], area, head, j, height, width, channel, scale,
                USE_QK, MASK, WINDOWS, DOWN, ACROSS, DEPTH,
            )  # fmt: skip
            count, first, squares = grow(logit, seen, count, first, squares)
        second = spread(count, squares)
    rate = rate_of(second, NORM, SIDE)
    for j in range(DOWN * ACROSS):
        logit, _, seen, mask = _meet(
            query, x, k_at, map_strides[1], area, head, j, height, width, channel, scale, USE_QK,
            MASK, WINDOWS, DOWN, ACROSS, DEPTH,
        )  # fmt: skip
        if NORM == "softmax":
            first, second, fade, weight = soften(logit, seen, first, second)
            total = total * fade[:, None]
        else:
            weight = weigh(logit, seen, first, rate, NORM)
        total += weight[:, None] * _near(v_at, map_strides[2], j, mask, query, ACROSS)
    if NORM == "softmax":
        second = 1.0 / second
        total *= second[:, None]
    write(at(out, out_strides, image, head, row, column, channel), total, own)
    if kept is not None:
        pixel = plane.to(tl.int64) * 2 * height * width + row * width + column
        tl.store(kept + pixel, first, mask=real)
        tl.store(kept + height * width + pixel, second, mask=real)


@triton.jit
def queries_kernel(
    x, out, to_out, kept, norms, to_q, map_strides, out_strides, to_out_strides, to_q_strides,
    heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr, WINDOWS: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; and ``norms``, what the other two kernels need of each pixel.

    That is what the norm takes off the gradients of its weights: for the weight, and for all.
    """
    q, k, v = x[0], x[1], x[2]
    (plane, image, head), (row, column, real), area, channel, known, own = _tile(
        heads, height, width, WINDOWS, DOWN, ACROSS, DEPTH, WIDE, ROWS, COLUMNS
    )
    k_at = None if k is None else at(k, map_strides[1], image, head, area[0], area[1], channel)
    v_at = at(v, map_strides[2], image, head, area[0], area[1], channel)
    grad = read(at(to_out, to_out_strides, image, head, row, column, channel), own)
    result = read(at(out, out_strides, image, head, row, column, channel), own)
    pixel = plane.to(tl.int64) * 2 * height * width + row * width + column
    first, second = pair(kept, pixel, height * width, real)
    pull = tl.sum(grad * result, 1)
    push = tl.zeros_like(pull)
    if NORM == "filter_norm":
        values = tl.zeros_like(result)
        count = tl.zeros_like(pull)
        for j in range(DOWN * ACROSS):
            seen, there = _sight(
                x[6], area, area[3], j, j, height, width, MASK, WINDOWS, DOWN, ACROSS
            )
            value = _near(v_at, map_strides[2], j, there[:, None] & known, result, ACROSS)
            values += tl.where(seen[:, None], value, 0.0)
            count += seen.to(tl.float32)
        push = tl.sum(grad * values, 1) / count
        pull = filter_pull(pull, count, second, SIDE)
    tl.store(norms + pixel, pull, mask=real)
    tl.store(norms + height * width + pixel, push, mask=real)
    if to_q is not None:
        query = read(at(q, map_strides[0], image, head, row, column, channel), own)
        total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
        rate = rate_of(second, NORM, SIDE)
        for j in range(DOWN * ACROSS):
            logit, side, seen, mask = _meet(
                query, x, k_at, map_strides[1], area, head, j, height, width, channel, scale,
                USE_QK, MASK, WINDOWS, DOWN, ACROSS, DEPTH,
            )  # fmt: skip
            weight = weigh(logit, seen, first, rate, NORM)
            to_weight = tl.sum(grad * _near(v_at, map_strides[2], j, mask, query, ACROSS), 1)
            to_logit = slope(to_weight, weight, seen, rate, pull, push, NORM)
            total += to_logit[:, None] * side
        write(at(to_q, to_q_strides, image, head, row, column, channel), total * scale, own)


@triton.jit
def keys_kernel(
    x, to_out, kept, norms, to_k, to_v, map_strides, to_out_strides, to_k_strides, to_v_strides,
    heads, height, width, scale,
    USE_QK: tl.constexpr, NORM: tl.constexpr, WINDOWS: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: what the queries of a pixel's area send to it."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    (plane, image, head), (row, column, _real), area, channel, known, own = _tile(
        heads, height, width, WINDOWS, DOWN, ACROSS, DEPTH, WIDE, ROWS, COLUMNS
    )
    q_at = None if q is None else at(q, map_strides[0], image, head, area[0], area[1], channel)
    grad_at = at(to_out, to_out_strides, image, head, area[0], area[1], channel)
    value = read(at(v, map_strides[2], image, head, row, column, channel), own)
    key = tl.zeros_like(value)
    if k is not None:
        key = read(at(k, map_strides[1], image, head, row, column, channel), own)
    corner = plane.to(tl.int64) * 2 * height * width + area[0] * width + area[1]
    key_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    value_total = tl.zeros([ROWS * COLUMNS, WIDE], tl.float32)
    for i in range(DOWN * ACROSS):
        # A pixel off the map asks nothing, whatever the border.
        seen, there = _sight(
            x[6], area, i, area[3], i, height, width, True, WINDOWS, DOWN, ACROSS
        )  # fmt: skip
        mask = there[:, None] & known
        query = _near(q_at, map_strides[0], i, mask, value, ACROSS)
        grad = _near(grad_at, to_out_strides, i, mask, value, ACROSS)
        # In a neighborhood the way back is the opposite tap.
        j = area[3] if WINDOWS else DOWN * ACROSS - 1 - i
        place = _place(head, i, j, WINDOWS, DOWN, ACROSS)
        logit, side = logits(key, query, rel_q, rel_k, bias, place, channel, scale, USE_QK, DEPTH)
        source = corner + i // ACROSS * width + i % ACROSS
        first, second = pair(kept, source, height * width, there)
        rate = rate_of(second, NORM, SIDE)
        weight = weigh(logit, seen, first, rate, NORM)
        value_total += weight[:, None] * grad
        if to_k is not None:
            pull, push = pair(norms, source, height * width, there)
            to_weight = tl.sum(grad * value, 1)
            to_logit = slope(to_weight, weight, seen, rate, pull, push, NORM)
            key_total += to_logit[:, None] * side
    write(at(to_v, to_v_strides, image, head, row, column, channel), value_total, own)
    if to_k is not None:
        write(at(to_k, to_k_strides, image, head, row, column, channel), key_total * scale, own)
