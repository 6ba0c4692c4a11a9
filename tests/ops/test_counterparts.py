"""Dynamic filters, DWNet, Involution and Outlooker against released tensors and NumPy loops."""

import itertools

import numpy as np
import pytest
import torch

from lsa_kernels import Eq4Inputs
from lsa_study.ops import (
    DDF,
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


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_decoupled_filters_by_hand(combine, dilation):
    draw = np.random.default_rng(3)
    values, spatial = draw.normal(size=(2, 4, 3, 4)), draw.normal(size=(2, 4, 3, 2, 9))
    channel = draw.normal(size=(2, 4, 9))
    want = np.zeros_like(values)
    for b, y, x, c in np.ndindex(values.shape):
        for t, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            yy, xx = y + dilation * dy, x + dilation * dx
            if 0 <= yy < 4 and 0 <= xx < 3:
                s, d = spatial[b, y, x, c // 2, t], channel[b, c, t]
                want[b, y, x, c] += (s * d if combine == "mul" else s + d) * values[b, yy, xx, c]
    got = apply_decoupled(
        *map(torch.from_numpy, (values, spatial, channel)), combine=combine, kernel_size=3,
        dilation=dilation,
    )  # fmt: skip
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


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
    with pytest.raises(ValueError, match=r"channel \(1, 5, 9\) does not fit values"):
        apply_decoupled(values, spatial, torch.zeros(1, 5, 9), combine="mul", kernel_size=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDF(12, num_heads=5), "num_heads=5 does not divide dim=12"),
        (lambda: DDF(12, combine="min"), "combine='min' is unknown; known: mul, add"),
        (lambda: DDF(3, reduction=0.2), "leaves no hidden channel"),
        (lambda: DDF(12, kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: Involution(12, group_channels=5), "group_channels=5 does not divide dim=12"),
        (lambda: DynamicDwConv(12, kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: OutlookAttention(12, 5), "num_heads=5 does not divide dim=12"),
    ],
)
def test_what_cannot_be_built_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
