"""The fused neighborhood kernel against the plain definition in float64."""

import itertools

import pytest
import torch
from exactness import BITS, chosen, hold, hold_for_any_threads, spoiled, terms_of_eq4

import lsa_kernels
from lsa_kernels import Eq4Inputs, build
from lsa_study.ops import UnifiedSpatialOp
from lsa_study.ops.functional import spatial_attention
from lsa_study.ops.reference import neighboring

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
# Batch, heads, H, W, channels, K: below, at and above a vector's lanes; one map is smaller than its
# area.
SHAPES = [(2, 2, 5, 9, 3, 3), (1, 2, 3, 18, 8, 7), (2, 1, 8, 8, 12, 5)]


def make(seed, batch, heads, height, width, depth, size):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    maps = [normal(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4) for _ in range(3)]
    tables = [normal(heads, size**2, depth) for _ in range(2)] + [normal(heads, size**2)]
    return [*maps, *tables], normal(batch, heads, height, width, depth)


def plain(norm, size, border, depth):
    return lambda *given: neighboring(Eq4Inputs(*given), norm, size, border, depth**-0.5)


def fused(norm, size, border):
    return lambda q, k, v, rk, rq, rb, use_qk: lsa_kernels.neighboring_attention(
        q, k, v, rel_k=rk, rel_q=rq, rel_bias=rb, use_qk=use_qk, norm=norm, size=size,
        border=border,
    )  # fmt: skip


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("norm", ["softmax", "identity", "filter_norm"])
@pytest.mark.parametrize("terms", SETS, ids="+".join)
def test_rounds_no_worse_than_the_plain_one(terms, norm, border):
    for sizes in SHAPES:
        batch, _, height, width, depth, size = sizes
        hold(
            lambda seed, sizes=sizes: make(seed, *sizes),
            chosen(terms, plain(norm, size, border, depth)),
            chosen(terms, fused(norm, size, border)),
            terms_of_eq4(depth, size**2, batch * height * width),
        )


@pytest.mark.parametrize("at", [*range(6), "gradient", "out"])
@pytest.mark.parametrize("norm", ["softmax", "identity", "filter_norm"])
def test_a_rounding_fault_is_seen(norm, at):
    batch, _, height, width, depth, size = sizes = SHAPES[1]
    with pytest.raises(AssertionError, match="may be"):
        hold(
            lambda seed: make(seed, *sizes),
            chosen(TERMS, plain(norm, size, "zero", depth)),
            spoiled(chosen(TERMS, fused(norm, size, "zero")), at, BITS),
            terms_of_eq4(depth, size**2, batch * height * width),
        )


@pytest.mark.golden("eq4_neigh_*")
def test_golden(golden):
    _, _, net, norm, border = golden.name.split("_")
    terms = set(golden.meta["terms"])
    given = {n: torch.from_numpy(golden[n]).float() for n in ("q", "k", "v", "rk", "rq", "rb")}
    out = lsa_kernels.neighboring_attention(
        given["q"] if terms & {"qk", "qr"} else None,
        given["k"] if terms & {"qk", "rk"} else None,
        given["v"],
        rel_k=given["rk"] if "qr" in terms else None,
        rel_q=given["rq"] if "rk" in terms else None,
        rel_bias=given["rb"] if "b" in terms else None,
        use_qk="qk" in terms, norm={"filter": "filter_norm"}.get(norm, norm),
        size=golden.meta["kernel"], border=border,
    )  # fmt: skip
    assert net in golden.name
    assert (out - torch.from_numpy(golden["y"])).abs().max() <= 1e-4


def all_terms(tensors, **options):
    q, k, v, rel_k, rel_q, bias = tensors
    return lsa_kernels.neighboring_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax", size=7, **options
    )


@pytest.mark.usefixtures("lanes")
def test_the_number_of_threads_changes_no_bit():
    tensors, gradient = make(1, 3, 2, 9, 11, 16, 7)

    def find():
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = all_terms(leaves)
        out.backward(gradient)
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    hold_for_any_threads(find)


@pytest.mark.usefixtures("lanes")
def test_every_element_is_written(monkeypatch):
    """All memory that torch hands out holds NaN: one that is left over shows."""
    tensors, gradient = make(2, 2, 2, 6, 13, 5, 7)
    leaves = [t.clone().requires_grad_() for t in tensors]
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        assert torch.empty(3).isnan().all()
        out = all_terms(leaves)
        out.backward(gradient)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in (out, *(leaf.grad for leaf in leaves)))


