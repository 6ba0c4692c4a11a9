# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Eq. 4 on neighborhoods by tensor cores, in Gluon: forward, queries and keys.

For a query i, its taps j, and whichever terms there are,

    L_ij = scale (q_i k_j + q_i r^k_ij + r^q_ij k_j) + b_ij,   w_i = norm(L_i),   o_i = sum_j w_ij v_j.

With dw_ij = do_i v_j, and dL from it by the norm's slope,

    dq_i = scale sum_j dL_ij (k_j + r^k_ij)     dk_j = scale sum_i dL_ij (q_i + r^q_ij)
    dv_j = sum_i w_ij do_i                      dr^k_t = scale sum_i dL_it q_i
    db_t = sum_i dL_it                          dr^q_t = scale sum_j dL_jt k_j.

A program walks ``walk`` tiles of an image's head (``halo`` says what a tile is, and the compact
form). Gradients of tables stay in its registers; torch adds up the programs' shares, so every sum
has one order. Products are of 16-bit numbers, with float32 sums; norms are in float32.

Maps are (B, h, H, W, DEPTH) with steps in groups of 8 numbers; ``x`` is q, k, v, rel_k, rel_q and
bias, ``map_steps`` those of the first three. ``kept`` (B, h, 2, H, W) is as in ``norms``; so is
``norms`` itself, which the queries' kernel writes for the keys': what the norm takes off.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from lsa_kernels.gpu import norms as of_norms
from lsa_kernels.gpu.halo import (
    bias_of,
    compact_room,
    gathered_sum,
    known_taps,
    logits,
    loose,
    met,
    of_halo,
    on_map,
    positions,
    products,
    put_share,
    put_table,
    put_tile,
    start_copy,
    swizzled,
    table_rows,
    times,
)

GAIN = gl.constexpr(of_norms.GAIN.value)
EPSILON = gl.constexpr(of_norms.EPSILON.value)
filter_pull = gluon.jit(of_norms.filter_pull.fn)


