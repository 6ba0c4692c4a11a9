"""Maps against the operators themselves: weights times values must give what the layer gives."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsa_study import ops
from lsa_study.config import study
from lsa_study.errors import ConfigError
from lsa_study.models import from_settings
from lsa_study.models.attention_maps import attention, effective_area, inputs, load_run
from lsa_study.rundir import RunDir
from lsa_study.training.checkpoint import save_weights

ALL = ("qk", "q_rk", "rq_k", "bias")
POINTS = {
    "window": {"terms": ALL, "norm": "softmax", "application": "window", "size": 3},
    "shifted": {"terms": ALL, "norm": "softmax", "application": "window", "size": 3, "shift": 1},
    "one window": {"terms": ("q_rk",), "norm": "softmax", "application": "window", "size": 6,
                   "shift": 2},
    "neighboring": {"terms": ALL, "norm": "softmax", "application": "neighboring", "size": 3},
    "mask": {"terms": ("rq_k", "bias"), "norm": "filter_norm", "application": "neighboring",
             "size": 5, "border": "mask"},
    "identity": {"terms": ("bias",), "norm": "identity", "application": "neighboring", "size": 3},
}  # fmt: skip


def wide(op):
    """The operator in float64, all parameters far from zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.normal_(0, 0.5)
    return op.double().eval()


def mixed(weights, values):
    """Sum of weights times values (H, W, C), group by group, as loops over plain arrays."""
    groups, height, width = weights.shape[:3]
    share = values.shape[2] // groups
    out = np.zeros_like(values)
    for g, y, x in np.ndindex(groups, height, width):
        chosen = values[:, :, g * share : (g + 1) * share]
        out[y, x, g * share : (g + 1) * share] = (weights[g, y, x][:, :, None] * chosen).sum((0, 1))
    return out


@pytest.mark.parametrize("point", POINTS)
def test_weights_times_values_are_the_unified_operator(point):
    op = wide(ops.UnifiedSpatialOp(8, 2, **POINTS[point]))
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    values = F.linear(x, op.qkv.weight[-8:], op.qkv.bias[-8:])[0].detach().numpy()
    want = op(x)[0].detach().numpy()
    got = op.proj(torch.from_numpy(mixed(attention(op, x).astype(float), values)))
    np.testing.assert_allclose(got.detach().numpy(), want, atol=2e-5)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"variant": "eq7"},
        {"ghost_mul": 1.0},
        {"ghost_mul": 2.0, "ghost_add": 0.0},
        {"ghost_add": 0.0},
    ],
)
def test_weights_times_values_are_elsa(how):
    op = wide(ops.ELSA(12, 2, kernel_size=3, group_width=4, **how))
    x = torch.randn(1, 5, 4, 12, dtype=torch.float64)
    values = F.conv2d(x.permute(0, 3, 1, 2), op.pre_proj.weight[-12:], op.pre_proj.bias[-12:])
    weights = attention(op, x).astype(float)
    assert len(weights) == (12 if op.ghost_head is not None else 2)
    got = op.post_proj(
        torch.from_numpy(mixed(weights, values[0].permute(1, 2, 0).numpy(force=True)))
    )
    np.testing.assert_allclose(got.numpy(force=True), op(x)[0].numpy(force=True), atol=2e-5)


def test_weights_times_values_are_the_convolution():
    op = wide(ops.DwConv(6, num_heads=3, kernel_size=3))
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    got = mixed(attention(op, x).astype(float), op.pre_proj(x)[0].numpy(force=True))
    want = op.post_proj(torch.from_numpy(got) + op.bias)
    np.testing.assert_allclose(want.numpy(force=True), op(x)[0].numpy(force=True), atol=2e-5)


@pytest.mark.parametrize("term", ALL)
def test_without_a_term_is_the_operator_that_never_had_it(term):
    rest = tuple(one for one in ALL if one != term)
    how = POINTS["shifted"] | {"terms": ALL}
    whole = wide(ops.UnifiedSpatialOp(8, 2, **how))
    part = ops.UnifiedSpatialOp(8, 2, **how | {"terms": rest}).double()
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    found = attention(whole, x, without={term})
    np.testing.assert_array_equal(found, attention(part, x))
    assert np.abs(found - attention(whole, x)).max() > 0.01


