"""The study's networks as timm's users meet them, at every size; timm's own weights in them."""

import pytest
import timm
import torch
from networks import on_meta, shallow  # noqa: F401  # a fixture
from timm.data import resolve_model_data_config

from lsa_study.config.operators import OutlookOp
from lsa_study.config.settings import Model
from lsa_study.models import MODELS, TIMM_MODELS, build_model, from_settings, load_official
from lsa_study.ops import UnifiedSpatialOp

NAMES = (*MODELS, *TIMM_MODELS)
LAYERS = [
    "lsa_swin_tiny", "net7_swin_tiny", "net7_swin_tiny_n", "elsa_swin_tiny", "dwconv_swin_tiny",
    "dwconv_eq4_swin_tiny", "ddwconv_swin_tiny", "ddf_swin_tiny", "elsa_volo_d1", "volo_d1",
    "ddf_resnet50", "deit_tiny_conv_bn_relu",
]  # fmt: skip
"""One network of each kind of layer and backbone; the others differ in terms, width or depth."""

PROMISED = {
    *(f"lsa_swin_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"net{number}_swin_tiny" for number in range(1, 8)),
    *("swin_tiny_n", "net6_swin_tiny_n", "net7_swin_tiny_n"),
    *(f"elsa_swin_{size}" for size in ("tiny", "small", "base", "large")),
    *("elsa_swin_tiny_noghost", "dwconv_swin_tiny", "ddwconv_swin_tiny", "ddf_swin_tiny"),
    *(f"ddf_resnet{depth}" for depth in (50, 101, 152)),
    *(
        f"deit_{size}_{stem}"
        for size in ("tiny", "small", "base")
        for stem in ("conv", "conv_relu", "conv_bn", "conv_bn_relu")
    ),
    *(
        f"lsa_swin_{size}_{stem}"
        for size in ("tiny", "small", "base", "large")
        for stem in ("conv", "conv_relu", "conv_bn", "conv_bn_relu")
    ),
    *(
        f"volo_d{number}_{stem}"
        for number in range(1, 6)
        for stem in ("patchify", "conv", "conv_relu", "conv_bn")
    ),
    *(f"elsa_volo_d{number}" for number in range(1, 6)),
    *(f"volo_d{number}" for number in range(1, 6)),
}


def test_all_promised_names_are_known_to_timm():
    assert set(NAMES) >= PROMISED
    assert set(timm.list_models()) >= set(NAMES)
    assert {name for name in MODELS if "elsa" in name} == set(timm.list_models("elsa_*"))


@pytest.mark.parametrize("name", ["elsa_swin_tiny", "elsa_volo_d1"])
def test_outputs_of_timm_are_outputs_of_ours(name):
    outputs = []
    for build in (timm.create_model, build_model):
        torch.manual_seed(3)
        model = build(name, img_size=32, num_classes=7).eval()
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            outputs.append(model(image))
    assert outputs[0].shape == (2, 7)
    assert outputs[0].abs().max() > 0
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", LAYERS)
def test_timm_builds_the_same_networks(name):
    theirs, ours = on_meta(timm.create_model, name), on_meta(build_model, name)
    assert str(theirs) == str(ours)
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("side", [224, 384, 448, 512])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("shallow")
@torch.no_grad()
def test_every_size_of_the_article_passes(name, side):
    """Sizes of one family differ in width and depth alone."""
    model = on_meta(build_model, name, img_size=side)
    assert model(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "count", "windows"),
    [("lsa_swin_large", 196_735_516, [12] * 4), ("elsa_swin_large", 205_049_116, [12])],
)
@torch.no_grad()
def test_window_of_12_at_384_pixels(name, count, windows):
    """All stages of Swin-L hold windows, only the last of ELSA's."""
    model = on_meta(build_model, name, img_size=384, window_size=12)
    assert sum(p.numel() for p in model.parameters()) == count
    held = [stage.blocks[0].attn for stage in model.layers]
    assert [op.size for op in held if isinstance(op, UnifiedSpatialOp)] == windows
    assert model(torch.empty(1, 3, 384, 384, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("side", [112, 144])
def test_a_window_of_12_answers_as_timms(side):
    """Maps of 28 and 36 pixels: padded windows and whole ones."""
    options = {"img_size": side, "window_size": 12, "num_classes": 5}
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **options).double().eval()
    ours = build_model("lsa_swin_tiny", **options).double().eval()
    agree(ours, theirs, "timm", side)


def agree(ours, theirs, source, side):
    """Equal logits from equal weights, large enough that biases and tables matter."""
    for name, tensor in theirs.named_parameters():
        if "table" in name or name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.5)
    load_official(ours, theirs.state_dict(), source=source)
    image = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-8)


