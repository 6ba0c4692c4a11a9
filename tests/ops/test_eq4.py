"""Eq. 4 against loops in NumPy that share no code with it, for every toggle."""

import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsa_study.ops import DwConv, UnifiedSpatialOp
from lsa_study.ops.functional import filter_norm, spatial_attention

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
NORMS = ("identity", "filter_norm", "softmax")


def norm_by_hand(logits, kind, size):
    """Weights of one query from the logits of the taps that count."""
    logits = np.array(logits)
    if kind == "identity":
        return logits
    if kind == "softmax":
        e = np.exp(logits - logits.max())
        return e / e.sum()
    n = len(logits)
    mean = sum(logits) / n
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logits) / (n - 1)) if n > 1 else 0.0
    return math.sqrt(2) / size * (logits - mean) / (deviation + 1e-10)


def by_hand(q, k, v, rk, rq, rb, terms, norm, seen, size, index, scale):
    """Read the definition aloud: every query walks over the places that ``seen`` lists for it.

    ``seen(y, x)`` gives (yy, xx, inside) per tap; ``index(dy, dx)`` the row of the tables.
    """
    out = np.zeros_like(v)
    batch, heads, height, width, _ = v.shape
    for b, h, y, x in np.ndindex(batch, heads, height, width):
        places, logits = list(seen(y, x)), []
        for yy, xx, dy, dx, inside in places:
            key = k[b, h, yy, xx] if inside else np.zeros(v.shape[-1])
            t, query = index(dy, dx), q[b, h, y, x]
            logits.append(
                scale * (query @ key) * ("qk" in terms)
                + scale * (query @ rk[h, t]) * ("q_rk" in terms)
                + scale * (rq[h, t] @ key) * ("rq_k" in terms)
                + rb[h, t] * ("bias" in terms)
            )
        weights = norm_by_hand(logits, norm, size)
        for (yy, xx, _, _, inside), weight in zip(places, weights, strict=True):
            if inside:
                out[b, h, y, x] += weight * v[b, h, yy, xx]
    return out


def neighborhood(height, width, size, border):
    reach = size // 2

    def seen(y, x):
        for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
            yy, xx = y + dy, x + dx
            inside = 0 <= yy < height and 0 <= xx < width
            if inside or border == "zero":
                yield yy, xx, dy, dx, inside

    return seen, lambda dy, dx: (dy + reach) * size + dx + reach


def tiles(height, width, size, shift):
    """Windows of the rolled map; a pair counts if it is as far apart after the roll as before."""

    def seen(y, x):
        ry, rx = (y - shift) % height, (x - shift) % width
        top, left = ry - ry % size, rx - rx % size
        for ty, tx in itertools.product(range(top, top + size), range(left, left + size)):
            yy, xx = (ty + shift) % height, (tx + shift) % width
            if (yy - y, xx - x) == (ty - ry, tx - rx):
                yield yy, xx, yy - y, xx - x, True

    return seen, lambda dy, dx: (dy + size - 1) * (2 * size - 1) + dx + size - 1


def number(*words):
    """The same seed for the same case in every process, other than ``hash``."""
    return zlib.crc32(repr(words).encode())


def make(seed, heads, height, width, depth, offsets, batch=1):
    draw = np.random.default_rng(seed)
    maps = [draw.normal(size=(batch, heads, height, width, depth)) for _ in range(3)]
    tables = [draw.normal(size=(heads, offsets, depth)) for _ in range(2)]
    return *maps, *tables, draw.normal(size=(heads, offsets))


def ours(arrays, terms, norm, **area):
    q, k, v, rk, rq, rb = (torch.from_numpy(a) for a in arrays)
    return spatial_attention(
        q if {"qk", "q_rk"} & set(terms) else None,
        k if {"qk", "rq_k"} & set(terms) else None,
        v,
        rel_k=rk if "q_rk" in terms else None,
        rel_q=rq if "rq_k" in terms else None,
        rel_bias=rb if "bias" in terms else None,
        use_qk="qk" in terms,
        norm=norm,
        **area,
    ).numpy()


# Odd sizes, height != width, areas larger than the map: a swapped axis or a wrong border survives
# a square 8 x 8 test but not these.
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("terms", SETS, ids="+".join)
@pytest.mark.parametrize(
    ("height", "width", "size", "border"),
    [(5, 4, 3, "zero"), (4, 5, 3, "mask"), (2, 3, 5, "zero"), (3, 2, 7, "mask")],
)
def test_neighborhoods(terms, norm, height, width, size, border):
    arrays = make(number(terms, norm, size), 2, height, width, 3, size**2)
    seen, index = neighborhood(height, width, size, border)
    want = by_hand(*arrays, terms, norm, seen, size, index, 3**-0.5)
    for way in ("auto", "reference", "unfold", *(["sdc"] if border == "mask" else [])):
        got = ours(
            arrays, terms, norm, application="neighboring", size=size, border=border,
            implementation=way,
        )  # fmt: skip
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10, err_msg=way)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("terms", SETS, ids="+".join)
@pytest.mark.parametrize(
    ("height", "width", "size", "shift"),
    [(4, 6, 2, 0), (6, 9, 3, 1), (8, 4, 4, 3), (3, 3, 3, 2)],
)
def test_windows(terms, norm, height, width, size, shift):
    arrays = make(number(terms, norm, size), 2, height, width, 3, (2 * size - 1) ** 2)
    seen, index = tiles(height, width, size, shift)
    want = by_hand(*arrays, terms, norm, seen, size, index, 3**-0.5)
    for way in ("auto", "reference"):
        got = ours(
            arrays, terms, norm, application="window", size=size, shift=shift, implementation=way
        )
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10, err_msg=way)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "area",
    [
        {"application": "window", "size": 2, "shift": 1},
        {"application": "neighboring", "size": 3, "border": "zero"},
        {"application": "neighboring", "size": 3, "border": "mask"},
        {"application": "neighboring", "size": 3, "border": "zero", "implementation": "unfold"},
        {"application": "neighboring", "size": 3, "border": "zero", "implementation": "reference"},
    ],
    ids=lambda a: "-".join(map(str, a.values())),
)
def test_gradients_match_finite_differences(norm, area):
    leaves = [torch.from_numpy(a).requires_grad_() for a in make(5, 2, 4, 4, 2, 9)]

    def call(q, k, v, rk, rq, rb):
        return spatial_attention(q, k, v, rel_k=rk, rel_q=rq, rel_bias=rb, norm=norm, **area)

    assert torch.autograd.gradcheck(call, leaves)


