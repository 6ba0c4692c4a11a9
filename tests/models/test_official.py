"""Released layouts: golden tensors come through ``load_official``; what does not fit is refused."""

import argparse
import copy

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from layouts import as_released_by_elsa, as_released_by_swin

from lsa_study.config.operators import DdfOp, DwNetOp, ElsaOp
from lsa_study.config.settings import Model
from lsa_study.errors import ConfigError
from lsa_study.models import build_model, from_settings, load_official, read_checkpoint
from lsa_study.models.blocks import SpatialBlock
from lsa_study.models.resnet import Resnet, ResnetSize
from lsa_study.ops import (
    DDF,
    ELSA,
    DDFUp,
    DepthwiseConv,
    DwNetShell,
    DynamicDwConv,
    Involution,
    OutlookAttention,
    UnifiedSpatialOp,
)


def released(golden):
    """The weights of a golden file under the names of their release."""
    arrays = golden.with_prefix("w.") | golden.with_prefix("b.")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def close(got, want, name=""):
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=1e-9, err_msg=name)


def check(golden, module, source, call=lambda module, x: module(x), *, training=None):
    """Output, input gradient and the given weight gradients to 1e-9, from the released weights."""
    training = golden.name.endswith("_train") if training is None else training
    module = module.double().train(training)
    load_official(module, released(golden), source=source)
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = call(module, x)
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    gradients = {name: torch.from_numpy(a) for name, a in golden.with_prefix("gw.").items()}
    if not gradients:
        return
    # What moves their weights to ours moves their gradients too.
    assert gradients.keys() == golden.with_prefix("w.").keys()
    wanted = copy.deepcopy(module)
    load_official(wanted, released(golden) | gradients, source=source)
    for name, parameter in module.named_parameters():
        close(parameter.grad, wanted.get_parameter(name).detach().numpy(), name)


def channels_first(module, x):
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def windows_of(rows, columns):
    return lambda module, x: module(x.unflatten(1, (rows, columns))).flatten(1, 2)


def window_attention(golden, size, **options):
    return UnifiedSpatialOp(
        golden.meta["dim"], golden.meta["heads"], terms=("qk", "bias"), norm="softmax",
        application="window", size=size, **options,
    )  # fmt: skip


@pytest.mark.golden("lsa_window*")
def test_timm_window_attention(golden):
    size = tuple(golden.meta["window"])
    check(golden, window_attention(golden, size), "timm", windows_of(*size))


@pytest.mark.golden("lsa_block*")
def test_attention_of_a_swin_block(golden):
    rows, columns = golden.meta["effective_window"]
    op = window_attention(
        golden, rows if rows == columns else (rows, columns), shift=golden.meta["requested_shift"]
    )
    holder = torch.nn.Sequential()
    holder.add_module("attn", op)
    check(golden, holder, "swin")


@pytest.mark.golden("lsa_elsarepo*")
def test_window_attention_of_elsa(golden):
    check(golden, window_attention(golden, 7), "elsa", windows_of(7, 7))


def elsa_of(golden):
    meta = golden.meta
    return ELSA(
        meta["dim"], meta["heads"], kernel_size=meta["kernel"], ghost_mul=meta["lam"],
        group_width=meta["group_width"], ghost_add=meta["gamma"], scale=meta["qk_scale"],
        qkv_bias=meta.get("qkv_bias", True),
    )  # fmt: skip


@pytest.mark.golden("elsa_d*", "elsa_qkscale*")
def test_elsa(golden):
    check(golden, elsa_of(golden), "elsa")


@pytest.mark.golden("elsa_block*")
def test_elsa_block(golden):
    check(golden, SpatialBlock(golden.meta["dim"], elsa_of(golden)), "elsa")


@pytest.mark.golden("dwconv_block*", "ddwconv_block*")
def test_dwnet_layer(golden):
    meta = golden.meta
    kind = DynamicDwConv if meta["dynamic"] else DepthwiseConv
    conv = kind(meta["channels"], kernel_size=meta["kernel"])
    check(golden, DwNetShell(meta["channels"], conv), "dwnet")


@pytest.mark.golden("ddwconv_op*", "dwconv_c*")
def test_convolutions_of_dwnet(golden):
    kind = DynamicDwConv if golden.name.startswith("ddwconv") else DepthwiseConv
    kernel = 7 if golden.name.startswith("dwconv") else golden.meta["kernel"]
    check(golden, kind(golden["x"].shape[1], kernel_size=kernel), "dwnet", channels_first)


@pytest.mark.golden("ddfpack*")
def test_ddf_layer(golden):
    meta = golden.meta
    dim, heads, size = (
        (meta["dim"], meta["heads"], meta["kernel_size"])
        if "dim" in meta
        else (meta["channels"], meta["head"], meta["kernel"])
    )
    op = DDF(
        dim, num_heads=heads, kernel_size=size, combine=meta["combine"],
        reduction=meta["se_ratio"], stride=meta.get("stride", 1), dilation=meta.get("dilation", 1),
    )  # fmt: skip
    check(golden, op, "ddf", channels_first)


