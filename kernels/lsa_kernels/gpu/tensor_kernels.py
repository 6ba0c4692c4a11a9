# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on neighborhoods by tensor cores, in Gluon: forward, queries and keys.

For a query i, its taps j, and whichever terms there are,

    L_ij = scale (q_i k_j + q_i r^k_ij + r^q_ij k_j) + b_ij
    w_i = norm(L_i)
    o_i = sum_j w_ij v_j.

With dw_ij = do_i v_j, and dL from it by the norm's slope,

    dq_i = scale sum_j dL_ij (k_j + r^k_ij)     dr^k_t = scale sum_i dL_it q_i
    dk_j = scale sum_i dL_ij (q_i + r^q_ij)     dr^q_t = scale sum_j dL_jt k_j
    dv_j = sum_i w_ij do_i                      db_t = sum_i dL_it.

A program walks ``walk`` tiles of an image's head (``halo`` says what a tile is, and the compact
form). Gradients of tables stay in its registers; torch adds up the programs' shares, so every sum
has one order. Factors of products are rounded to the maps' 16 bits, sums and norms are in float32.

``x`` is q, k, v (B, h, H, W, DEPTH), rel_k, rel_q (h, SIDE ** 2, DEPTH) and bias (h, SIDE ** 2);
q, k or a table may be None. ``steps`` of maps are in groups of 8 numbers, ``map_steps`` those of
the first three. ``kept`` and ``norms`` (B, h, 2, H, W) are two numbers a pixel: what the forward
found out (as in ``lsa_kernels.gpu.norms``), and what the norm takes off gradients of weights.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from lsa_kernels.gpu.compact import normalise, rate_of, slope, taken_off, two_numbers, weigh
from lsa_kernels.gpu.halo import (
    bias_of,
    compact_room,
    gathered_sum,
    logits,
    loose,
    met,
    of_halo,
    on_map,
    positions,
    products,
    put_bias_share,
    put_share,
    put_table,
    put_tile,
    start_copy,
    swizzled,
    tile_of,
    times,
)


