"""The networks by name: parameter counts to the unit, timm, and refusals."""

import subprocess
import sys

import pytest
import timm
import torch
from networks import on_meta, shallow  # noqa: F401  # a fixture

from lsa_study.config.operators import DwConvOp, DwNetOp, UnifiedOp
from lsa_study.config.settings import Model
from lsa_study.errors import ConfigError
from lsa_study.models import MODELS, TIMM_MODELS, build_model, from_settings
from lsa_study.models.blocks import ChannelsLastBatchNorm, SpatialBlock
from lsa_study.ops import UnifiedSpatialOp

PARAMETERS = {
    "lsa_swin_tiny": 28_288_354,
    "lsa_swin_small": 49_606_258,
    "lsa_swin_base": 87_768_224,
    "lsa_swin_large": 196_532_476,
    "net1_swin_tiny": 28_265_032,
    "net2_swin_tiny": 26_850_376,
    "net3_swin_tiny": 26_850_376,
    "net4_swin_tiny": 23_966_434,
    "net5_swin_tiny": 29_757_640,
    "net6_swin_tiny": 29_780_962,
    "net7_swin_tiny": 29_780_962,
    "swin_tiny_n": 28_277_554,
    "net6_swin_tiny_n": 29_078_962,
    "net7_swin_tiny_n": 29_078_962,
    "elsa_swin_tiny": 29_140_978,
    "elsa_swin_tiny_noghost": 28_999_858,
    "elsa_swin_small": 52_874_626,
    "elsa_swin_base": 92_682_464,
    "elsa_swin_large": 205_014_556,
    "dwconv_swin_tiny": 24_172_744,
    "dwconv_eq4_swin_tiny": 24_163_912,
    "ddwconv_swin_tiny": 51_131_752,
    "ddf_swin_tiny": 46_020_160,
    "ddf_resnet50": 16_843_748,
    "ddf_resnet101": 28_146_912,
    "ddf_resnet152": 37_462_900,
    **{
        f"deit_{size}_{stem}": count - (0 if "bn" in stem else 384)
        for size, count in (("tiny", 6_439_912), ("small", 23_412_136), ("base", 89_207_080))
        for stem in ("conv", "conv_relu", "conv_bn", "conv_bn_relu")
    },
    # Three convolutions of 64 channels with their batch norms, and a last one a patch of 4 wide.
    **{
        f"lsa_swin_{size}_{stem}": count + 83_520 + 208 * dim - (0 if "bn" in stem else 384)
        for size, dim, count in (
            ("tiny", 96, 28_288_354),
            ("small", 96, 49_606_258),
            ("base", 128, 87_768_224),
            ("large", 192, 196_532_476),
        )
        for stem in ("conv", "conv_relu", "conv_bn", "conv_bn_relu")
    },
    **{
        f"volo_{size}_{stem}": count - less
        for size, count, without, norms in (
            ("d1", 26_632_040, 83_520 + 832 * 192, 384),
            ("d2", 58_678_336, 83_520 + 832 * 256, 384),
            ("d3", 86_325_072, 83_520 + 832 * 256, 384),
            ("d4", 192_961_520, 83_520 + 832 * 384, 384),
            ("d5", 295_455_584, 314_496 + 1856 * 384, 768),  # 128 channels
        )
        for stem, less in (
            ("patchify", without),
            ("conv", norms),
            ("conv_relu", norms),
            ("conv_bn", 0),
        )
    },
    "elsa_volo_d1": 27_044_712,
    "elsa_volo_d2": 59_540_320,
    "elsa_volo_d3": 87_474_384,
    "elsa_volo_d4": 194_507_760,
    "elsa_volo_d5": 297_774_944,
    "volo_d1": 26_632_040,
    "volo_d2": 58_678_336,
    "volo_d3": 86_325_072,
    "volo_d4": 192_961_520,
    "volo_d5": 295_455_584,
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [*MODELS, *TIMM_MODELS])
def test_every_name_has_its_parameters(name):
    assert parameters(on_meta(build_model, name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("lsa", {"1": 28_267_060, "1x": 28_288_354, "2x": 28_311_676, "C": 29_011_336}),
        ("dwconv", {"1": 23_948_116, "1x": 23_954_290, "2x": 23_961_052, "C": 24_163_912}),
    ],
)
def test_heads_of_figure_2(kind, counts):
    for heads, want in counts.items():
        op = (
            UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window", heads=heads)
            if kind == "lsa"
            else DwConvOp(heads=heads)
        )
        settings = Model(backbone="swin_tiny", op=op, drop_path=0.1)
        model = on_meta(from_settings, settings, image_size=224, num_classes=1000)
        assert parameters(model) == want, heads


@pytest.mark.parametrize("application", ["window", "neighboring"])
def test_the_scale_of_products_reaches_every_operator(application):
    wanted = {None: {32**-0.5}, 0.25: {0.25}}
    for scale, want in wanted.items():
        op = UnifiedOp(terms=("qk", "q_rk"), norm="softmax", application=application, scale=scale)
        settings = Model(backbone="swin_tiny", op=op, drop_path=0.1)
        model = on_meta(from_settings, settings, image_size=224, num_classes=1000)
        parts = [part for part in model.modules() if isinstance(part, UnifiedSpatialOp)]
        assert {part.scale for part in parts} == want


