# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on windows by tensor cores, in Gluon: forward, and all gradients at once.

For pixels i and j of a SIDE x SIDE window, and whichever terms there are,

    L_ij = scale (q_i k_j + q_i r^k_o + r^q_o k_j) + b_o,   o = pos(j) - pos(i)
    w_i = norm(L_i)
    o_i = sum_j w_ij v_j.

With dw_ij = do_i v_j, and dL from it by the norm's slope,

    dq_i = scale sum_j dL_ij (k_j + r^k_o)     dr^k_o = scale sum_ij dL_ij q_i
    dk_j = scale sum_i dL_ij (q_i + r^q_o)     dr^q_o = scale sum_ij dL_ij k_j
    dv_j = sum_i w_ij do_i                     db_o = sum_ij dL_ij,

where sums over ij are over all pairs of that offset.

Pixels are padded to 8 x 8, n = 8 y + x, and meet each other as (n, m) directly. Offsets are the
tables' rows, padded as ``halo`` has it: ``positions`` finds a pair's row, which is another for
every m of the same n and for every n of the same m. So products with a table are gathered, and
gradients spread over a band, as those with a halo are: over (n, row) for r^k, (row, m) for r^q.

A program walks ``walk`` windows of a head, of all images. Gradients of tables stay in its
registers; torch adds up the programs' shares, so every sum has one order. Factors of products are
rounded to the maps' 16 bits, sums and norms are in float32.

``x`` is as in ``tensor_kernels``, with tables (h, (2 SIDE - 1) ** 2, DEPTH); ``excluded`` (windows
of an image, pixels, pixels) or None. ``kept`` is what ``lsa_kernels.gpu.norms`` says.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from lsa_kernels.gpu.compact import normalise, rate_of, slope, taken_off, two_numbers, weigh
from lsa_kernels.gpu.halo import (
    band_of,
    compact_room,
    known_taps,
    lines,
    loose,
    met,
    met_rows,
    of_halo,
    products,
    put_bias_share,
    put_share,
    put_table,
    put_tile,
    start_copy,
    step_of,
    sum_over,
    swizzled,
    table_rows,
    tile_of,
    times,
)


