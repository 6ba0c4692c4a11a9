"""The fused filters against float64, torch's convolution and golden tensors."""

import pytest
import torch
from exactness import BITS, hold, hold_for_any_threads, run, spoiled
from torch.nn import functional as F

import lsa_kernels
from lsa_kernels import build
from lsa_study.ops import ELSA, DwConv, functional, reference
from lsa_study.ops.ddf import apply_decoupled
from lsa_study.ops.functional import apply_filters

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

# Batch, H, W, heads, channels of a head, K: below, at and above a vector's lanes, more rows than a
# task takes, maps smaller than the area, several tasks of one head.
SHAPES = [
    (2, 5, 9, 3, 4, 3), (1, 3, 18, 2, 8, 7), (2, 8, 8, 1, 12, 5), (1, 40, 9, 2, 5, 7),
    (1, 6, 7, 1, 16, 13), (2, 4, 5, 2, 32, 11), (1, 7, 3, 1, 33, 9),
]  # fmt: skip


def make(seed, parts, batch, height, width, heads, depth, size):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    channels = heads * depth
    values, gradient = (normal(batch, height, width, channels) for _ in range(2))
    filters = normal(batch, height, width, heads, size**2)
    mul = normal(channels, size, size) if "mul" in parts else None
    add = normal(channels, size, size) if "add" in parts else None
    return [values, filters, mul, add], gradient


def fused(size):
    return lambda v, f, m, a: apply_filters(
        v, f, ghost_mul=m, ghost_add=a, kernel_size=size, implementation="fused"
    )


def terms_of(size, depth, pixels):
    """Taps for the output and the values' gradient, a head's channels for the filters', pixels."""
    taps = size**2
    return {"out": taps, "values": taps, "filters": depth, "mul": pixels, "add": pixels}


def held(sizes, parts, spoil=lambda call: call):
    batch, height, width, _, depth, size = sizes

    def plain(v, f, m, a):
        return reference.apply_filters(v, f, m, a, size)

    terms = terms_of(size, depth, batch * height * width)
    hold(lambda seed: make(seed, parts, *sizes), plain, spoil(fused(size)), terms)


@pytest.mark.parametrize("parts", [(), ("mul",), ("add",), ("mul", "add")], ids="+".join)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_rounds_no_worse_than_the_plain_one(sizes, parts):
    held(sizes, parts)


@pytest.mark.parametrize("at", [*range(4), "gradient", "out"])
def test_a_rounding_fault_is_seen(at):
    with pytest.raises(AssertionError, match="may be"):
        held(SHAPES[1], ("mul", "add"), lambda call: spoiled(call, at, BITS))


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_a_table_for_each_image(combine):
    def given(seed):
        (values, filters, *_), gradient = make(seed, (), 3, 9, 10, 2, 6, 5)
        channel = torch.randn(3, 12, 25, generator=torch.Generator().manual_seed(100 + seed))
        return [values, filters, channel], gradient

    def plain(v, f, c):
        return reference.apply_filters(v, f, *((c, None) if combine == "mul" else (None, c)), 5)

    def ours(v, f, c):
        return apply_decoupled(v, f, c, combine=combine, kernel_size=5)

    hold(given, plain, ours, {"out": 25, "values": 25, "filters": 6, "channel": 9 * 10})


@pytest.mark.parametrize("channels", [5, 24, 96])
def test_static_filters_are_a_depthwise_convolution(channels):
    def given(seed):
        draw = torch.Generator().manual_seed(seed)
        values, gradient = (torch.randn(2, 9, 11, channels, generator=draw) for _ in range(2))
        return [values, torch.randn(channels, 7, 7, generator=draw)], gradient

    def convolution(v, f):
        maps = F.conv2d(v.permute(0, 3, 1, 2), f[:, None], padding=3, groups=channels)
        return maps.permute(0, 2, 3, 1)

    hold(
        given,
        convolution,
        functional.static_filters,
        {"out": 49, "values": 49, "filters": 2 * 9 * 11},
    )


@pytest.mark.parametrize(
    ("learns", "size", "dtype", "by_torch"),
    [
        (False, 7, torch.float32, True),
        (True, 7, torch.float32, False),
        (False, 11, torch.float32, False),
        (False, 7, torch.bfloat16, False),
    ],
    ids=["inference", "training", "long filters", "bfloat16"],
)
@pytest.mark.parametrize("quick", [True, False])
def test_torch_convolves_where_that_is_faster(monkeypatch, quick, learns, size, dtype, by_torch):
    monkeypatch.setattr(functional, "QUICK_CONVOLUTION", quick)
    called = []
    plain = reference.static_filters
    monkeypatch.setattr(
        reference, "static_filters", lambda *given: called.append(given) or plain(*given)
    )
    values = torch.randn(1, 9, 11, 24).to(dtype)
    filters = torch.randn(24, size, size, requires_grad=learns)
    got = functional.static_filters(values, filters)
    assert bool(called) == (by_torch and quick)
    want = plain(values.double(), filters.double())
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol=0.1 if dtype != torch.float32 else 1e-4
    )