def test_volo_of_timm_at_its_full_size():
    """Outlook attention in our VOLO, all of timm's weights, logits to 1e-8; two sources' names."""
    torch.manual_seed(0)
    theirs = timm.create_model("volo_d1_224").double().eval()
    settings = Model(backbone="volo_d1", op=OutlookOp(), drop_path=0.0)
    ours, again = (
        from_settings(settings, image_size=224, num_classes=1000).double().eval() for _ in range(2)
    )
    agree(ours, theirs, "timm", 224)
    load_official(again, theirs.state_dict(), source="volo")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_short_names_of_volo_are_timms_networks():
    """The same seed gives the same weights, so nothing but the name differs."""
    outputs = []
    for build, name in ((timm.create_model, "volo_d1_224"), (build_model, "volo_d1")):
        torch.manual_seed(0)
        model = build(name, img_size=32).eval()
        with torch.no_grad():
            outputs.append(model(torch.ones(1, 3, 32, 32)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("name", "crop", "classifier", "first"),
    [
        ("net7_swin_tiny_n", 0.9, "head.fc", "patch_embed.proj"),
        ("elsa_volo_d1", 0.96, ("head", "aux_head"), "patch_embed.conv.0"),
        ("volo_d1_patchify", 0.96, ("head", "aux_head"), "patch_embed.proj"),
        ("lsa_swin_tiny_conv", 0.9, "head.fc", "patch_embed.conv.0"),
    ],
)
def test_the_description_that_timm_keeps(name, crop, classifier, first):
    model = on_meta(build_model, name, img_size=64)
    parts = dict(model.named_modules())
    for part in (first, *([classifier] if isinstance(classifier, str) else classifier)):
        assert parts[part].weight is not None
    cfg = model.pretrained_cfg
    assert (cfg["classifier"], cfg["first_conv"]) == (classifier, first)
    data = resolve_model_data_config(model)
    assert (data["crop_pct"], data["interpolation"]) == (crop, "bicubic")
    assert data["mean"] == (0.485, 0.456, 0.406)
    assert timm.get_pretrained_cfg(name).input_size == (3, 224, 224)
    assert not timm.is_model_pretrained(name)


@pytest.mark.parametrize("name", ["elsa_swin_tiny", "elsa_volo_d1"])
def test_weights_in_a_file_come_in_as_timm_does_it(name, tmp_path):
    """Through ``pretrained_cfg_overlay``: as they are, or with a head for other classes."""
    torch.manual_seed(0)
    first = build_model(name, img_size=32, num_classes=6).eval()
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 6}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "img_size": 32}
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        same = build_model(name, num_classes=6, **options).eval()
        assert torch.equal(same(image), first(image))
        other = build_model(name, num_classes=3, **options).eval()
        assert other(image).shape == (1, 3)
        assert torch.equal(other.forward_features(image), first.forward_features(image))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("shallow")
@torch.no_grad()
def test_heads_and_features_of_every_kind(name):
    model = on_meta(build_model, name, img_size=64)
    image = torch.empty(2, 3, 64, 64, device="meta")
    model.reset_classifier(7)
    assert model.to("meta")(image).shape == (2, 7)
    model.reset_classifier(0)
    assert model.to("meta")(image).shape[0] == 2
    volo = "volo" in name
    options = {"out_indices": (0, 3)} if volo else {}
    features = on_meta(build_model, name, img_size=64, features_only=True, **options)
    first = name.startswith(("elsa_volo", "volo", "ddf_resnet", "deit"))
    channels = [m.shape[1] if first else m.shape[-1] for m in features(image)]
    assert channels == features.feature_info.channels()
    wanted = {"volo": [192, 384], "resnet": [64, 256, 512, 1024, 2048], "deit": [192] * 3}
    kind = next((kind for kind in wanted if kind in name), "")
    assert channels == wanted.get(kind, [96, 192, 384, 768])
