"""Dynamic filters, DWNet, Involution and Outlooker against released tensors and NumPy loops."""

import itertools

import numpy as np
import pytest
import torch

from lsa_kernels import Eq4Inputs
from lsa_study.ops import (
    DDF,
    Conv,
    DDFUp,
    DynamicDwConv,
    Involution,
    OutlookAttention,
)
from lsa_study.ops.ddf import apply_decoupled
from lsa_study.ops.functional import filter_norm
from lsa_study.ops.unfold import sliding_chunks


def leaf(array):
    return torch.from_numpy(array).double().requires_grad_()


def close(got, want, name=""):
    got = got.detach().numpy()
    assert got.shape == want.shape, name
    assert np.abs(got - want).max() <= 1e-9, name


@pytest.mark.golden("ddf_op_*")
def test_ddf_operator(golden):
    size = golden.meta["kernel"]
    x, channel, spatial = (leaf(golden[n]) for n in ("x", "channel_filter", "spatial_filter"))
    y = apply_decoupled(
        x.permute(0, 2, 3, 1),
        spatial.unflatten(1, (1, -1)).permute(0, 3, 4, 1, 2),
        channel.flatten(2),
        combine=golden.meta["combine"],
        kernel_size=size,
        dilation=golden.meta["dilation"],
    ).permute(0, 3, 1, 2)
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    close(channel.grad, golden["g_channel_filter"])
    close(spatial.grad, golden["g_spatial_filter"])


@pytest.mark.golden("filternorm_channel*")
def test_channel_filter_norm(golden):
    taps = golden.meta["kernel"] ** 2
    x, std = leaf(golden["x"]), leaf(golden["w.std"])
    y = filter_norm(x.reshape(x.shape[0], -1, taps), dim=-1, gain=1.0) * std.view(-1, taps)
    if golden.meta["running_mean"]:
        mean = leaf(golden["w.mean"])
        y = y + mean.view(-1, taps)
    y = y.flatten(1)
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    close(std.grad, golden["gw.std"])
    if golden.meta["running_mean"]:
        close(mean.grad, golden["gw.mean"])


@pytest.mark.golden("vil_sdc_*_exact1_*")
def test_sliding_chunks(golden):
    """Queries and keys are projected apart; the table is indexed by i - j, so it turns over."""
    meta, weights = golden.meta, golden.with_prefix("w.")
    heads, chunk, (height, width) = meta["heads"], meta["chunk"], meta["hw"]
    w = {name: torch.from_numpy(a) for name, a in weights.items()}
    x = leaf(golden["x"])
    q = x @ w["query.weight"].T + w["query.bias"]
    k, v = (x @ w["kv.weight"].T + w["kv.bias"]).chunk(2, -1)
    q, k, v = (
        t.reshape(t.shape[0], height, width, heads, -1).permute(0, 3, 1, 2, 4) for t in (q, k, v)
    )
    table = w["local_relative_position_bias_table"].flip(0).T
    side, reach = 4 * chunk - 1, chunk
    middle = slice(2 * chunk - 1 - reach, 2 * chunk + reach)
    near = table.view(heads, side, side)[:, middle, middle].flatten(1)
    given = Eq4Inputs(q, k, v, rel_bias=near)
    out = sliding_chunks(given, "softmax", 2 * chunk + 1, "mask", meta["scale"])
    y = out.permute(0, 2, 3, 1, 4).reshape(x.shape) @ w["proj.weight"].T + w["proj.bias"]
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])