@pytest.mark.parametrize(
    ("op", "same", "count"),
    [
        (DwConvOp(shell="dwnet"), DwNetOp(), 24_172_744),
        (DwNetOp(shell="linear"), DwConvOp(), 24_163_912),
        (DwNetOp(kind="ddwconv", shell="linear"), None, 51_122_920),
    ],
)
def test_a_layer_in_another_shell(op, same, count):
    """Of two ways to write one network both have the same parameters, by name."""
    settings = Model(backbone="swin_tiny", op=op, drop_path=0.1)
    model = on_meta(from_settings, settings, image_size=224, num_classes=1000)
    assert parameters(model) == count
    norm = ChannelsLastBatchNorm if op.shell == "dwnet" else torch.nn.LayerNorm
    blocks = [part for part in model.modules() if isinstance(part, SpatialBlock)]
    assert all(type(block.norm2) is norm for block in blocks)
    if same is not None:
        asked = settings.model_copy(update={"op": same})
        other = on_meta(from_settings, asked, image_size=224, num_classes=1000)
        shapes = [{k: t.shape for k, t in m.state_dict().items()} for m in (model, other)]
        assert shapes[0] == shapes[1]


def test_larger_windows_for_larger_images():
    large = {"img_size": 384, "window_size": 12}
    assert parameters(on_meta(build_model, "lsa_swin_large", **large)) == 196_735_516
    assert parameters(on_meta(build_model, "elsa_swin_large", **large)) == 205_049_116


def test_both_ghost_matrices():
    """The count that pins the article's Swin-T to one ghost matrix: two would be 29.3 M."""
    assert parameters(on_meta(build_model, "elsa_swin_tiny", ghost_mul=1.0)) == 29_282_098


ORDERS = [
    "import timm, lsa_study",
    "import lsa_study, importlib.util; assert importlib.util.find_spec('timm')\nimport timm",
    "import lsa_study.ops, timm",
]


IN_ANY_ORDER = """
import os, sys, torch, torchvision, huggingface_hub
torch.nn.init.trunc_normal_(torch.empty(2, device="meta"))
for order in sys.argv[1:]:
    if os.fork() == 0:
        exec(order)
        with torch.device("meta"):
            print(type(timm.create_model("net7_swin_tiny", num_classes=3)).__name__)
        print(type(timm.__spec__.loader).__name__, timm.__loader__ is timm.__spec__.loader)
        sys.exit()
    os.wait()
"""


def test_timm_knows_the_names_in_any_order():
    """Each in a process of its own; they share what takes seconds to import, neither of the two."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ANY_ORDER, *ORDERS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["Swin", "SourceFileLoader", "True"] * len(ORDERS), done.stderr


def test_the_command_line_stays_free_of_torch():
    code = "import lsa_study.cli, sys; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_timm_builds_the_same_network():
    options = {"num_classes": 5, "drop_path_rate": 0.3, "heads": "2x", "norm": "filter_norm"}
    torch.manual_seed(0)
    ours = build_model("net7_swin_tiny", **options)
    torch.manual_seed(0)
    theirs = timm.create_model("net7_swin_tiny", **options)
    assert str(ours) == str(theirs)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert "heads=6" in str(ours)
    assert "filter_norm" in str(ours)


def test_features_of_every_stage():
    model = build_model("elsa_swin_tiny", features_only=True, img_size=64)
    maps = model(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 16, 96), (8, 8, 192), (4, 4, 384), (2, 2, 768),
    ]  # fmt: skip
    assert model.feature_info.channels() == [96, 192, 384, 768]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["net7_swin_tiny", "ddf_swin_tiny", "elsa_volo_d1"])
def test_a_batch_of_0_gives_no_logits_and_gradients_of_zero(name):
    model = build_model(name, img_size=32, num_classes=5)
    images = torch.zeros(0, 3, 32, 32, requires_grad=True)
    logits = model(images)
    assert logits.shape == (0, 5)
    logits.sum().backward()
    assert images.grad.shape == images.shape
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_another_head():
    model = build_model("net4_swin_tiny", img_size=32)
    model.reset_classifier(7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 768)


def test_no_weights_to_download():
    with pytest.raises(RuntimeError, match="pretrained"):
        build_model("net1_swin_tiny", pretrained=True)
    assert timm.get_pretrained_cfg("elsa_swin_tiny").crop_pct == 0.9


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("net7_swin_tinny", {}, "did you mean net7_swin_tiny"),
        ("vgg16", {}, "not one of the study's; known: lsa_swin_tiny"),
        ("dwconv_eq4_swin_tiny", {"window_size": 12}, "window_size=12: it has no window"),
        ("elsa_swin_tiny", {"heads": "3x"}, "elsa_swin_tiny: heads"),
        ("swin_tiny_n", {"size": 6}, "odd"),
    ],
)
def test_refusals(name, options, words):
    with pytest.raises(ConfigError, match=words):
        build_model(name, **options)
