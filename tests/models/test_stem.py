"""Stems against timm's, and in every backbone that takes one."""

import pytest
import timm
import torch
from networks import on_meta

from lsa_study.config.networks import (
    OWN_STEMS,
    PATCHES,
    STEM_STRIDE,
    Stem,
    has_batch_norms,
    own_stem,
    patch_of,
)
from lsa_study.config.operators import AttentionOp, OutlookOp
from lsa_study.config.settings import Model
from lsa_study.config.study import load_study
from lsa_study.measure import count
from lsa_study.models import ConvStem, build_model, from_settings
from lsa_study.models.deit import Deit, DeitSize
from lsa_study.models.operators import LSA
from lsa_study.models.registry import FAMILIES
from lsa_study.models.swin import Swin
from lsa_study.models.volo import PATCH, Volo


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def released(golden):
    arrays = golden.with_prefix("w.") | golden.with_prefix("b.")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def held(golden, module, layout=lambda y: y):
    """Output and input gradient to 1e-9; the files lack batch norm's count of steps.

    Those that are called after training were made in evaluation too: all their numbers are of
    running statistics. Statistics of a batch are held by hand below.
    """
    missing, other = module.load_state_dict(released(golden), strict=False)
    assert not other
    assert all(name.endswith("num_batches_tracked") for name in missing)
    module.eval()
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = layout(module(x))
    torch.testing.assert_close(y, torch.from_numpy(golden["y"]), rtol=0, atol=1e-9)
    y.backward(torch.from_numpy(golden["gy"]))
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["gx"]), rtol=0, atol=1e-9)


