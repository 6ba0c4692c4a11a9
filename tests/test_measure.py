"""Counting: torch's own counter as a witness, sums by hand, and refusals.

The article's figures are in test_costs.py.
"""

import time

import pytest
import timm
import torch
from networks import on_meta, shallow  # noqa: F401  # a fixture
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lsa_study import measure, ops
from lsa_study.config.operators import ElsaOp
from lsa_study.config.settings import Model
from lsa_study.measure import Count, count
from lsa_study.models import MODELS, build_model, from_settings

IMAGE = (1, 3, 224, 224)


def by_torch(module, shape):
    """Half of what torch counts while the module runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [n for n in MODELS if "tiny" in n and "elsa" not in n])
@pytest.mark.usefixtures("shallow")
def test_torch_counts_the_same_products(name):
    """Of the definition: faster implementations of neighborhoods compute more than they need."""
    has_one = "implementation" in type(MODELS[name].op).model_fields
    options = {"implementation": "reference"} if has_one else {}
    model = on_meta(build_model, name, img_size=64, **options)
    found = count(model, (1, 3, 64, 64))
    assert found.macs_raw == by_torch(model, (1, 3, 64, 64))
    assert (found.macs == found.macs_raw) == ("ddf" not in name)


def eq4(*terms, application="window", size=5, shift=0, **options):
    return ops.UnifiedSpatialOp(
        12, 3, terms=terms, norm="softmax", application=application, size=size, shift=shift,
        implementation="reference", **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: eq4("qk", "bias", shift=2),
        lambda: eq4("qk"),
        lambda: eq4("qk", "bias", size=(4, 5)),
        lambda: eq4("q_rk", "rq_k", "bias"),
        lambda: eq4("bias"),
        lambda: eq4("qk", "q_rk", "rq_k", "bias", shift=2),
        lambda: eq4("qk", "q_rk", "rq_k", "bias", application="neighboring"),
        lambda: eq4("rq_k", application="neighboring", qkv_bias=False),
        lambda: ops.DwConv(12, num_heads=3, kernel_size=5),
        lambda: ops.DepthwiseConv(12, kernel_size=5),
        lambda: ops.DynamicDwConv(12, kernel_size=5),
        lambda: ops.DDF(12, num_heads=3, kernel_size=5),
        lambda: ops.DDF(12, kernel_size=3, stride=2, dilation=2),
        lambda: ops.DDF(12, kernel_size=5, branches="channel"),
        lambda: ops.DDFUp(12, scale=3),
        lambda: ops.Conv(12, stride=2),
        lambda: ops.Involution(12, kernel_size=5, group_channels=4),
        lambda: ops.OutlookAttention(12, 3),
    ],
)
@pytest.mark.parametrize("size", [(10, 15), (7, 11), (3, 4)])
def test_torch_counts_the_same_for_operators(build, size):
    """Whole windows, padded ones and a map below the area; two images at once."""
    op, shape = on_meta(build), (2, *size, 12)
    assert count(op, shape).macs_raw == by_torch(op, shape)


@pytest.mark.parametrize("variant", ["conv", "eq7"])
@pytest.mark.parametrize("ghosts", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_elsa_by_hand(variant, ghosts):
    op = ops.ELSA(
        12, 3, variant=variant, kernel_size=5, group_width=4, ghost_mul=ghosts[0],
        ghost_add=ghosts[1],
    )  # fmt: skip
    found = count(op, (2, 6, 9, 12))
    if variant == "conv":  # 8 channels of q and k, groups of 4, 25 taps, 3 heads
        per_pixel = 12 * (8 + 8 + 12) + 8 * 4 * 25 + 8 * 3 * 25 + 12 * 12
    else:
        per_pixel = 12 * 36 + 2 * 25 * 12 + 12 * 12
    assert found.macs_raw == 2 * 6 * 9 * per_pixel
    assert found.macs - found.macs_raw == 2 * 6 * 9 * 25 * 12 * (1 + sum(ghosts))


def test_elsa_by_torch():
    """Torch sees the added matrix, which runs as a convolution, but not the per-pixel filters."""
    op = on_meta(ops.ELSA, 12, 3, kernel_size=5, group_width=4)
    shape = (1, 6, 9, 12)
    assert by_torch(op, shape) == count(op, shape).macs_raw + 6 * 9 * 25 * 12


def test_ddf_by_hand():
    found = count(ops.DDF(10, num_heads=2, kernel_size=5), (3, 6, 9, 10))
    pixels = 6 * 9
    assert found.macs_raw == 3 * (pixels * 10 * 2 * 25 + 10 * 2 + 2 * 10 * 25)
    assert found.macs - found.macs_raw == 3 * pixels * 2 * 25 * 10


@pytest.mark.parametrize(("branches", "steps"), [("both", 2), ("spatial", 1), ("channel", 0)])
def test_strided_ddf_by_hand(branches, steps):
    """Spatial filters are made, combined and applied at a quarter of the pixels."""
    found = count(ops.DDF(10, kernel_size=3, stride=2, branches=branches), (1, 6, 8, 10))
    pixels = 3 * 4
    made = pixels * 10 * 9 * (branches != "channel")
    made += (10 * 2 + 2 * 10 * 9) * (branches != "spatial")
    alone = pixels * 9 * 10 * (branches == "channel")
    assert found.macs_raw == made + alone
    assert found.macs - found.macs_raw == steps * pixels * 9 * 10


def test_ddf_up_by_hand():
    """Table 6 of its article: 12 K^2 C for each pixel that was there before."""
    found = count(ops.DDFUp(10, kernel_size=3, guide_dim=None), (1, 5, 6, 10))
    assert found.macs - found.macs_raw == 4 * 2 * 30 * 9 * 10


def test_involution_by_hand():
    """With stride 2, filters are made and applied at a quarter of the pixels."""
    found = count(ops.Involution(16, kernel_size=5, group_channels=8, stride=2), (1, 6, 8, 16))
    pixels = 3 * 4
    assert found.macs_raw == pixels * (16 * 4 + 4 * 2 * 25)
    assert found.macs - found.macs_raw == pixels * 25 * 16


@pytest.mark.parametrize(
    "name", ["volo_d1_224", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "resnet50"]
)
def test_networks_of_timm(name):
    model = on_meta(timm.create_model, name)
    found = count(model, IMAGE)
    assert found.macs == found.macs_raw == by_torch(model, IMAGE)
    assert found.params == sum(p.numel() for p in model.parameters())


def test_counting_leaves_everything_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert count(model, (3, 8, 8)) == Count(4 * 27 + 4 + 8, 36 * 4 * 27, 36 * 4 * 27)
    assert [part.training for part in model] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.device.type == "cpu"
    assert not model[0]._forward_hooks


def test_every_run_counts_quickly():
    settings = Model(backbone="swin_micro", op=ElsaOp(), drop_path=0.0)
    model = from_settings(settings, image_size=28, num_classes=10)
    count(model, (3, 28, 28))
    start = time.process_time()
    count(model, (3, 28, 28))
    assert time.process_time() - start < 0.3


def test_a_part_without_formula_is_refused():
    with pytest.raises(ValueError, match=r"1 is a Bilinear with parameters and no formula"):
        count(nn.Sequential(nn.ReLU(), nn.Bilinear(2, 2, 2)), (1, 2))


def test_a_part_that_is_never_reached_is_refused():
    network = nn.ModuleDict({"used": nn.Identity(), "unused": nn.Linear(2, 2)})
    network.forward = lambda x: network["used"](x)
    with pytest.raises(ValueError, match=r"unused \(Linear\) cost nothing"):
        count(network, (1, 2))


def test_an_operator_that_counts_nothing_is_refused(monkeypatch):
    monkeypatch.setitem(measure.FORMULAS, ops.DwConv, lambda *_: (0, 0))
    with pytest.raises(ValueError, match=r"DwConv \(DwConv\) cost nothing"):
        count(ops.DwConv(4), (1, 5, 5, 4))


def test_an_operator_that_insists_on_its_fused_kernel_is_counted():
    """The count needs no kernel, and leaves the wish as it was."""
    options = {"norm": "softmax", "application": "neighboring", "size": 5}
    plain, fused = (
        ops.UnifiedSpatialOp(12, 3, terms={"qk"}, implementation=way, **options)
        for way in ("auto", "fused")
    )
    assert count(fused, (1, 6, 9, 12)) == count(plain, (1, 6, 9, 12))
    assert fused.implementation == "fused"