@pytest.mark.parametrize("filters", ["mul", "add", "spatial", "channel"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decoupled_filters_by_hand(filters, dilation, stride, dtype):
    draw = np.random.default_rng(3)
    values = draw.normal(size=(2, 5, 4, 4))
    kept = 2, -(-5 // stride), -(-4 // stride)
    spatial, channel = draw.normal(size=(*kept, 2, 9)), draw.normal(size=(2, 4, 9))
    combined = {
        "mul": lambda s, d: s * d,
        "add": lambda s, d: s + d,
        "spatial": lambda s, d: s,
        "channel": lambda s, d: d,
    }[filters]
    want = np.zeros((*kept, 4))
    for b, y, x, c in np.ndindex(want.shape):
        for t, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            yy, xx = stride * y + dilation * dy, stride * x + dilation * dx
            if 0 <= yy < 5 and 0 <= xx < 4:
                weight = combined(spatial[b, y, x, c // 2, t], channel[b, c, t])
                want[b, y, x, c] += weight * values[b, yy, xx, c]
    given = [torch.from_numpy(t).to(dtype).requires_grad_() for t in (values, spatial, channel)]
    got = apply_decoupled(
        given[0], None if filters == "channel" else given[1],
        None if filters == "spatial" else given[2],
        combine="add" if filters == "add" else "mul", kernel_size=3, stride=stride,
        dilation=dilation,
    )  # fmt: skip
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=limit, atol=limit)
    # Linear in values: its gradient, asked for with itself, gives the same number.
    (slope,) = torch.autograd.grad((got * got.detach()).sum(), given[:1])
    assert float((slope * given[0].detach()).sum()) == pytest.approx((want**2).sum(), rel=limit)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_a_strided_layer_is_the_whole_one_at_the_pixels_it_keeps(combine):
    whole = DDF(6, kernel_size=3, num_heads=2, combine=combine).double()
    kept = DDF(6, kernel_size=3, num_heads=2, combine=combine, stride=2).double()
    kept.load_state_dict(whole.state_dict())
    x = torch.randn(2, 7, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(kept(x), whole(x)[:, ::2, ::2])


@pytest.mark.parametrize("norm", ["batch", "sigmoid"])
def test_other_norms_of_filters_by_hand(norm):
    op = DDF(6, kernel_size=3, reduction=0.5, norm=norm).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    maps = x.permute(0, 3, 1, 2)
    made = op.spatial_branch[0](maps)
    drawn = op.channel_branch[:4](maps)
    if norm == "sigmoid":
        made, drawn = made.sigmoid(), drawn.sigmoid()
    else:  # running statistics at their start
        made, drawn = made / np.sqrt(1 + 1e-5), drawn / np.sqrt(1 + 1e-5)
    want = apply_decoupled(
        x, made.permute(0, 2, 3, 1)[:, :, :, None], drawn.reshape(2, 6, 9), kernel_size=3
    )
    torch.testing.assert_close(op(x), want)


def test_ddf_up_is_a_layer_for_each_place_inside_a_pixel():
    op = DDFUp(6, scale=3, guide_dim=5).double()
    x, guide = (torch.randn(2, 4, 3, c, dtype=torch.float64) for c in (6, 5))
    maps, seen = (t.permute(0, 3, 1, 2) for t in (x, guide))
    got = op(x, guide)
    assert got.shape == (2, 12, 9, 6)
    for row, column in itertools.product(range(3), repeat=2):
        place = 3 * row + column
        filters = op.spatial_branch[place](seen).permute(0, 2, 3, 1)[:, :, :, None]
        want = apply_decoupled(
            x, filter_norm(filters, dim=-1, gain=1 / 3), op.channel_branch[place](maps),
            kernel_size=3,
        )  # fmt: skip
        torch.testing.assert_close(got[:, row::3, column::3], want)


@pytest.mark.parametrize(("guide_dim", "parameters"), [(None, 560_368), (256, 550_128)])
def test_ddf_up_has_as_many_parameters_as_released(guide_dim, parameters):
    op = DDFUp(256, guide_dim=guide_dim)
    assert sum(p.numel() for p in op.parameters()) == parameters


def test_a_guide_that_does_not_fit_is_refused():
    x = torch.zeros(1, 4, 4, 6)
    with pytest.raises(ValueError, match=r"guide is missing: want \(1, 4, 4, 5\)"):
        DDFUp(6, guide_dim=5)(x)
    with pytest.raises(
        ValueError, match=r"guide \(1, 8, 8, 5\) does not fit x: want \(1, 4, 4, 5\)"
    ):
        DDFUp(6, guide_dim=5)(x, torch.zeros(1, 8, 8, 5))
    with pytest.raises(ValueError, match="guide: built without guide_dim; drop it"):
        DDFUp(6)(x, x)


@pytest.mark.parametrize("stride", [1, 2])
def test_involution_by_hand(stride):
    op = Involution(4, kernel_size=3, group_channels=2, stride=stride).double().eval()
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 4))
    weights = {name: p.detach().numpy() for name, p in op.named_parameters()}
    got = op(torch.from_numpy(x)).detach().numpy()
    want = np.zeros((1, 4 // stride, 6 // stride, 4))
    for _, y, xx, c in np.ndindex(want.shape):
        seen = x[0, y * stride : (y + 1) * stride, xx * stride : (xx + 1) * stride].mean((0, 1))
        hidden = weights["reduce.weight"][:, :, 0, 0] @ seen / np.sqrt(1 + 1e-5)
        hidden = np.maximum(hidden * weights["norm.weight"] + weights["norm.bias"], 0)
        filters = weights["span.weight"][:, :, 0, 0] @ hidden + weights["span.bias"]
        for t, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            py, px = y * stride + dy, xx * stride + dx
            if 0 <= py < 4 and 0 <= px < 6:
                want[0, y, xx, c] += filters.reshape(2, 9)[c // 2, t] * x[0, py, px, c]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_dynamic_depthwise_convolution_by_hand():
    op = DynamicDwConv(4, kernel_size=3).double().eval()
    x = np.random.default_rng(2).normal(size=(2, 3, 5, 4))
    weights = {name: p.detach().numpy() for name, p in op.named_parameters()}
    got = op(torch.from_numpy(x)).detach().numpy()
    want = np.zeros_like(x)
    for b, y, xx, c in np.ndindex(x.shape):
        hidden = weights["conv1.weight"][:, :, 0, 0] @ x[b].mean((0, 1)) / np.sqrt(1 + 1e-5)
        hidden = np.maximum(hidden * weights["bn.weight"] + weights["bn.bias"], 0)
        filters = weights["conv2.weight"][:, :, 0, 0] @ hidden + weights["conv2.bias"]
        for t, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            if 0 <= y + dy < 3 and 0 <= xx + dx < 5:
                want[b, y, xx, c] += filters.reshape(4, 9)[c, t] * x[b, y + dy, xx + dx, c]
    np.testing.assert_allclose(got, want + weights["bias"], rtol=1e-10, atol=1e-10)


def test_filters_that_do_not_fit_are_refused():
    values, spatial = torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 4, 1, 9)
    with pytest.raises(ValueError, match=r"spatial \(1, 4, 4, 1, 9\) does not fit values"):
        apply_decoupled(values, spatial, torch.zeros(1, 6, 25), combine="mul", kernel_size=5)
    with pytest.raises(ValueError, match="neither spatial nor channel filters"):
        apply_decoupled(values, None, None, kernel_size=3)
    with pytest.raises(ValueError, match=r"spatial .* want \(1, 2, 2, heads, 9\)"):
        apply_decoupled(values, spatial, None, kernel_size=3, stride=2)
    with pytest.raises(ValueError, match=r"channel \(1, 5, 9\) does not fit values"):
        apply_decoupled(values, spatial, torch.zeros(1, 5, 9), combine="mul", kernel_size=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDF(12, num_heads=5), "num_heads=5 does not divide dim=12"),
        (lambda: DDF(12, combine="min"), "combine='min' is unknown; known: mul, add"),
        (lambda: DDF(3, reduction=0.2), "leaves no hidden channel"),
        (lambda: DDF(12, kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: DDF(12, stride=0), "stride=0 must be at least 1"),
        (lambda: DDF(12, stride=1.5), "stride=1.5 must be a whole number of pixels; give an int"),
        (lambda: DDF(12, dilation=2.0), "dilation=2.0 must be a whole number of pixels; give"),
        (lambda: DDF(12, dilation=0), "dilation=0 must be at least 1"),
        (lambda: DDF(12, branches="none"), "branches='none' is unknown; known: both, spatial"),
        (lambda: DDF(12, norm="layer"), "norm='layer' is unknown; known: filter, batch, sigmoid"),
        (lambda: DDFUp(12, kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: DDFUp(12, scale=1), "scale=1 enlarges nothing; give 2 or more"),
        (lambda: DDFUp(12, guide_dim=0), "guide_dim=0 must be at least 1, or None"),
        (lambda: Conv(12, kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: Involution(12, group_channels=5), "group_channels=5 does not divide dim=12"),
        (lambda: DynamicDwConv(12, kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: OutlookAttention(12, 5), "num_heads=5 does not divide dim=12"),
    ],
)
def test_what_cannot_be_built_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