def test_without_the_ghost_head_the_heads_are_left():
    op = wide(ops.ELSA(12, 2, kernel_size=3, group_width=4))
    x = torch.randn(1, 5, 4, 12, dtype=torch.float64)
    heads = attention(op, x, without={"ghost"})
    assert heads.shape == (2, 5, 4, 5, 4)
    inner = heads[:, 1:-1, 1:-1].sum((-1, -2))
    np.testing.assert_allclose(inner, 1, atol=1e-6)
    added = attention(op, x) - np.repeat(heads, 6, 0)
    np.testing.assert_allclose(added[7, 2, 1, 1:4, 0:3], op.ghost_head[0, 7].numpy(force=True),
                               atol=1e-6)  # fmt: skip


def test_a_window_stops_at_its_edge_and_a_neighborhood_does_not():
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    reach = {}
    for name in ("window", "neighboring"):
        weights = attention(wide(ops.UnifiedSpatialOp(8, 2, **POINTS[name])), x)
        reach[name] = {tuple(map(int, at)) for at in np.argwhere(weights[0, 2, 2] != 0)}
    assert reach["window"] == {(y, x) for y in range(3) for x in range(3)}
    assert reach["neighboring"] == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}


def test_effective_areas_by_hand():
    weights = np.zeros((3, 1, 2, 1, 2), np.float32)
    weights[0] = 0.5
    weights[1, 0, 0, 0, 0] = weights[1, 0, 1, 0, 0] = -2
    weights[2, 0, 0] = [[3, -1]]
    # Two pixels alike; one alone; (3 + 1)**2 / (9 + 1), and a reader of nothing left out.
    np.testing.assert_allclose(effective_area(weights), [2, 1, 1.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "shape", "without", "words"),
    [
        (ops.Involution(8, group_channels=4), (1, 6, 6, 8), (), "Involution has no weights"),
        (ops.DwConv(8), (2, 6, 6, 8), (), r"x \(2, 6, 6, 8\): give one map"),
        (ops.DwConv(8), (1, 80, 80, 8), (), "at most 4096 pixels"),
        (ops.DwConv(8), (1, 6, 6, 8), ("ghost",), "no parts of DwConv; it has none"),
        (ops.UnifiedSpatialOp(8, 2, **POINTS["window"]), (1, 7, 6, 8), (), "not whole windows"),
        (ops.UnifiedSpatialOp(8, 2, **POINTS["window"]), (1, 6, 6, 8), ALL, "no term is chosen"),
        (ops.UnifiedSpatialOp(8, 2, **POINTS["shifted"]), (1, 3, 6, 8), (), "shifted by 0 and 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(op, shape, without, words):
    with pytest.raises(ValueError, match=words):
        attention(op, torch.zeros(shape), without=without)


def test_inputs_are_what_each_operator_of_a_network_reads():
    network = micro()
    images = torch.randn(2, 3, 28, 28)
    found = inputs(network, images)
    assert {name: tuple(x.shape) for name, (_, x) in found.items()} == {
        "layers.0.blocks.0.attn": (2, 14, 14, 16),
        "layers.0.blocks.1.attn": (2, 14, 14, 16),
        "layers.1.blocks.0.attn": (2, 7, 7, 32),
    }
    for name, (op, _) in found.items():
        assert op is network.get_submodule(name)
        assert not op._forward_pre_hooks
    op, x = found["layers.0.blocks.0.attn"]
    stem = network.layers[0].downsample(network.patch_embed(images))
    torch.testing.assert_close(x, network.layers[0].blocks[0].norm1(stem))


def micro():
    settings = study.load_study("table4", only="swin").variants["swin"]
    return from_settings(settings.model, image_size=28, num_classes=10).eval()


def test_a_run_gives_its_network_back(tmp_path):
    (run,) = study.load_study("table4", only="swin").runs()
    folder = RunDir(tmp_path / run.name)
    folder.create(run.settings, variant=run.variant)
    with pytest.raises(ConfigError, match="no such file of weights"):
        load_run(folder)
    network = micro()
    save_weights(folder, network.state_dict())
    images = torch.randn(1, 3, 28, 28)
    again = load_run(folder)
    assert not again.training
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
