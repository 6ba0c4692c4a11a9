"""ResNets around an operator: timm's own with convolutions, the released ones with filters."""

import pytest
import timm
import torch
from networks import on_meta

from lsa_study.config.operators import ConvOp, DdfOp
from lsa_study.config.settings import Model
from lsa_study.measure import count
from lsa_study.models import build_model, from_settings
from lsa_study.models.resnet import SIZES, Resnet
from lsa_study.ops import DDF

PARAMETERS = {"ddf_resnet50": 16_843_748, "ddf_resnet101": 28_146_912, "ddf_resnet152": 37_462_900}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_name_has_the_released_parameters(name):
    network = on_meta(build_model, name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"reduction": 0.3}, 18_091_484),
        ({"reduction": 0.4}, 19_352_663),
        ({"combine": "add"}, 16_843_748),
    ],
)
def test_settings_of_the_filters_reach_them(changes, parameters):
    network = on_meta(build_model, "ddf_resnet50", **changes)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_operations_are_those_of_the_article():
    """2.298 and 4.1 G are printed for DDF; 0.8 and 1.2 % more than are counted here."""
    found = count(on_meta(build_model, "ddf_resnet50"), (3, 224, 224))
    assert round(found.macs_raw / 1e9, 3) == 2.254
    assert round(found.macs / 1e9, 3) == 2.279
    found = count(on_meta(build_model, "ddf_resnet101"), (3, 224, 224))
    assert round(found.macs / 1e9, 3) == 4.051
    base = Model(backbone="resnet50", op=ConvOp(), drop_path=0.0)
    found = count(on_meta(from_settings, base, image_size=224, num_classes=1000), (3, 224, 224))
    assert (found.params, round(found.macs / 1e9, 3)) == (25_557_032, 4.089)


@pytest.mark.parametrize("training", [False, True])
def test_with_convolutions_it_is_timms(training):
    """The same names, the same answers and gradients; in training by the statistics of a batch."""
    theirs = timm.create_model("resnet50", num_classes=5, zero_init_last=False).double()
    base = Model(backbone="resnet50", op=ConvOp(), drop_path=0.0)
    ours = from_settings(base, image_size=64, num_classes=5).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 96, dtype=torch.float64)
    found, wanted = (network.train(training)(x) for network in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    slopes = [
        torch.autograd.grad(y.square().sum(), network.layer1[0].conv2.weight)[0]
        for y, network in ((found, ours), (wanted, theirs))
    ]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)


def test_initialisation_is_the_released_one():
    torch.manual_seed(0)
    network = build_model("ddf_resnet50", num_classes=3)
    block = network.layer2[1]
    pack = block.conv2
    assert not block.bn3.weight.any()
    for conv in (block.conv1, pack.spatial_branch[0], pack.channel_branch[3], network.conv1):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    bound = pack.channel_branch[3].in_channels ** -0.5
    assert bound / 2 < pack.channel_branch[3].bias.abs().max().item() <= bound
    assert pack.channel_branch[4].std.std().item() == pytest.approx(2**0.5 / 3, rel=0.1)


def test_strides_stand_in_the_layers():
    network = on_meta(build_model, "ddf_resnet50")
    layers = [part for part in network.modules() if isinstance(part, DDF)]
    strided = [part.dim for part in layers if part.stride == 2]
    assert (len(layers), strided) == (16, [128, 256, 512])


@pytest.mark.parametrize("name", SIZES)
def test_any_image_passes(name):
    with torch.device("meta"):
        network = Resnet(SIZES[name], DdfOp(kernel_size=3, shell="none"), num_classes=4)
        assert network(torch.empty(2, 3, 45, 28)).shape == (2, 4)


def test_all_parameters_of_a_small_one_learn():
    op = DdfOp(kernel_size=3, shell="none")
    network = Resnet(SIZES["resnet_micro"], op, img_size=28, num_classes=4, zero_init_last=False)
    network(torch.randn(4, 3, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_stochastic_depth_grows_to_the_last_block():
    network = Resnet(SIZES["resnet_mini"], ConvOp(), drop_path_rate=0.3)
    rates = [part.drop_prob for part in network.modules() if hasattr(part, "drop_prob")]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])


def test_maps_of_the_stages():
    model = on_meta(build_model, "ddf_resnet50", features_only=True)
    assert model.feature_info.channels() == [64, 256, 512, 1024, 2048]
    with torch.no_grad():
        maps = model(torch.empty(1, 3, 64, 64, device="meta"))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]


@pytest.mark.parametrize("op", [ConvOp(), DdfOp()], ids=["conv", "ddf"])
def test_channels_lie_innermost_and_gradients_as_their_weights(op):
    torch.manual_seed(0)
    network = Resnet(SIZES["resnet_micro"], op, img_size=28, num_classes=10)
    seen = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(4, 3, 28, 28)
    network(images).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    # Fused optimisers walk through both by their order in memory.
    assert all(parameter.grad.is_contiguous() for parameter in network.parameters())