@gluon.constexpr_function
def used_rows(side):
    """Padded rows of a window's tables that products are made with, a multiple of 64."""
    rows = (2 * side - 1) * max(2 * side - 1, 8)
    return -(-rows // 64) * 64


@gluon.constexpr_function
def most_rows(side):
    """The same, a power of two, as arrays are."""
    return 1 << (used_rows(side) - 1).bit_length()


@gluon.jit
def positions(SIDE: gl.constexpr):
    """The padded row of every pair's offset, (n, m)."""
    form: gl.constexpr = products(gl.num_warps())
    step: gl.constexpr = step_of(2 * SIDE - 1)
    used: gl.constexpr = used_rows(SIDE)
    n = gl.arange(0, 64, gl.SliceLayout(1, form))
    m = gl.arange(0, 64, gl.SliceLayout(0, form))
    at_n = n // 8 * step + n % 8
    at_m = m // 8 * step + m % 8 + (SIDE - 1) * (step + 1)
    # Where n or m is padding, a row that no other pair of either has.
    return (at_m[None, :] - at_n[:, None] + used) % used


@gluon.jit
def _kept_room(numbers, kind: gl.constexpr):
    """Numbers of pairs (n, m) that stay from window to window, where they take no registers."""
    return gl.allocate_shared_memory(kind, [64, 64], swizzled(64), numbers.to(kind))


@gluon.jit
def _bias_of(bias, head, place, SIDE: gl.constexpr):
    """The bias of every pair (n, m), 0 without one; minus infinity where m is padding."""
    table: gl.constexpr = 2 * SIDE - 1
    m = gl.arange(0, 64, gl.SliceLayout(0, products(gl.num_warps())))
    found = gl.zeros([64, 64], gl.float32, products(gl.num_warps()))
    if bias is not None:
        t = gl.arange(0, most_rows(SIDE), loose(gl.num_warps()))
        row = head * (table * table) + table_rows(t, table, False)
        numbers = gl.load(bias + row, mask=known_taps(t, table), other=0.0).to(gl.float32)
        found = of_halo(numbers, place)
    return gl.where(known_taps(m, SIDE)[None, :], found, float("-inf"))


@gluon.jit
def _rooms(kind: gl.constexpr, SIDE: gl.constexpr, WIDE: gl.constexpr):
    """Shared memory for three maps of a window and two tables."""
    most: gl.constexpr = most_rows(SIDE)
    queries = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    keys = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    values = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    by_query = gl.allocate_shared_memory(kind, [most, WIDE], swizzled(WIDE))
    by_key = gl.allocate_shared_memory(kind, [most, WIDE], swizzled(WIDE))
    return queries, keys, values, by_query, by_key


@gluon.jit
def _work(heads, height, width, windows, walk, SIDE: gl.constexpr):
    """A program's head, its first window and the end, how many an image has, and how many a row."""
    head = gl.program_id(0) % heads
    first = gl.program_id(0) // heads * walk
    across = width // SIDE
    return head, first, gl.minimum(first + walk, windows), height // SIDE * across, across


@gluon.jit
def _window(window, heads, head, image_has, across, SIDE: gl.constexpr):
    """A window's plane, first row and column, number in its image, and ``where`` as elsewhere."""
    image = window // image_has
    inner = window % image_has
    top = inner // across * SIDE
    left = inner % across * SIDE
    return image * heads + head, top, left, inner, (image, head, top + SIDE, left + SIDE)


@gluon.jit
def _logits(
    queries, keys, by_query, by_key, biases, excluded, inner, place, scale, USE_QK: gl.constexpr,
    USE_RK: gl.constexpr, USE_RQ: gl.constexpr, SIDE: gl.constexpr,
):  # fmt: skip
    """Eq. 4's logits of all pairs (n, m), minus infinity where m is padding or excluded."""
    form: gl.constexpr = products(gl.num_warps())
    used: gl.constexpr = used_rows(SIDE)
    total = gl.zeros([64, 64], gl.float32, form)
    if USE_QK:
        total = times(queries, keys.permute((1, 0)), total)
    if USE_RK:
        total += met(queries, by_query, place, 1, used)
    if USE_RQ:
        total += met_rows(by_key, keys, place, 1, used)
    total = total * scale + biases.load(form)
    if excluded is not None:
        n = gl.arange(0, 64, gl.SliceLayout(1, form))
        m = gl.arange(0, 64, gl.SliceLayout(0, form))
        pixels: gl.constexpr = SIDE * SIDE
        pair = (n // 8 * SIDE + n % 8)[:, None] * pixels + (m // 8 * SIDE + m % 8)[None, :]
        real = known_taps(n, SIDE)[:, None] & known_taps(m, SIDE)[None, :]
        start = excluded + inner.to(gl.int64) * (pixels * pixels)
        total = gl.where(gl.load(start + pair, mask=real, other=0) == 0, total, float("-inf"))
    return total


@gluon.jit
def window_forward_kernel(
    x, excluded, out, kept, map_steps, out_steps, heads, height, width, windows, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, SIDE: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """Output, and the two numbers a pixel that the backward needs, if ``kept`` is there."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    table: gl.constexpr = 2 * SIDE - 1
    head, begin, end, image_has, across = _work(heads, height, width, windows, walk, SIDE)
    place = positions(SIDE)
    queries, keys, values, by_query, by_key = _rooms(v.dtype.element_ty, SIDE, WIDE)
    put_table(by_query, rel_k, head, table, False, DEPTH, WIDE)
    put_table(by_key, rel_q, head, table, False, DEPTH, WIDE)
    biases = _kept_room(_bias_of(bias, head, place, SIDE), gl.float32)
    for window in range(begin, end):
        plane, top, left, inner, where = _window(window, heads, head, image_has, across, SIDE)
        # No warp may still be reading the last window.
        gl.barrier()
        start_copy(queries, q, map_steps[0], where, top, left, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], where, top, left, 8, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(values, v, map_steps[2], where, top, left, 8, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = _logits(
            queries, keys, by_query, by_key, biases, excluded, inner, place, scale, USE_QK,
            rel_k is not None, rel_q is not None, SIDE,
        )  # fmt: skip
        weight, first, second = normalise(logit, NORM, SIDE)
        async_copy.wait_group(0)
        gl.barrier()
        total = gl.zeros([64, WIDE], gl.float32, products(gl.num_warps()))
        total = times(compact_room(weight, values), values, total)
        row, column, real, pixel = tile_of(plane, where, top, left, height, width)
        put_tile(out, out_steps, where, row, column, total, DEPTH, WIDE)
        if kept is not None:
            gl.store(kept + pixel, first, mask=real)
            gl.store(kept + height * width + pixel, second, mask=real)


@gluon.jit
def window_backward_kernel(
    x, excluded, to_out, kept, to_q, to_k, to_v, to_rel_k, to_rel_q, to_bias, map_steps,
    to_out_steps, to_q_steps, to_k_steps, to_v_steps, heads, height, width, windows, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, SIDE: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """Gradients of all maps, and the program's shares of the tables'."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    form: gl.constexpr = products(gl.num_warps())
    table: gl.constexpr = 2 * SIDE - 1
    used: gl.constexpr = used_rows(SIDE)
    most: gl.constexpr = most_rows(SIDE)
    head, begin, end, image_has, across = _work(heads, height, width, windows, walk, SIDE)
    place = positions(SIDE)
    places = _kept_room(place, gl.int16)
    queries, keys, values, by_query, by_key = _rooms(v.dtype.element_ty, SIDE, WIDE)
    grads = gl.allocate_shared_memory(v.dtype.element_ty, [64, WIDE], swizzled(WIDE))
    put_table(by_query, rel_k, head, table, False, DEPTH, WIDE)
    put_table(by_key, rel_q, head, table, False, DEPTH, WIDE)
    biases = _kept_room(_bias_of(bias, head, place, SIDE), gl.float32)
    rel_k_total = gl.zeros([most, WIDE], gl.float32, form)
    rel_q_total = gl.zeros([most, WIDE], gl.float32, form)
    bias_total = _kept_room(gl.zeros([64, 64], gl.float32, form), gl.float32)
    nothing = gl.zeros([64, WIDE], gl.float32, form)
    for window in range(begin, end):
        plane, top, left, inner, where = _window(window, heads, head, image_has, across, SIDE)
        gl.barrier()
        start_copy(queries, q, map_steps[0], where, top, left, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], where, top, left, 8, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(grads, to_out, to_out_steps, where, top, left, 8, DEPTH, WIDE)
        start_copy(values, v, map_steps[2], where, top, left, 8, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        place = places.load(form).to(gl.int32)
        logit = _logits(
            queries, keys, by_query, by_key, biases, excluded, inner, place, scale, USE_QK,
            rel_k is not None, rel_q is not None, SIDE,
        )  # fmt: skip
        row, column, real, pixel = tile_of(plane, where, top, left, height, width)
        first, second = two_numbers(kept, pixel, height * width, real)
        rate = rate_of(second, NORM, SIDE)
        # Padding has no say, though its logits may be anything.
        seen = (logit != float("-inf")) & real[:, None]
        weight = weigh(logit, seen, first[:, None], rate[:, None], NORM)
        async_copy.wait_group(0)
        gl.barrier()
        weights = compact_room(weight, values)
        zeros = gl.zeros([64, 64], gl.float32, form)
        to_weight = times(grads, values.permute((1, 0)), zeros)
        pull, push = taken_off(to_weight, weight, seen, second, NORM, SIDE)
        to_logit = slope(to_weight, weight, seen, rate[:, None], pull[:, None], push[:, None], NORM)
        if to_bias is not None:
            bias_total.store(bias_total.load(form) + to_logit)
        compact = compact_room(to_logit, values)
        to_value = times(weights.permute((1, 0)), grads, nothing)
        put_tile(to_v, to_v_steps, where, row, column, to_value, DEPTH, WIDE)
        if to_q is not None:
            total = nothing
            if USE_QK:
                total = times(compact, keys, total)
            if rel_k is not None:
                band = band_of(to_logit, by_query, place)
                total = sum_over(band, by_query, total, used)
                rel_k_total = times(band.permute((1, 0)), queries, rel_k_total)
            put_tile(to_q, to_q_steps, where, row, column, total * scale, DEPTH, WIDE)
        if to_k is not None:
            total = nothing
            if USE_QK:
                total = times(compact.permute((1, 0)), queries, total)
            if rel_q is not None:
                band = _band_down(to_logit, by_key, place)
                total = sum_over(band.permute((1, 0)), by_key, total, used)
                rel_q_total = times(band, keys, rel_q_total)
            put_tile(to_k, to_k_steps, where, row, column, total * scale, DEPTH, WIDE)
    share = gl.program_id(0)
    put_share(to_rel_k, share, rel_k_total * scale, table, False, DEPTH, WIDE)
    put_share(to_rel_q, share, rel_q_total * scale, table, False, DEPTH, WIDE)
    _put_bias_share(to_bias, share, bias_total.load(form), positions(SIDE), SIDE)


@gluon.jit
def _band_down(numbers, rows, place):
    """Numbers (n, m) spread over (row, m), in shared memory and of the type of ``rows``."""
    most: gl.constexpr = rows.shape[0]
    band = gl.allocate_shared_memory(rows.dtype, [most, 64], swizzled(64))
    band.store(gl.zeros([most, 64], rows.dtype, lines(64, gl.num_warps())))
    band.scatter(numbers.to(rows.dtype), place, 0)
    return band


@gluon.jit
def _put_bias_share(to_bias, share, numbers, place, SIDE: gl.constexpr):
    """As ``put_bias_share``, of numbers of pairs (n, m)."""
    if to_bias is not None:
        form: gl.constexpr = products(gl.num_warps())
        most: gl.constexpr = most_rows(SIDE)
        room = gl.allocate_shared_memory(gl.float32, [64, most], swizzled(most))
        room.store(gl.zeros([64, most], gl.float32, form))
        room.scatter(numbers, place, 1)
        put_bias_share(to_bias, share, room.load(form), 2 * SIDE - 1)
