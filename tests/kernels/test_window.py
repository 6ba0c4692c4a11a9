"""The fused window kernel against the plain definition in float64 and golden tensors."""

import itertools

import pytest
import torch
from exactness import BITS, chosen, hold, hold_for_any_threads, run, spoiled, terms_of_eq4

import lsa_kernels
from lsa_kernels import build
from lsa_study.ops import UnifiedSpatialOp
from lsa_study.ops.functional import shift_bands, spatial_attention, to_windows, window

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
# Batch, heads, H, W, channels, window, shift: fewer and more windows than lanes, even and oblong
# windows, channels that fill no vector.
SHAPES = [
    (2, 2, 9, 12, 3, (3, 3), 1), (2, 1, 14, 14, 8, (7, 7), 3), (5, 2, 8, 12, 12, (4, 6), 2),
    (1, 1, 5, 5, 33, (5, 5), 0),
]  # fmt: skip


def make(seed, batch, heads, height, width, depth, size, shift):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    offsets = (2 * size[0] - 1) * (2 * size[1] - 1)
    maps = [normal(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4) for _ in range(3)]
    tables = [normal(heads, offsets, depth) for _ in range(2)] + [normal(heads, offsets)]
    excluded = shift_bands(height, width, size, (shift, shift), torch.device("cpu"))
    return [*maps, *tables], normal(batch, heads, height, width, depth), excluded


def fused(norm, size, excluded, scale=None):
    return lambda q, k, v, rk, rq, rb, use_qk: lsa_kernels.window_attention(
        q, k, v, rel_k=rk, rel_q=rq, rel_bias=rb, use_qk=use_qk, norm=norm, size=size,
        excluded=excluded, scale=scale,
    )  # fmt: skip


def held(sizes, terms, norm, spoil=lambda call: call):
    batch, _, height, width, depth, size, _ = sizes
    *_, excluded = make(0, *sizes)

    def plain(*given):
        return window(*given, norm, size, excluded, depth**-0.5)

    hold(
        lambda seed: make(seed, *sizes)[:2], chosen(terms, plain),
        spoil(chosen(terms, fused(norm, size, excluded))),
        terms_of_eq4(depth, size[0] * size[1], batch * height * width),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["softmax", "identity", "filter_norm"])
@pytest.mark.parametrize("terms", SETS, ids="+".join)
def test_rounds_no_worse_than_the_plain_one(terms, norm):
    for sizes in SHAPES:
        *unshifted, shift = sizes
        # Shifted windows of 3 x 3 have areas of two pixels, which the test below holds: filter norm
        # divides by their difference, and what rounding left of it says nothing about a kernel.
        alone = norm == "filter_norm" and sizes[5] == (3, 3)
        held((*unshifted, 0 if alone else shift), terms, norm)


@pytest.mark.parametrize("at", [*range(6), "gradient", "out"])
@pytest.mark.parametrize("norm", ["softmax", "identity", "filter_norm"])
def test_a_rounding_fault_is_seen(norm, at):
    with pytest.raises(AssertionError, match="may be"):
        held(SHAPES[1], TERMS, norm, lambda call: spoiled(call, at, BITS))


@pytest.mark.usefixtures("lanes")
def test_of_two_pixels_filter_norm_keeps_the_order_alone():
    sizes = (2, 2, 9, 12, 3, (3, 3), 1)
    tensors, gradient, excluded = make(0, *sizes)
    call = chosen(TERMS, fused("filter_norm", (3, 3), excluded))
    ours = run(call, tensors, gradient, torch.float32)
    size, scale = (3, 3), 3**-0.5

    def plain(*given):
        return window(*given, "filter_norm", size, excluded, scale)

    want = run(chosen(TERMS, plain), tensors, gradient, torch.float64)
    for mine, exact in zip(ours, want, strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-4 * exact.abs().max().item())
    pairs = (~excluded).sum(-1) == 2
    assert pairs.any()
    to_q = to_windows(ours[1], size)[:, :, pairs]
    assert (to_q == 0).all()