def test_strided_views_are_read_right():
    qkv = torch.randn(2, 5, 6, 3, 2, 4, dtype=torch.float64)
    views = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
    options = {"norm": "softmax", "application": "neighboring", "size": 3}
    got = spatial_attention(*views, **options)
    want = spatial_attention(*(t.contiguous() for t in views), **options)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_one_hot_bias_shifts_the_map():
    """Known answer: identity norm and all weight on the right-hand tap move the map one left."""
    v = torch.randn(1, 1, 4, 5, 2)
    bias = torch.zeros(1, 9)
    bias[0, 5] = 1  # taps run row by row, so 5 is (row 1, column 2)
    out = spatial_attention(
        None, None, v, rel_bias=bias, use_qk=False, norm="identity", application="neighboring",
        size=3,
    )  # fmt: skip
    torch.testing.assert_close(out[:, :, :, :-1], v[:, :, :, 1:])
    assert (out[:, :, :, -1] == 0).all()


def test_a_pixel_alone_in_its_area_has_no_deviation():
    v = torch.randn(1, 1, 1, 1, 3, requires_grad=True)
    out = spatial_attention(
        v, v, v, norm="filter_norm", application="neighboring", size=3, border="mask"
    )
    out.sum().backward()
    assert (out == 0).all()
    assert v.grad.isfinite().all()


def test_filter_norm_works_in_float32_under_half_precision():
    x = 1e-3 * torch.randn(4, 49, dtype=torch.bfloat16)
    got = filter_norm(x, dim=-1, gain=0.2)
    want = filter_norm(x.double(), dim=-1, gain=0.2)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-3)


def test_depthwise_convolution_with_one_head_per_channel():
    """Only r^b, identity norm and the neighboring area is F.conv2d(groups=C)."""
    dim = 6
    op = UnifiedSpatialOp(
        dim, dim, terms={"bias"}, norm="identity", application="neighboring", size=5
    ).double()
    x = torch.randn(2, 7, 4, dim, dtype=torch.float64)
    v = op.qkv(x).permute(0, 3, 1, 2)
    conv = F.conv2d(v, op.rel_bias.view(dim, 1, 5, 5), padding=2, groups=dim)
    want = op.proj(conv.permute(0, 2, 3, 1))
    torch.testing.assert_close(op(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_dwconv_is_its_filters_convolution(heads):
    op = DwConv(6, num_heads=heads, kernel_size=3).double()
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    v = op.pre_proj(x).detach().numpy()
    mixed = np.zeros_like(v)
    for b, y, xx, c in np.ndindex(v.shape):
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= y + dy < 5 and 0 <= xx + dx < 3:
                tap = op.weight[c // (6 // heads), dy + 1, dx + 1].item()
                mixed[b, y, xx, c] += tap * v[b, y + dy, xx + dx, c]
    want = op.post_proj(torch.from_numpy(mixed) + op.bias)
    torch.testing.assert_close(op(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "sofmax"}, "norm='sofmax' is unknown; known: identity, filter_norm, softmax"),
        ({"application": "tile"}, "application='tile' is unknown"),
        ({"border": "wrap"}, "border='wrap' is unknown; known: zero, mask"),
        ({"size": 4}, "size=4: 'neighboring' centres an area on every pixel; give an odd size"),
        ({"shift": 1}, "shift=1 belongs to windows"),
        ({"implementation": "magic"}, "implementation='magic' is unknown; known: auto"),
        ({"implementation": "sdc"}, "give border='mask'"),
        ({"application": "window", "shift": 3}, "shift=3 must be at least 0 and below size=3"),
        ({"application": "window"}, r"v \(1, 2, 4, 5, 3\) is not whole windows of 3 x 3"),
        ({"application": "window", "size": 2}, "is not whole windows of 2 x 2"),
        ({"rel_bias": torch.zeros(2, 8)}, r"rel_bias \(2, 8\) does not fit v .* want \(2, 9\)"),
        ({"rel_k": torch.zeros(2, 9, 4)}, r"rel_k \(2, 9, 4\) does not fit v \(1, 2, 4, 5, 3\)"),
        ({"use_qk": False}, "no term is chosen"),
    ],
)
def test_refusals_name_what_would_be_right(change, words):
    maps = [torch.zeros(1, 2, 4, 5, 3)] * 3
    options = {"norm": "softmax", "application": "neighboring", "size": 3, **change}
    with pytest.raises(ValueError, match=words):
        spatial_attention(*maps, **options)


def test_missing_and_unequal_maps_are_refused():
    v = torch.zeros(1, 2, 4, 5, 3)
    options = {"norm": "softmax", "application": "neighboring", "size": 3}
    with pytest.raises(ValueError, match="q is None, but the chosen terms read it"):
        spatial_attention(None, v, v, **options)
    with pytest.raises(ValueError, match=r"k \(1, 2, 4, 4, 3\) must have the shape of v"):
        spatial_attention(v, v[:, :, :, :4], v, **options)