@pytest.mark.golden("elsa_d*")
def test_golden_elsa(golden):
    meta = golden.meta
    op = ELSA(
        meta["dim"], meta["heads"], kernel_size=meta["kernel"], group_width=meta["group_width"],
        ghost_mul=meta["lam"], ghost_add=meta["gamma"], implementation="fused",
    )  # fmt: skip
    weights = {k: torch.from_numpy(a).float() for k, a in golden.with_prefix("w.").items()}
    if "ghost_head" in weights:
        weights["ghost_head"] = weights["ghost_head"].reshape(op.ghost_head.shape)
    op.load_state_dict(weights)
    x = torch.from_numpy(golden["x"]).float().requires_grad_()
    y = op(x)
    y.backward(torch.from_numpy(golden["gy"]).float())
    assert (y - torch.from_numpy(golden["y"])).abs().max() <= 1e-4
    assert (x.grad - torch.from_numpy(golden["gx"])).abs().max() <= 1e-4


@pytest.mark.golden("ddf_op_*")
def test_golden_ddf(golden):
    x, channel, spatial = (
        torch.from_numpy(golden[n]).float() for n in ("x", "channel_filter", "spatial_filter")
    )
    y = apply_decoupled(
        x.permute(0, 2, 3, 1), spatial.unflatten(1, (1, -1)).permute(0, 3, 4, 1, 2),
        channel.flatten(2), combine=golden.meta["combine"], kernel_size=golden.meta["kernel"],
        dilation=golden.meta["dilation"],
    )  # fmt: skip
    assert (y.permute(0, 3, 1, 2) - torch.from_numpy(golden["y"])).abs().max() <= 1e-4


@pytest.mark.usefixtures("lanes")
def test_any_strides_are_read_in_place():
    tensors, gradient = make(4, ("mul",), 2, 7, 9, 2, 8, 5)
    values = torch.randn(2, 16, 7, 9).permute(0, 2, 3, 1)
    filters = torch.randn(2, 2, 25, 7, 9).permute(0, 3, 4, 1, 2)
    given = [values, filters, tensors[2], None]
    whole = [None if t is None else t.contiguous() for t in given]
    got = run(fused(5), given, gradient, torch.float32)
    want = run(fused(5), whole, gradient, torch.float32)
    assert all(a is None or torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.usefixtures("lanes")
def test_the_number_of_threads_changes_no_bit():
    tensors, gradient = make(5, ("mul", "add"), 1, 70, 5, 2, 8, 7)
    hold_for_any_threads(lambda: run(fused(7), tensors, gradient, torch.float32))


@pytest.mark.usefixtures("lanes")
def test_every_element_is_written(monkeypatch):
    tensors, gradient = make(6, ("mul", "add"), 2, 6, 13, 2, 5, 7)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        assert torch.empty(3).isnan().all()
        found = run(fused(7), tensors, gradient, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in found)


@pytest.mark.usefixtures("lanes")
def test_an_empty_batch_gives_an_empty_batch():
    tensors, gradient = make(7, ("mul",), 0, 4, 4, 1, 8, 3)
    out, *_, mul, add = run(fused(3), tensors, gradient, torch.float32)
    assert out.shape == (0, 4, 4, 8)
    assert (mul == 0).all()
    assert add is None


def test_bfloat16_is_computed_in_float32():
    tensors, _ = make(8, ("add",), 1, 6, 6, 2, 8, 7)
    low = [None if t is None else t.bfloat16() for t in tensors]
    got = fused(7)(*low)
    want = fused(7)(*(None if t is None else t.float() for t in low))
    assert torch.equal(got, want.bfloat16())


def test_what_it_cannot_take_is_refused_with_the_reason():
    tensors, _ = make(9, (), 1, 4, 4, 1, 8, 3)
    with pytest.raises(ValueError, match="takes float32 and bfloat16"):
        fused(3)(*(None if t is None else t.double() for t in tensors))
    with pytest.raises(ValueError, match="without filters give add"):
        lsa_kernels.apply_filters(tensors[0], None, size=3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("parts", [(), ("mul", "add")], ids="+".join)
@pytest.mark.usefixtures("lanes")
def test_torch_accepts_the_operator(parts):
    tensors, _ = make(10, parts, 1, 5, 6, 2, 4, 3)
    values, filters, *tables = [None if t is None else t.requires_grad_() for t in tensors]
    flat = [None if t is None else t.detach().flatten(1).requires_grad_() for t in tables]
    torch.library.opcheck(torch.ops.lsa_kernels.filters, (values, filters, *flat, 2, 3))


@pytest.mark.parametrize(
    "make_op", [lambda: ELSA(16, 2), lambda: DwConv(16)], ids=["elsa", "dwconv"]
)
def test_a_layer_compiles_exports_and_recomputes(make_op):
    op, x = make_op(), torch.randn(1, 8, 9, 16, requires_grad=True)
    want = op(x)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, want)
    torch.utils.checkpoint.checkpoint(op, x, use_reentrant=False).sum().backward()
    exported = torch.export.export(op, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), want)