@pytest.mark.usefixtures("lanes")
def test_views_of_one_projection_are_read_in_place():
    qkv = torch.randn(2, 7, 9, 3, 2, 8, requires_grad=True)
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
    got = lsa_kernels.neighboring_attention(q, k, v, norm="softmax", size=5)
    got.square().sum().backward()
    want, qkv.grad = qkv.grad, None
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).contiguous().unbind(0)
    lsa_kernels.neighboring_attention(q, k, v, norm="softmax", size=5).square().sum().backward()
    torch.testing.assert_close(want, qkv.grad, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.usefixtures("lanes")
def test_what_is_not_finite_stays_where_the_definition_has_it(bad):
    tensors, _ = make(3, 1, 1, 5, 9, 4, 3)
    tensors[0][0, 0, 2, 3, 1] = bad
    options = {"norm": "softmax", "size": 3}
    q, k, v = tensors[:3]
    got = lsa_kernels.neighboring_attention(q, k, v, **options)
    want = neighboring(Eq4Inputs(q, k, v), "softmax", 3, "zero", 0.5)
    assert torch.equal(got.isfinite(), want.isfinite())
    torch.testing.assert_close(got, want, equal_nan=True)


def test_bfloat16_is_computed_in_float32():
    tensors, _ = make(4, 1, 2, 8, 8, 16, 7)
    low = [t.bfloat16() for t in tensors]
    got = all_terms(low)
    want = all_terms([t.float() for t in low])
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())


@pytest.mark.usefixtures("lanes")
def test_an_empty_batch_gives_an_empty_batch():
    tensors, _ = make(5, 0, 2, 4, 4, 8, 7)
    leaves = [t.requires_grad_() for t in tensors]
    out = all_terms(leaves)
    out.sum().backward()
    assert out.shape == (0, 2, 4, 4, 8)
    assert (leaves[3].grad == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: [x.double() for x in t], "takes float32 and bfloat16"),
        (lambda t: [x.to("meta") for x in t], "runs on a CPU"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason(change, words):
    tensors, _ = make(6, 1, 1, 4, 4, 8, 7)
    with pytest.raises(ValueError, match=words):
        all_terms(change(tensors))


def test_dispatch_refuses_fused_with_the_reason_and_auto_falls_back():
    x = torch.randn(1, 1, 20, 20, 4)
    options = {"norm": "softmax", "application": "neighboring", "size": 15}
    with pytest.raises(ValueError, match="'fused' cannot run: size=15 is not compiled"):
        spatial_attention(x, x, x, implementation="fused", **options)
    want = spatial_attention(x, x, x, implementation="reference", **options)
    torch.testing.assert_close(spatial_attention(x, x, x, **options), want)


# opcheck itself looks at gradients of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("lanes")
def test_torch_accepts_the_operator():
    tensors, _ = make(7, 1, 2, 5, 6, 4, 3)
    leaves = [t.requires_grad_() for t in tensors]
    arguments = (*leaves, True, "softmax", 3, "zero", 0.5, True)
    torch.library.opcheck(torch.ops.lsa_kernels.neighboring, arguments)


def test_a_layer_compiles_exports_and_recomputes():
    op = UnifiedSpatialOp(
        16, 2, terms={"qk", "bias", "q_rk"}, norm="softmax", application="neighboring",
        implementation="fused",
    )  # fmt: skip
    x = torch.randn(1, 8, 9, 16, requires_grad=True)
    want = op(x)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, want)
    compiled.sum().backward()
    again = torch.utils.checkpoint.checkpoint(op, x, use_reentrant=False)
    again.sum().backward()
    exported = torch.export.export(op, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), want)


def test_scratch_memory_is_counted_until_it_is_asked_for_and_given_back():
    given, _ = make(0, 1, 2, 5, 9, 3, 3)
    call, counted = chosen(TERMS, fused("softmax", 3, "zero")), []
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        lsa_kernels.scratch_bytes()
        call(*given)
        counted.append(lsa_kernels.scratch_bytes())
    torch.set_num_threads(threads)
    assert counted[2] - counted[1] == counted[1] - counted[0] > 4 * 9 * 5 * 3 * 3  # of a thread
    assert lsa_kernels.scratch_bytes() == 0