@pytest.mark.golden("convstem_*")
def test_a_stem_is_timms(golden):
    meta, sides = golden.meta, golden["x"].shape[2:]
    stem = ConvStem(
        img_size=tuple(sides), patch_size=meta["patch"], embed_dim=meta["embed"],
        hidden=meta["hidden"], norm=meta["norm"], act=meta["act"],
    ).double()  # fmt: skip
    rows, columns = (side // meta["patch"] for side in sides)

    def as_map(tokens):
        assert tokens.shape == (2, rows * columns, meta["embed"])
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    held(golden, stem, as_map)


@pytest.mark.golden("deit_*")
def test_deit_behind_a_conv_stem(golden):
    meta = golden.meta
    size = DeitSize(meta["embed_dim"], meta["num_heads"], meta["depth"], meta["patch_size"])
    stem = Stem(
        kind="conv", hidden=meta["hidden"], norm="bn" if meta["norm"] else "none",
        act="relu" if meta["act"] else "none",
    )  # fmt: skip
    network = Deit(
        size, AttentionOp(), stem=stem, img_size=tuple(meta["img_size"]),
        num_classes=meta["num_classes"],
    )  # fmt: skip
    held(golden, network.double())


def test_a_stem_by_hand():
    """Every layer in its place, number by number."""
    stem = ConvStem(img_size=8, patch_size=4, embed_dim=6, hidden=5).double()
    stem.conv[1].weight.data.uniform_(0.5, 1.5)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    y = x
    for at, (kernel, stride) in zip((0, 3, 6), ((7, 2), (3, 1), (3, 1)), strict=True):
        conv, norm = stem.conv[at], stem.conv[at + 1]
        assert conv.bias is None
        padded = torch.nn.functional.pad(y, [kernel // 2] * 4)
        y = torch.nn.functional.conv2d(padded, conv.weight, stride=stride)
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (
            y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        y = (y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)
    patches = y.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, rows, columns, 2, 2)
    want = torch.einsum("bcyxij,ecij->byxe", patches, stem.proj.weight) + stem.proj.bias
    torch.testing.assert_close(stem(x), want.flatten(1, 2))


def test_volos_own_stem_is_this_one():
    """The same output of the same weights; a run with either has one identity."""
    ours = ConvStem(img_size=32, patch_size=8, embed_dim=12, flatten=False)
    theirs = timm.models.volo.PatchEmbed(
        img_size=32, stem_conv=True, stem_stride=2, patch_size=8, embed_dim=12
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))
    plain, written = (
        Model(backbone="volo_d1", op=OutlookOp(), drop_path=0.1, stem=stem)
        for stem in (None, Stem(kind="conv"))
    )
    first, second = (
        on_meta(from_settings, model, image_size=32, num_classes=3) for model in (plain, written)
    )
    assert str(first) == str(second)


COUNTS = {
    "tiny": (5_717_416, 6_439_912, 1.254, 2.422),
    "small": (22_050_664, 23_412_136, 4.599, 5.892),
    "base": (86_567_656, 89_207_080, 17.564, 19.108),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_and_operations_of_deit(size):
    patchify, conv, macs, conv_macs = COUNTS[size]
    plain = Model(backbone=f"deit_{size}", op=AttentionOp(), drop_path=0.1)
    found = count(on_meta(from_settings, plain, image_size=224, num_classes=1000), (3, 224, 224))
    assert (found.params, round(found.macs / 1e9, 3)) == (patchify, macs)
    for name, less in (("conv_bn_relu", 0), ("conv_bn", 0), ("conv_relu", 384), ("conv", 384)):
        network = on_meta(build_model, f"deit_{size}_{name}")
        found = count(network, (3, 224, 224))
        assert (found.params, round(found.macs / 1e9, 3)) == (conv - less, conv_macs)


def test_parameters_of_a_stem_for_patches_of_4():
    stem = ConvStem(patch_size=4, embed_dim=96)
    assert sum(p.numel() for p in stem.parameters()) == 108_192


def test_a_swin_with_a_conv_stem_of_its_own():
    """The same as a stem that is asked for; and it can have the published one."""
    stems = (None, Stem(kind="conv", hidden=32), Stem(kind="patchify"))
    own, same, patchify = (
        Model(backbone="swin_mini_conv", op=LSA, drop_path=0.0, stem=stem) for stem in stems
    )
    networks = [from_settings(one, image_size=28, num_classes=10) for one in (own, same, patchify)]
    # 3 x 7 x 7 and twice 32 x 3 x 3 to 32, three batch norms, 32 to 32 and its bias; 3 x 2 x 2.
    conv, one = 4704 + 2 * 9216 + 3 * 64 + 1056, 416
    plain = Model(backbone="swin_mini_p2", op=LSA, drop_path=0.0)
    rest = parameters(from_settings(plain, image_size=28, num_classes=10)) - one
    assert [*map(parameters, networks)] == [rest + conv, rest + conv, rest + one]
    assert has_batch_norms(own.backbone, own.op, own.stem)
    assert not has_batch_norms(patchify.backbone, patchify.op, patchify.stem)
    settings = load_study("table1", tier="toy").variants["swin"]
    first, second, third = (
        settings.model_copy(update={"model": one}) for one in (own, same, patchify)
    )
    assert first.identity() == second.identity() != third.identity()


@pytest.mark.parametrize("kind", ["patchify", "conv"])
@pytest.mark.parametrize(
    ("backbone", "op", "side"),
    [("swin_micro", LSA, 28), ("volo_d1", OutlookOp(), 32), ("deit_micro", AttentionOp(), 28)],
)
def test_every_backbone_takes_it(backbone, op, side, kind):
    model = Model(backbone=backbone, op=op, drop_path=0.1, stem=Stem(kind=kind))
    network = from_settings(model, image_size=side, num_classes=3)
    convolutions = [
        part for part in network.patch_embed.modules() if type(part).__name__ == "Conv2d"
    ]
    assert len(convolutions) == (4 if kind == "conv" else 1)
    out = network.eval()(torch.randn(2, 3, side, side))
    assert out.shape == (2, 3)
    out.sum().backward()
    assert all(part.weight.grad is not None for part in convolutions)


def test_the_settings_know_the_patches_and_stems_of_the_networks():
    for kind, sizes in FAMILIES.items():
        for name, size in sizes.items():
            patch = PATCH if kind is Volo else getattr(size, "patch", None)
            if patch is not None:
                assert patch_of(name) == patch
            if kind is Volo:
                own = OWN_STEMS.get(name, OWN_STEMS["volo"])
                assert own == Stem(kind="conv", hidden=size.stem_dim)
            if kind is Swin:
                assert own_stem(name) == size.stem
    assert PATCHES.keys() >= OWN_STEMS.keys() - {"volo_d5"}
    assert ConvStem(patch_size=4, embed_dim=2).conv[0].stride[0] == STEM_STRIDE


def test_decay_and_initialisation_are_timms():
    network = build_model("deit_tiny_conv_bn_relu")
    assert network.no_weight_decay() == timm.create_model("deit_tiny_patch16_224").no_weight_decay()
    first, *_ = network.patch_embed.conv
    bound = (3 * 49) ** -0.5  # torch's own of a convolution
    assert first.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert network.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 5}, "patch_size=5: the first convolution halves the image; give an even"),
        ({"patch_size": 0}, "patch_size=0: the first convolution halves the image; give an even"),
        ({"patch_size": -4}, "patch_size=-4: the first convolution halves the image; give an even"),
        ({"img_size": 30, "patch_size": 4}, "img_size=30 is not whole patches of 4 x 4"),
        ({"img_size": (32, 30), "patch_size": 4}, r"img_size=\(32, 30\) is not whole patches"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ConvStem(embed_dim=8, **options)


def test_images_of_another_size():
    stem = ConvStem(img_size=16, patch_size=4, embed_dim=8, hidden=4, strict_img_size=False)
    assert stem(torch.randn(1, 3, 8, 20)).shape == (1, 10, 8)
    with pytest.raises(AssertionError, match="6 x 8 pixels are not whole patches of 4 x 4"):
        stem(torch.randn(1, 3, 6, 8))
    stem.set_input_size(img_size=24)
    assert stem.grid_size == (6, 6)
    with pytest.raises(ValueError, match="patch_size=8: cannot change once built"):
        stem.set_input_size(patch_size=8)
    strict = ConvStem(img_size=16, patch_size=4, embed_dim=8, hidden=4)
    with pytest.raises(AssertionError, match=r"8 x 8 pixels, built for \(16, 16\)"):
        strict(torch.randn(1, 3, 8, 8))