@gluon.jit
def _work(heads, height, width, walk):
    """A program's plane, image, head, first tile, end, tiles of a row, and share of the tables."""
    across = gl.cdiv(width, 8)
    tiles = gl.cdiv(height, 8) * across
    spans = gl.cdiv(tiles, walk)
    plane = gl.program_id(0) // spans
    span = gl.program_id(0) % spans
    first = span * walk
    share = span * (gl.num_programs(0) // spans) + plane
    return plane, plane // heads, plane % heads, first, gl.minimum(first + walk, tiles), across, share


@gluon.jit
def _own(plane, top, left, height, width):
    """Rows and columns of a tile's pixels, which are on the map, and where their numbers lie."""
    n = gl.arange(0, 64, gl.SliceLayout(1, products(gl.num_warps())))
    y = top + n // 8
    x = left + n % 8
    pixel = plane.to(gl.int64) * 2 * height * width + y * width + x
    return y, x, on_map(y, x, height, width), pixel


@gluon.jit
def _around(plane, top, left, height, width, SIDE: gl.constexpr):
    """The same of its halo: which pixels are on the map, and where their numbers lie."""
    m = gl.arange(0, 256, loose(gl.num_warps()))
    y = top - SIDE // 2 + m // 16
    x = left - SIDE // 2 + m % 16
    pixel = plane.to(gl.int64) * 2 * height * width + y * width + x
    return on_map(y, x, height, width), pixel


@gluon.jit
def _weigh(logit, seen, first, rate, NORM: gl.constexpr):
    """Logits to weights."""
    if NORM == "softmax":
        weight = gl.exp(logit - first) * rate
    elif NORM == "filter_norm":
        weight = (logit - first) * rate
    else:
        weight = logit
    return gl.where(seen, weight, 0.0)


@gluon.jit
def _slope(to_weight, weight, seen, rate, pull, push, NORM: gl.constexpr):
    """Gradients of weights to gradients of logits."""
    if NORM == "softmax":
        found = weight * (to_weight - pull)
    elif NORM == "filter_norm":
        found = rate * (to_weight - push - pull * weight)
    else:
        found = to_weight
    return gl.where(seen, found, 0.0)


@gluon.jit
def _query_logits(
    queries, keys, by_query, by_key, bias_row, place, plane, top, left, height, width, scale,
    USE_QK: gl.constexpr, BY_QUERY: gl.constexpr, BY_KEY: gl.constexpr, MASK: gl.constexpr,
    SIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Logits of a tile of queries, minus infinity for taps that have no say."""
    found = logits(
        queries, keys, by_query, by_key, bias_row, place, scale, USE_QK, BY_QUERY, BY_KEY, PARTS
    )
    if MASK:
        there, _ = _around(plane, top, left, height, width, SIDE)
        found += of_halo(gl.where(there, 0.0, float("-inf")), place)
    return found


@gluon.jit
def forward_kernel(
    x, out, kept, map_steps, out_steps, heads, height, width, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, MASK: gl.constexpr, SIDE: gl.constexpr,
    DEPTH: gl.constexpr, WIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Output, and the two numbers a pixel that the backward needs, if ``kept`` is there."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    kind: gl.constexpr = v.dtype.element_ty
    form: gl.constexpr = products(gl.num_warps())
    plane, image, head, begin, end, across, _ = _work(heads, height, width, walk)
    place = positions()
    queries = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    keys = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    values = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    by_query = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    by_key = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    put_table(by_query, rel_k, head, SIDE, False, DEPTH, WIDE)
    put_table(by_key, rel_q, head, SIDE, False, DEPTH, WIDE)
    bias_row = bias_of(bias, head, SIDE, False)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        high = top - SIDE // 2
        low = left - SIDE // 2
        # What was read of the last tile is no longer needed by any warp.
        gl.barrier()
        start_copy(queries, q, map_steps[0], image, head, top, left, height, width, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(values, v, map_steps[2], image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = _query_logits(
            queries, keys, by_query, by_key, bias_row, place, plane, top, left, height, width,
            scale, USE_QK, rel_k is not None, rel_q is not None, MASK, SIDE, PARTS,
        )  # fmt: skip
        seen = logit != float("-inf")
        first = gl.zeros([64], gl.float32, gl.SliceLayout(1, form))
        second = gl.zeros([64], gl.float32, gl.SliceLayout(1, form))
        if NORM == "softmax":
            first = gl.max(logit, 1)
            weight = gl.exp(logit - first[:, None])
            second = 1.0 / gl.sum(weight, 1)
            weight *= second[:, None]
        elif NORM == "filter_norm":
            count = gl.sum(seen.to(gl.float32), 1)
            first = gl.sum(gl.where(seen, logit, 0.0), 1) / gl.maximum(count, 1.0)
            apart = gl.where(seen, logit - first[:, None], 0.0)
            squares = gl.sum(apart * apart, 1)
            second = gl.sqrt_rn(squares / gl.maximum(count - 1, 1.0)) + EPSILON
            weight = apart * (GAIN / SIDE / second)[:, None]
        else:
            weight = gl.where(seen, logit, 0.0)
        async_copy.wait_group(0)
        gl.barrier()
        total = gathered_sum(weight, values, place, gl.zeros([64, WIDE], gl.float32, form))
        y, z, real, pixel = _own(plane, top, left, height, width)
        put_tile(out, out_steps, image, head, y, z, real, total, DEPTH, WIDE)
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
    kind: gl.constexpr = v.dtype.element_ty
    form: gl.constexpr = products(gl.num_warps())
    plane, image, head, begin, end, across, share = _work(heads, height, width, walk)
    place = positions()
    queries = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    grads = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    keys = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    values = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    by_query = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    by_key = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    put_table(by_query, rel_k, head, SIDE, False, DEPTH, WIDE)
    put_table(by_key, rel_q, head, SIDE, False, DEPTH, WIDE)
    bias_row = bias_of(bias, head, SIDE, False)
    table_total = gl.zeros([64, WIDE], gl.float32, form)
    bias_total = gl.zeros([64, 64], gl.float32, form)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        high = top - SIDE // 2
        low = left - SIDE // 2
        gl.barrier()
        start_copy(queries, q, map_steps[0], image, head, top, left, height, width, 8, DEPTH, WIDE)
        start_copy(keys, k, map_steps[1], image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(grads, to_out, to_out_steps, image, head, top, left, height, width, 8, DEPTH, WIDE)
        start_copy(values, v, map_steps[2], image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = _query_logits(
            queries, keys, by_query, by_key, bias_row, place, plane, top, left, height, width,
            scale, USE_QK, rel_k is not None, rel_q is not None, MASK, SIDE, PARTS,
        )  # fmt: skip
        y, z, real, pixel = _own(plane, top, left, height, width)
        first = gl.load(kept + pixel, mask=real, other=0.0)
        rate = gl.load(kept + height * width + pixel, mask=real, other=1.0)
        second = rate
        if NORM == "filter_norm":
            rate = GAIN / SIDE / second
        # Pixels off the map have no say, though their logits may be anything.
        seen = (logit != float("-inf")) & real[:, None]
        weight = _weigh(logit, seen, first[:, None], rate[:, None], NORM)
        async_copy.wait_group(0)
        gl.barrier()
        to_weight = met(grads, values, place, PARTS)
        pull = gl.sum(weight * to_weight, 1)
        push = gl.zeros([64], gl.float32, gl.SliceLayout(1, form))
        if NORM == "filter_norm":
            count = gl.maximum(gl.sum(seen.to(gl.float32), 1), 1.0)
            push = gl.sum(gl.where(seen, to_weight, 0.0), 1) / count
            pull = filter_pull(pull, count, second, SIDE)
        gl.store(norms + pixel, pull, mask=real)
        gl.store(norms + height * width + pixel, push, mask=real)
        to_logit = _slope(
            to_weight, weight, seen, rate[:, None], pull[:, None], push[:, None], NORM
        )
        if to_bias is not None:
            bias_total += to_logit
        if to_q is not None:
            compact = compact_room(to_logit, queries)
            total = gl.zeros([64, WIDE], gl.float32, form)
            if rel_k is not None:
                total = times(compact, by_query, total)
                table_total = times(compact.permute((1, 0)), queries, table_total)
            if USE_QK:
                total = gathered_sum(to_logit, keys, place, total)
            put_tile(to_q, to_q_steps, image, head, y, z, real, total * scale, DEPTH, WIDE)
    if to_rel_k is not None:
        put_share(to_rel_k, share, table_total * scale, SIDE, False, DEPTH, WIDE)
    if to_bias is not None:
        t = gl.arange(0, 64, gl.SliceLayout(0, form))
        at = to_bias + share * (SIDE * SIDE) + table_rows(t, SIDE, False)
        gl.store(at, gl.sum(bias_total, 0), mask=known_taps(t, SIDE))


@gluon.jit
def keys_kernel(
    x, to_out, kept, norms, to_k, to_v, to_rel_q, map_steps, to_out_steps, to_k_steps, to_v_steps,
    heads, height, width, scale, walk,
    USE_QK: gl.constexpr, NORM: gl.constexpr, SIDE: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Gradients of keys, values and rel_q: what the queries whose taps they are send to them."""
    q, k, v, rel_k, rel_q, bias = x[0], x[1], x[2], x[3], x[4], x[5]
    kind: gl.constexpr = v.dtype.element_ty
    form: gl.constexpr = products(gl.num_warps())
    plane, image, head, begin, end, across, share = _work(heads, height, width, walk)
    place = positions()
    keys = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    values = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    queries = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    grads = gl.allocate_shared_memory(kind, [256, WIDE], swizzled(WIDE))
    by_query = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    by_key = gl.allocate_shared_memory(kind, [64, WIDE], swizzled(WIDE))
    put_table(by_query, rel_k, head, SIDE, True, DEPTH, WIDE)
    put_table(by_key, rel_q, head, SIDE, True, DEPTH, WIDE)
    bias_row = bias_of(bias, head, SIDE, True)
    table_total = gl.zeros([64, WIDE], gl.float32, form)
    for tile in range(begin, end):
        top = tile // across * 8
        left = tile % across * 8
        high = top - SIDE // 2
        low = left - SIDE // 2
        gl.barrier()
        start_copy(keys, k, map_steps[1], image, head, top, left, height, width, 8, DEPTH, WIDE)
        start_copy(queries, q, map_steps[0], image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        start_copy(values, v, map_steps[2], image, head, top, left, height, width, 8, DEPTH, WIDE)
        start_copy(grads, to_out, to_out_steps, image, head, high, low, height, width, 16, DEPTH, WIDE)
        async_copy.commit_group()
        async_copy.wait_group(1)
        gl.barrier()
        logit = logits(
            keys, queries, by_key, by_query, bias_row, place, scale, USE_QK, rel_q is not None,
            rel_k is not None, PARTS,
        )  # fmt: skip
        y, z, real, _ = _own(plane, top, left, height, width)
        there, pixel = _around(plane, top, left, height, width, SIDE)
        first = gl.load(kept + pixel, mask=there, other=float("inf"))
        second = gl.load(kept + height * width + pixel, mask=there, other=1.0)
        seen = (logit != float("-inf")) & real[:, None]
        # A query off the map sends nothing: its weights are 0, or its gradient of the output is.
        base = 0.0
        rate = 1.0
        pull = 0.0
        push = 0.0
        if NORM == "softmax":
            base = of_halo(first - gl.log(second), place)
        if NORM == "filter_norm":
            base = of_halo(gl.where(there, first, 0.0), place)
            rate = of_halo(gl.where(there, GAIN / SIDE / second, 0.0), place)
            numbers = gl.load(norms + height * width + pixel, mask=there, other=0.0)
            push = of_halo(numbers, place)
        if NORM != "identity":
            pull = of_halo(gl.load(norms + pixel, mask=there, other=0.0), place)
        weight = _weigh(logit, seen, base, rate, NORM)
        async_copy.wait_group(0)
        gl.barrier()
        to_value = gathered_sum(weight, grads, place, gl.zeros([64, WIDE], gl.float32, form))
        put_tile(to_v, to_v_steps, image, head, y, z, real, to_value, DEPTH, WIDE)
        if to_k is not None:
            to_weight = met(values, grads, place, PARTS)
            to_logit = _slope(to_weight, weight, seen, rate, pull, push, NORM)
            compact = compact_room(to_logit, keys)
            total = gl.zeros([64, WIDE], gl.float32, form)
            if rel_q is not None:
                total = times(compact, by_key, total)
                table_total = times(compact.permute((1, 0)), keys, table_total)
            if USE_QK:
                total = gathered_sum(to_logit, queries, place, total)
            put_tile(to_k, to_k_steps, image, head, y, z, real, total * scale, DEPTH, WIDE)
    if to_rel_q is not None:
        put_share(to_rel_q, share, table_total * scale, SIDE, True, DEPTH, WIDE)
