# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""What the tensor-core kernels share: tiles, their halos, and the compact form.

A tile is 8 x 8 pixels, n = 8 y + x. What it meets lies in its halo, 16 x 16 pixels of which the
first SIDE // 2 rows and columns lie before the tile: m = 16 y + x. Taps are padded to 8 x 8 too,
t = 8 dy + dx, so that SIDE may be 3, 5 or 7, and pixel n finds its tap t at

    place[n, t] = 16 (n // 8 + t // 8) + n % 8 + t % 8,

never outside the halo, and never twice for the same n. Matrix products give numbers of all pairs
(n, m) or (m, t); the *compact* form (n, t) is gathered from them in shared memory by ``place``, and
spread back over a *band* (n, m) that is zero elsewhere. ``WIDE`` are a head's channels, padded.

In ``keys_kernel`` the tile holds keys and the halo queries. A key meets them by the opposite taps,
so there tables are read and written with their taps turned round (``TURNED``).

A window is a tile whose pixels meet each other; what lies around it like a halo are the rows of its
tables, one for each offset (``window_tensor_kernels``). Tables of either area are square, and their
rows padded by the same rule: row (y, x) of a SIDE x SIDE table is t = max(SIDE, 8) y + x.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2


@gluon.constexpr_function
def products(warps):
    """How threads hold a product of matrices, and everything in the compact form."""
    return gl.NVMMADistributedLayout([2, 0], [4, warps // 4], [16, 8])


@gluon.constexpr_function
def factor(side, warps):
    """How threads hold the left (0) or right (1) factor of such a product."""
    return gl.DotOperandLayout(side, products(warps), 2)


@gluon.constexpr_function
def lines(wide, warps):
    """How threads copy pixels of so many channels: 16 bytes each."""
    return gl.BlockedLayout([1, 8], [256 // wide, wide // 8], [warps, 1], [1, 0])


@gluon.constexpr_function
def swizzled(wide):
    """How pixels of so many channels lie in shared memory, for products to read without clashes."""
    return gl.SwizzledSharedLayout(8, max(64 // wide, 1), min(wide // 8, 8), [1, 0])


@gluon.constexpr_function
def padded(columns):
    """How float32 numbers (64, columns) lie in shared memory, for gathers along rows."""
    return gl.PaddedSharedLayout.with_identity_for([[columns, 8]], [64, columns], [1, 0])


@gluon.constexpr_function
def in_line():
    """How one number a pixel of the halo lies in shared memory."""
    return gl.SwizzledSharedLayout(1, 1, 1, [0])


@gluon.constexpr_function
def loose(warps):
    """How threads hold one number a pixel of the halo."""
    return gl.BlockedLayout([1], [32], [warps], [0])


@gluon.jit
def positions():
    """Where (n, t) is found in the halo: ``place`` as above."""
    form: gl.constexpr = products(gl.num_warps())
    n = gl.arange(0, 64, gl.SliceLayout(1, form))
    t = gl.arange(0, 64, gl.SliceLayout(0, form))
    return (n // 8 * 16 + n % 8)[:, None] + (t // 8 * 16 + t % 8)[None, :]


@gluon.constexpr_function
def pieces(pairs, left):
    """Pieces of 64 that are left of so many pairs."""
    return min(pairs, left) // 64


@gluon.constexpr_function
def step_of(side):
    """How far apart the padded rows of a table's rows are."""
    return max(side, 8)


@gluon.jit
def known_taps(t, SIDE: gl.constexpr):
    """Which of the padded taps there are."""
    step: gl.constexpr = step_of(SIDE)
    return (t // step < SIDE) & (t % step < SIDE)


@gluon.jit
def table_rows(t, SIDE: gl.constexpr, TURNED: gl.constexpr):
    """Rows of the padded taps in a table."""
    step: gl.constexpr = step_of(SIDE)
    row = t // step * SIDE + t % step
    if TURNED:
        row = SIDE * SIDE - 1 - row
    return row


@gluon.jit
def on_map(y, x, height, width):
    """Which pixels are on the map."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@gluon.jit
def tile_of(plane, where, top, left, height, width):
    """Rows and columns of a tile's pixels, which there are, and where their numbers lie.

    ``where`` is as in ``start_copy``, ``height`` and ``width`` are the map's.
    """
    n = gl.arange(0, 64, gl.SliceLayout(1, products(gl.num_warps())))
    row = top + n // 8
    column = left + n % 8
    pixel = plane.to(gl.int64) * 2 * height * width + row * width + column
    return row, column, on_map(row, column, where[2], where[3]), pixel


@gluon.jit
def plane_of(base, steps, image, head):
    """An image's head in a map. 64 bits: a batch may hold more numbers than 32 can count."""
    return base + image.to(gl.int64) * steps[0] * 8 + head.to(gl.int64) * steps[1] * 8


@gluon.jit
def start_copy(
    room, base, steps, where, top, left, BROAD: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """Start to copy BROAD x BROAD pixels of a map, if it is there, into a room (pixels, WIDE).

    The first pixel is (top, left). ``where`` is an image, a head, and the row and column at which
    the map or window ends; what is not before them becomes zero.
    """
    if base is not None:
        form: gl.constexpr = lines(WIDE, gl.num_warps())
        pixel = gl.arange(0, BROAD * BROAD, gl.SliceLayout(1, form))
        channel = gl.arange(0, WIDE, gl.SliceLayout(0, form))
        y = top + pixel // BROAD
        x = left + pixel % BROAD
        place = y * (steps[2] * 8) + x * (steps[3] * 8)
        address = plane_of(base, steps, where[0], where[1]) + place[:, None] + channel[None, :]
        mask = on_map(y, x, where[2], where[3])[:, None] & (channel < DEPTH)[None, :]
        async_copy.async_load(room, address, mask)


@gluon.jit
def put_table(
    room, table, head, SIDE: gl.constexpr, TURNED: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """Fill a room (taps, WIDE) with a head's table, if it is there: zero for taps that are not."""
    if table is not None:
        form: gl.constexpr = lines(WIDE, gl.num_warps())
        t = gl.arange(0, room.shape[0], gl.SliceLayout(1, form))
        channel = gl.arange(0, WIDE, gl.SliceLayout(0, form))
        row = head * (SIDE * SIDE) + table_rows(t, SIDE, TURNED)
        mask = known_taps(t, SIDE)[:, None] & (channel < DEPTH)[None, :]
        numbers = gl.load(table + row[:, None] * DEPTH + channel[None, :], mask=mask, other=0.0)
        room.store(numbers.to(room.dtype))


@gluon.jit
def bias_of(bias, head, SIDE: gl.constexpr, TURNED: gl.constexpr):
    """The bias of every tap (64,), 0 without one; minus infinity for taps that are not."""
    t = gl.arange(0, 64, gl.SliceLayout(0, products(gl.num_warps())))
    real = known_taps(t, SIDE)
    if bias is None:
        found = gl.where(real, 0.0, float("-inf"))
    else:
        row = head * (SIDE * SIDE) + table_rows(t, SIDE, TURNED)
        found = gl.load(bias + row, mask=real, other=float("-inf")).to(gl.float32)
    return found


@gluon.jit
def times(left, right, total):
    """``total`` plus the product of two matrices in shared memory."""
    warps: gl.constexpr = gl.num_warps()
    return mma_v2(left.load(factor(0, warps)), right.load(factor(1, warps)), total)


@gluon.jit
def met(tile, halo, place, PARTS: gl.constexpr, USED: gl.constexpr):
    """Products of every pixel with what it meets, compact: tile (64, WIDE), halo (most, WIDE).

    The first USED of the halo's rows are met. All pairs lie in shared memory, a share of 1 / PARTS
    at a time.
    """
    warps: gl.constexpr = gl.num_warps()
    form: gl.constexpr = products(warps)
    pairs: gl.constexpr = halo.shape[0] // PARTS
    room = gl.allocate_shared_memory(gl.float32, [64, pairs], padded(pairs))
    left = tile.load(factor(0, warps))
    found = gl.zeros([64, 64], gl.float32, form)
    for part in gl.static_range(PARTS):
        for chunk in gl.static_range(pieces(pairs, USED - pairs * part)):
            right = halo.slice(pairs * part + 64 * chunk, 64).permute((1, 0)).load(factor(1, warps))
            product = mma_v2(left, right, gl.zeros([64, 64], gl.float32, form))
            room.slice(64 * chunk, 64, dim=1).store(product)
        if PARTS == 1:
            found = room.gather(place, 1)
        else:
            found = gl.where(place // pairs == part, room.gather(place % pairs, 1), found)
    return found


@gluon.jit
def met_rows(halo, table, place, PARTS: gl.constexpr, USED: gl.constexpr):
    """Products of what every pixel meets with the tap's row of a table (64, WIDE), compact."""
    warps: gl.constexpr = gl.num_warps()
    form: gl.constexpr = products(warps)
    pairs: gl.constexpr = halo.shape[0] // PARTS
    room = gl.allocate_shared_memory(gl.float32, [pairs, 64], swizzled(64))
    right = table.permute((1, 0)).load(factor(1, warps))
    found = gl.zeros([64, 64], gl.float32, form)
    for part in gl.static_range(PARTS):
        for chunk in gl.static_range(pieces(pairs, USED - pairs * part)):
            left = halo.slice(pairs * part + 64 * chunk, 64).load(factor(0, warps))
            product = mma_v2(left, right, gl.zeros([64, 64], gl.float32, form))
            room.slice(64 * chunk, 64, dim=0).store(product)
        if PARTS == 1:
            found = room.gather(place, 0)
        else:
            found = gl.where(place // pairs == part, room.gather(place % pairs, 0), found)
    return found


@gluon.jit
def logits(
    tile, halo, tile_table, halo_table, bias, place, scale, USE_QK: gl.constexpr,
    BY_TILE: gl.constexpr, BY_HALO: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Eq. 4's logits, compact: scale (tile . halo + tile . row + row . halo) + bias.

    Args:
        tile, tile_table: shared (64, WIDE), and the table whose rows the tile is multiplied with,
            BY_TILE if there is one. halo, halo_table: likewise, (256, WIDE) and BY_HALO.
        bias: as ``bias_of`` gives it.
    """
    total = gl.zeros([64, 64], gl.float32, products(gl.num_warps()))
    if BY_TILE:
        total = times(tile, tile_table.permute((1, 0)), total)
    if USE_QK:
        total += met(tile, halo, place, PARTS, 256)
    if BY_HALO:
        total += met_rows(halo, halo_table, place, PARTS, 256)
    return total * scale + bias[None, :]


@gluon.jit
def of_halo(numbers, place):
    """One number a pixel of the halo (most,), compact."""
    room = gl.allocate_shared_memory(gl.float32, [numbers.shape[0]], in_line(), numbers)
    found = room.gather(gl.reshape(place, [4096]), 0)
    return gl.convert_layout(gl.reshape(found, [64, 64]), products(gl.num_warps()))


@gluon.jit
def gathered_sum(weights, halo, place):
    """Every pixel's sum of what it meets (256, WIDE), by compact weights: (64, WIDE).

    The band is 0 where a pixel does not reach; what is not finite there spreads to the whole tile.
    """
    total = gl.zeros([64, halo.shape[1]], gl.float32, products(gl.num_warps()))
    return sum_over(band_of(weights, halo, place), halo, total, 256)


@gluon.jit
def band_of(numbers, halo, place):
    """Compact numbers spread over a band (64, most), in shared memory and of the halo's type."""
    most: gl.constexpr = halo.shape[0]
    band = gl.allocate_shared_memory(halo.dtype, [64, most], swizzled(most))
    band.store(gl.zeros([64, most], halo.dtype, lines(most, gl.num_warps())))
    band.scatter(numbers.to(halo.dtype), place, 1)
    return band


@gluon.jit
def sum_over(band, halo, total, USED: gl.constexpr):
    """``total`` plus the product of a band with the first USED of a halo's rows."""
    for part in gl.static_range(USED // 64):
        total = times(band.slice(64 * part, 64, dim=1), halo.slice(64 * part, 64), total)
    return total


@gluon.jit
def compact_room(numbers, like):
    """Compact numbers (n, t) in shared memory, rounded to the type of ``like``."""
    return gl.allocate_shared_memory(like.dtype, [64, 64], swizzled(64), numbers.to(like.dtype))


@gluon.jit
def put_tile(base, steps, where, y, x, numbers, DEPTH: gl.constexpr, WIDE: gl.constexpr):
    """Write a tile's numbers (64, WIDE) to its pixels, as far as they are on the map."""
    channel = gl.arange(0, WIDE, gl.SliceLayout(0, products(gl.num_warps())))
    pixel = y * (steps[2] * 8) + x * (steps[3] * 8)
    address = plane_of(base, steps, where[0], where[1]) + pixel[:, None] + channel[None, :]
    mask = on_map(y, x, where[2], where[3])[:, None] & (channel < DEPTH)[None, :]
    gl.store(address, numbers.to(base.dtype.element_ty), mask=mask)


@gluon.jit
def put_share(
    to_table, share, numbers, SIDE: gl.constexpr, TURNED: gl.constexpr, DEPTH: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """Write a program's share (taps, WIDE) of a table's gradient, if it is asked for."""
    if to_table is not None:
        form: gl.constexpr = products(gl.num_warps())
        t = gl.arange(0, numbers.shape[0], gl.SliceLayout(1, form))
        channel = gl.arange(0, WIDE, gl.SliceLayout(0, form))
        row = share.to(gl.int64) * (SIDE * SIDE) + table_rows(t, SIDE, TURNED)
        mask = known_taps(t, SIDE)[:, None] & (channel < DEPTH)[None, :]
        gl.store(to_table + row[:, None] * DEPTH + channel[None, :], numbers, mask=mask)


@gluon.jit
def put_bias_share(to_bias, share, numbers, SIDE: gl.constexpr):
    """Write a program's share of the bias's gradient, if it is asked for: sums of (64, taps)."""
    if to_bias is not None:
        t = gl.arange(0, numbers.shape[1], gl.SliceLayout(0, products(gl.num_warps())))
        row = share.to(gl.int64) * (SIDE * SIDE) + table_rows(t, SIDE, False)
        gl.store(to_bias + row, gl.sum(numbers, 0), mask=known_taps(t, SIDE))