@gluon.jit
def _work(heads, height, width, walk):
    """What a program works on.

    Returns an image, a head, height and width; the plane; the first tile, the end, and how many
    make a row; and the number of the program's share of the tables' gradients.
    """
    across = gl.cdiv(width, 8)
    tiles = gl.cdiv(height, 8) * across
    spans = gl.cdiv(tiles, walk)
    plane = gl.program_id(0) // spans
    span = gl.program_id(0) % spans
    first = span * walk
    share = span * (gl.num_programs(0) // spans) + plane
    where = (plane // heads, plane % heads, height, width)
    return where, plane, first, gl.minimum(first + walk, tiles), across, share


@gluon.jit
def _rooms(kind: gl.constexpr, WIDE: gl.constexpr):
    """Shared memory for two tiles, two halos and two tables."""
    tile = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    other_tile = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    halo = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    other_halo = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    table = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    other_table = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    return tile, other_tile, halo, other_halo, table, other_table


@gluon.jit
def _halo(plane, top, left, height, width):
    """Which of a halo's pixels are on the map, and where their numbers lie."""
    m = gl.arange(0, 256, loose(gl.num_warps()))
    row = top + m // 16
    column = left + m % 16
    pixel = plane.to(gl.int64) * 2 * height * width + row * width + column
    return on_map(row, column, height, width), pixel


@gluon.jit
def _hidden(plane, top, left, height, width, place, MASK: gl.constexpr):
    """What taps off the map add to logits, compact: minus infinity if the border is masked."""
    if MASK:
        there, _ = _halo(plane, top, left, height, width)
        found = of_halo(gl.where(there, 0.0, float("-inf")), place)
    else:
        found = 0.0
    return found


@gluon.jit
def forward_kernel(
    x, out, kept, map_steps, out_steps, heads, height, width, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, MASK: gl.constexpr, SIDE: gl.constexpr,
    DEPTH: gl.constexpr, WIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Output, and the two numbers a pixel that the backward needs, if ``kept`` is there."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    where, plane, begin, end, across, _ = _work(heads, height, width, walk)
    reach: gl.constexpr = SIDE // 2
    place = positions()
    queries, _, keys, values, by_query, by_key = _rooms(v.dtype.element_ty, WIDE)
    put_table(by_query, rel_k, where[1], SIDE, False, DEPTH, WIDE)
    put_table(by_key, rel_q, where[1], SIDE, False, DEPTH, WIDE)
    bias_row = bias_of(bias, where[1], SIDE, False)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        # No warp may still be reading the last tile.
        gl.barrier()
        start_copy(queries, q, map_steps[0], where, top, left, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(values, v, map_steps[2], where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = logits(
            queries, keys, by_query, by_key, bias_row, place, scale, USE_QK, rel_k is not None,
            rel_q is not None, PARTS,
        )  # fmt: skip
        logit += _hidden(plane, top - reach, left - reach, height, width, place, MASK)
        weight, first, second = normalise(logit, NORM, SIDE)
        async_copy.wait_group(0)
        gl.barrier()
        total = gathered_sum(weight, values, place)
        row, column, real, pixel = tile_of(plane, where, top, left, height, width)
        put_tile(out, out_steps, where, row, column, total, DEPTH, WIDE)
        if kept is not None:
            gl.store(kept + pixel, first, mask=real)
            gl.store(kept + height * width + pixel, second, mask=real)


@gluon.jit
def queries_kernel(
    x, to_out, kept, norms, to_q, to_rel_k, to_bias, map_steps, to_out_steps, to_q_steps,
    heads, height, width, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, MASK: gl.constexpr, SIDE: gl.constexpr,
    DEPTH: gl.constexpr, WIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Gradients of the queries, of rel_k and of the bias; and ``norms``, which the keys need."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    form: gl.constexpr = products(gl.num_warps())
    where, plane, begin, end, across, share = _work(heads, height, width, walk)
    reach: gl.constexpr = SIDE // 2
    place = positions()
    queries, grads, keys, values, by_query, by_key = _rooms(v.dtype.element_ty, WIDE)
    put_table(by_query, rel_k, where[1], SIDE, False, DEPTH, WIDE)
    put_table(by_key, rel_q, where[1], SIDE, False, DEPTH, WIDE)
    bias_row = bias_of(bias, where[1], SIDE, False)
    table_total = gl.zeros([64, WIDE], gl.float32, form)
    bias_total = gl.zeros([64, 64], gl.float32, form)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        gl.barrier()
        start_copy(queries, q, map_steps[0], where, top, left, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(grads, to_out, to_out_steps, where, top, left, 8, DEPTH, WIDE)
        start_copy(values, v, map_steps[2], where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = logits(
            queries, keys, by_query, by_key, bias_row, place, scale, USE_QK, rel_k is not None,
            rel_q is not None, PARTS,
        )  # fmt: skip
        logit += _hidden(plane, top - reach, left - reach, height, width, place, MASK)
        row, column, real, pixel = tile_of(plane, where, top, left, height, width)
        first, second = two_numbers(kept, pixel, height * width, real)
        rate = rate_of(second, NORM, SIDE)
        # Pixels off the map have no say, though their logits may be anything.
        seen = (logit != float("-inf")) & real[:, None]
        weight = weigh(logit, seen, first[:, None], rate[:, None], NORM)
        async_copy.wait_group(0)
        gl.barrier()
        to_weight = met(grads, values, place, PARTS, 256)
        pull, push = taken_off(to_weight, weight, seen, second, NORM, SIDE)
        gl.store(norms + pixel, pull, mask=real)
        gl.store(norms + height * width + pixel, push, mask=real)
        to_logit = slope(to_weight, weight, seen, rate[:, None], pull[:, None], push[:, None], NORM)
        bias_total += to_logit
        if to_q is not None:
            compact = compact_room(to_logit, queries)
            if USE_QK:
                total = gathered_sum(to_logit, keys, place)
            else:
                total = gl.zeros([64, WIDE], gl.float32, form)
            if rel_k is not None:
                total = times(compact, by_query, total)
                table_total = times(compact.permute((1, 0)), queries, table_total)
            put_tile(to_q, to_q_steps, where, row, column, total * scale, DEPTH, WIDE)
    put_share(to_rel_k, share, table_total * scale, SIDE, False, DEPTH, WIDE)
    put_bias_share(to_bias, share, bias_total, SIDE)


@gluon.jit
def keys_kernel(
    x, to_out, kept, norms, to_k, to_v, to_rel_q, map_steps, to_out_steps, to_k_steps, to_v_steps,
    heads, height, width, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, SIDE: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Gradients of keys, values and rel_q: what the queries whose taps they are send to them."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    form: gl.constexpr = products(gl.num_warps())
    where, plane, begin, end, across, share = _work(heads, height, width, walk)
    reach: gl.constexpr = SIDE // 2
    place = positions()
    keys, values, queries, grads, by_key, by_query = _rooms(v.dtype.element_ty, WIDE)
    put_table(by_query, rel_k, where[1], SIDE, True, DEPTH, WIDE)
    put_table(by_key, rel_q, where[1], SIDE, True, DEPTH, WIDE)
    bias_row = bias_of(bias, where[1], SIDE, True)
    table_total = gl.zeros([64, WIDE], gl.float32, form)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        gl.barrier()
        start_copy(keys, k, map_steps[1], where, top, left, 8, DEPTH, WIDE)
        start_copy(queries, q, map_steps[0], where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(values, v, map_steps[2], where, top, left, 8, DEPTH, WIDE)
        start_copy(grads, to_out, to_out_steps, where, top - reach, left - reach, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = logits(
            keys, queries, by_key, by_query, bias_row, place, scale, USE_QK, rel_q is not None,
            rel_k is not None, PARTS,
        )  # fmt: skip
        row, column, real, _ = tile_of(plane, where, top, left, height, width)
        there, pixel = _halo(plane, top - reach, left - reach, height, width)
        seen = (logit != float("-inf")) & real[:, None]
        # A query off the map sends nothing: its weights are 0, or its gradient of the output is.
        base = 0.0
        rate = 1.0
        pull = 0.0
        push = 0.0
        if NORM != "identity":
            first, second = two_numbers(kept, pixel, height * width, there)
            pull = of_halo(gl.load(norms + pixel, mask=there, other=0.0), place)
        if NORM == "softmax":
            base = of_halo(gl.where(there, first - gl.log(second), float("inf")), place)
        if NORM == "filter_norm":
            base = of_halo(first, place)
            rate = of_halo(gl.where(there, rate_of(second, NORM, SIDE), 0.0), place)
            numbers = gl.load(norms + height * width + pixel, mask=there, other=0.0)
            push = of_halo(numbers, place)
        weight = weigh(logit, seen, base, rate, NORM)
        async_copy.wait_group(0)
        gl.barrier()
        to_value = gathered_sum(weight, grads, place)
        put_tile(to_v, to_v_steps, where, row, column, to_value, DEPTH, WIDE)
        if to_k is not None:
            to_weight = met(values, grads, place, PARTS, 256)
            to_logit = slope(to_weight, weight, seen, rate, pull, push, NORM)
            compact = compact_room(to_logit, keys)
            if USE_QK:
                total = gathered_sum(to_logit, queries, place)
            else:
                total = gl.zeros([64, WIDE], gl.float32, form)
            if rel_q is not None:
                total = times(compact, by_key, total)
                table_total = times(compact.permute((1, 0)), keys, table_total)
            put_tile(to_k, to_k_steps, where, row, column, total * scale, DEPTH, WIDE)
    put_share(to_rel_q, share, table_total * scale, SIDE, True, DEPTH, WIDE)