@pytest.mark.golden("ddfup_*")
def test_ddf_up(golden):
    """The gradient of the guide, too."""
    meta = golden.meta
    op = DDFUp(
        meta["dim"], scale=meta["scale"], kernel_size=meta["kernel_size"],
        num_heads=meta["heads"], combine=meta["combine"], reduction=meta["se_ratio"],
        guide_dim=meta["guide"],
    )  # fmt: skip
    if meta["guide"] is None:
        check(golden, op, "ddf", channels_first)
        return
    guide = torch.from_numpy(golden["guide"]).requires_grad_()

    def guided(op, x):
        return op(*(t.permute(0, 2, 3, 1) for t in (x, guide))).permute(0, 3, 1, 2)

    check(golden, op, "ddf", guided)
    close(guide.grad, golden["gguide"])


@pytest.mark.golden("ddfresnet_*")
def test_ddf_networks(golden):
    meta = golden.meta
    size = ResnetSize(tuple(meta["layers"]), tuple(meta["channels"]))
    op = DdfOp(kernel_size=3, combine=meta["combine"], shell="none")
    network = Resnet(size, op, num_classes=meta["num_classes"])
    # The one that is called after training was made in evaluation: all its numbers, gradients
    # included, are those of running statistics.
    check(golden, network, "ddf", training=False)


@pytest.mark.golden("involution*")
def test_involution_layer(golden):
    meta = golden.meta
    op = Involution(
        meta["channels"], kernel_size=meta["kernel"], group_channels=meta["group_channels"],
        stride=meta["stride"],
    )  # fmt: skip
    check(golden, op, "involution", channels_first)


@pytest.mark.golden("outlook*")
@pytest.mark.parametrize("source", ["volo", "timm"])
def test_outlook_layer(golden, source):
    meta = golden.meta
    op = OutlookAttention(
        meta["dim"], meta["heads"], kernel_size=meta["kernel"], stride=meta["stride"]
    )
    check(golden, op, source)


def small_timm():
    torch.manual_seed(0)
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=64).eval()


def test_swin_release_as_timm_reads_it():
    theirs = small_timm()
    ours = build_model("lsa_swin_tiny", img_size=64).eval()
    load_official(ours, {"model": as_released_by_swin(theirs.state_dict())}, source="swin")
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


def test_elsa_release_comes_back():
    settings = Model(backbone="swin_mini", op=ElsaOp(), drop_path=0.0)
    torch.manual_seed(0)
    first = from_settings(settings, image_size=28, num_classes=10)
    second = from_settings(settings, image_size=28, num_classes=10)
    load_official(second, {"state_dict": as_released_by_elsa(first.state_dict())}, source="elsa")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("op", [DwNetOp(), DwNetOp(kind="ddwconv")], ids=lambda op: op.kind)
def test_dwnet_release_comes_back(op):
    settings = Model(backbone="swin_mini", op=op, drop_path=0.0)
    first = from_settings(settings, image_size=28, num_classes=10)
    second = from_settings(settings, image_size=28, num_classes=10)
    theirs = {
        name.replace(".norm2.", ".bn.").replace(".attn.", ".attn2conv."): tensor
        for name, tensor in as_released_by_swin(first.state_dict()).items()
        if not name.endswith(("index", "mask"))
    }
    load_official(second, theirs, source="dwnet")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_leftovers_on_either_side_are_refused_by_name():
    state = small_timm().state_dict()
    del state["layers.1.downsample.norm.weight"]
    state["head.fc.extra"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(3)
    model = build_model("lsa_swin_tiny", img_size=64)
    before = model.norm.weight.clone()
    state["norm.weight"] = before + 1
    words = (
        r"timm weights for Swin do not fit: they lack: layers\.1\.downsample\.norm\.weight; "
        r"nothing here takes: head\.fc\.extra; shapes differ: norm\.bias \(3,\), here \(768,\)"
    )
    with pytest.raises(ValueError, match=words):
        load_official(model, state, source="timm")
    assert torch.equal(model.norm.weight, before)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"shapes differ: .*rel_bias \(3, 169\), here \(3, 121\)"):
        load_official(
            build_model("lsa_swin_tiny", img_size=64, window_size=6),
            small_timm().state_dict(),
            source="timm",
        )


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="source='torchvision' is unknown; known: timm, swin"):
        load_official(torch.nn.Linear(2, 2), {}, source="torchvision")


def test_checkpoints_are_read(tmp_path):
    tensors = {"weight": torch.randn(2, 2), "bias": torch.randn(2)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors, "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        linear = torch.nn.Linear(2, 2)
        load_official(linear, read_checkpoint(tmp_path / name), source="timm")
        assert torch.equal(linear.weight, tensors["weight"])


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_checkpoints_run_no_code(tmp_path, capsys):
    torch.save({"model": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"bad\.pth: holds an object that would run code"):
        read_checkpoint(tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"none\.pth: no such file of weights"):
        read_checkpoint(tmp_path / "none.pth")
    assert capsys.readouterr().out == ""