@pytest.mark.golden("eq4_window_*")
def test_golden(golden):
    _, _, _, norm, _ = golden.name.split("_")
    terms = set(golden.meta["terms"])
    given = {n: torch.from_numpy(golden[n]).float() for n in ("q", "k", "v", "rk", "rq", "rb")}
    out = spatial_attention(
        given["q"] if terms & {"qk", "qr"} else None,
        given["k"] if terms & {"qk", "rk"} else None,
        given["v"],
        rel_k=given["rk"] if "qr" in terms else None,
        rel_q=given["rq"] if "rk" in terms else None,
        rel_bias=given["rb"] if "b" in terms else None,
        use_qk="qk" in terms, norm={"filter": "filter_norm"}.get(norm, norm), application="window",
        size=golden.meta["window"], shift=golden.meta["shift"], implementation="fused",
    )  # fmt: skip
    assert (out - torch.from_numpy(golden["y"])).abs().max() <= 1e-4


@pytest.mark.usefixtures("lanes")
def test_the_number_of_threads_changes_no_bit():
    tensors, gradient, excluded = make(1, 9, 2, 14, 14, 8, (7, 7), 3)
    call = fused("softmax", (7, 7), excluded)
    hold_for_any_threads(lambda: run(chosen(TERMS, call), tensors, gradient, torch.float32))


@pytest.mark.usefixtures("lanes")
def test_every_element_is_written(monkeypatch):
    tensors, gradient, excluded = make(2, 2, 2, 8, 12, 5, (4, 4), 2)
    call = fused("softmax", (4, 4), excluded)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        assert torch.empty(3).isnan().all()
        found = run(chosen(TERMS, call), tensors, gradient, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.usefixtures("lanes")
def test_what_is_not_finite_stays_where_the_definition_has_it(bad):
    (q, k, v, *_), _, _ = make(3, 1, 1, 6, 6, 4, (3, 3), 0)
    q[0, 0, 2, 3, 1] = bad
    got = lsa_kernels.window_attention(q, k, v, norm="softmax", size=(3, 3))
    want = window(q, k, v, None, None, None, True, "softmax", (3, 3), None, 0.5)
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.usefixtures("lanes")
def test_an_empty_batch_gives_an_empty_batch():
    tensors, gradient, _ = make(4, 0, 2, 6, 6, 4, (3, 3), 0)
    call = chosen(TERMS, fused("softmax", (3, 3), None))
    out, *_, bias = run(call, tensors, gradient, torch.float32)
    assert out.shape == (0, 2, 6, 6, 4)
    assert (bias == 0).all()


def test_what_it_cannot_take_is_refused_with_the_reason():
    x = torch.randn(1, 1, 17, 17, 4)
    options = {"norm": "identity", "application": "window", "size": 17}
    with pytest.raises(ValueError, match="'fused' cannot run: size="):
        spatial_attention(x, x, x, implementation="fused", **options)
    want = spatial_attention(x, x, x, implementation="reference", **options)
    torch.testing.assert_close(spatial_attention(x, x, x, **options), want)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("lanes")
def test_torch_accepts_the_operator():
    tensors, _, excluded = make(5, 1, 2, 6, 6, 4, (3, 3), 1)
    leaves = [t.requires_grad_() for t in tensors]
    arguments = (*leaves, excluded, True, "softmax", 3, 3, 0.5, True)
    torch.library.opcheck(torch.ops.lsa_kernels.window, arguments)


def test_a_layer_compiles_exports_and_recomputes():
    op = UnifiedSpatialOp(16, 2, terms=set(TERMS), norm="softmax", application="window", size=4)
    x = torch.randn(1, 8, 8, 16, requires_grad=True)
    want = op(x)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, want)
    torch.utils.checkpoint.checkpoint(op, x, use_reentrant=False).sum().backward()
    exported = torch.export.export(op, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), want)
