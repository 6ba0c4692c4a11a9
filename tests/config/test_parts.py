"""Into how many parts a step can be cut, and that what is advised can be."""

import contextlib
import re
from typing import get_args

import pytest
from pydantic import ValidationError
from torch.nn.modules.batchnorm import _BatchNorm

from lsa_study import models
from lsa_study.config import study
from lsa_study.config.layers import validate
from lsa_study.config.operators import OP_KINDS
from lsa_study.config.parts import batch_norms, check_parts, smaller, why_not
from lsa_study.config.settings import Model, Settings
from lsa_study.config.values import Backbone
from lsa_study.errors import ConfigError
from lsa_study.training.batch_norm import GroupedBatchNorm

OPS = {kind: {"kind": kind} for kind in OP_KINDS} | {
    "unified": {
        "kind": "unified", "terms": ["qk", "bias"], "norm": "softmax", "application": "window",
    },
    "neighboring": {
        "kind": "unified", "terms": ["qk"], "norm": "softmax", "application": "neighboring",
    },
    "dwconv in dwnet": {"kind": "dwconv", "shell": "dwnet"},
    "dwnet in linear": {"kind": "dwnet", "shell": "linear"},
    "ddwconv in linear": {"kind": "ddwconv", "shell": "linear"},
    "ddf in linear": {"kind": "ddf", "shell": "linear"},
    "ddf alone": {"kind": "ddf", "shell": "none"},
    "ddf by batch": {"kind": "ddf", "shell": "none", "norm": "batch"},
    "conv in dwnet": {"kind": "conv", "shell": "dwnet"},
}  # fmt: skip
RECIPES = ["table6:dwnet", "table8:volo_d1_384", "table8:volo_d5_512", "table8:swin_large"]
HINT = re.compile(r"([a-z_.]+)=(\d+)")


@pytest.fixture(scope="module")
def recipes():
    found = {}
    for name in RECIPES:
        stem, _, variant = name.partition(":")
        found[name] = study.load_study(stem, tier="paper").variants[variant]
    return found


def fits(backbone, op, stem=None):
    """Whether a backbone takes an operator and a stem."""
    with contextlib.suppress(ValidationError):
        Model.model_validate({"backbone": backbone, "op": op, "stem": stem, "drop_path": 0.1})
        return True
    return False


def with_model(settings, backbone, op, stem=None):
    data = settings.model_dump()
    data["model"] |= {"backbone": backbone, "op": op, "stem": stem}
    if not backbone.startswith("volo"):
        data["train"]["tokens"] = None
    return validate(Settings, data, lambda *keys: ".".join(keys))


def changed(settings, overrides):
    data = settings.model_dump()
    for name, value in overrides.items():
        group, _, key = name.partition(".")
        data[group][key] = int(value)
    return validate(Settings, data, lambda *keys: ".".join(keys))


BACKBONES = [("swin_micro", 28), ("volo_d1", 32), ("deit_micro", 28), ("resnet_micro", 28)]
STEMS = {
    "own": None,
    "patchify": {"kind": "patchify"},
    "conv": {"kind": "conv", "norm": "none"},
    "conv_bn": {"kind": "conv", "act": "none"},
}
NETWORKS = [
    (backbone, size, kind, stem)
    for backbone, size in BACKBONES
    for kind, op in OPS.items()
    for stem, given in STEMS.items()
    if (stem == "own" or kind in ("unified", "attention")) and fits(backbone, op, given)
]


@pytest.mark.parametrize(("backbone", "size", "kind", "stem"), NETWORKS)
def test_which_networks_have_batch_norm(recipes, kind, backbone, size, stem):
    """By their settings, as their layers are."""
    model = with_model(recipes["table6:dwnet"], backbone, OPS[kind], STEMS[stem]).model
    network = models.from_settings(model, image_size=size, num_classes=3)
    found = any(isinstance(layer, _BatchNorm) for layer in network.modules())
    assert batch_norms(model) == found == bool(GroupedBatchNorm(network, images=None).layers)


@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("norm_batch", ["as declared", None])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_advised_is_accepted(recipes, recipe, norm_batch, processes):
    """For every backbone and layer, from one part to the smallest; each takes fewer images."""
    for backbone in get_args(Backbone):
        for op in (op for op in OPS.values() if fits(backbone, op)):
            settings = with_model(recipes[recipe], backbone, op)
            if norm_batch is None:
                train = settings.train.model_copy(update={"norm_batch": None})
                settings = settings.model_copy(update={"train": train})
            if why_not(settings, processes) is not None:
                assert processes > 1
                continue
            for _ in range(30):
                advice = smaller(settings, processes)
                if not advice.overrides:
                    break
                overrides = dict(HINT.findall(str(advice)))
                assert overrides.keys() <= {"runtime.accumulate", "train.norm_batch"}
                assert tuple(f"{k}={v}" for k, v in overrides.items()) == advice.overrides
                after = changed(settings, overrides)
                assert why_not(after, processes) is None
                assert after.runtime.accumulate > settings.runtime.accumulate
                moved = after.science() != settings.science() or (
                    norm_batch is None and batch_norms(settings.model)
                )
                assert bool(advice.note) == moved == (advice.accumulate is None)
                settings = after
            else:
                pytest.fail(f"{settings} never ends")


@pytest.mark.parametrize("processes", [1, 2, 8, 16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_refusal_says_would_be_right_is_accepted(recipes, recipe, processes):
    refused = 0
    for accumulate in range(1, 40):
        settings = changed(recipes[recipe], {"runtime.accumulate": accumulate})
        reason = why_not(settings, processes)
        if reason is None:
            continue
        refused += 1
        right, _, other = reason.partition("; give ")[2].partition(", or ")
        name, _, numbers = right.partition(": ")
        found = [int(number) for number in re.findall(r"\d+", numbers)]
        if "divisor" in numbers:
            found = [n for n in range(1, found[0] + 1) if found[0] % n == 0]
        for number in found:
            if name == "runtime.accumulate":
                assert why_not(changed(settings, {name: number}), processes) is None
            elif name == "processes times runtime.accumulate":
                assert why_not(changed(settings, {"runtime.accumulate": 1}), number) is None
            else:
                assert name == "train.batch_size"
                assert why_not(changed(settings, {name: 3 * number}), processes) is None
        if other:
            assert why_not(changed(settings, dict(HINT.findall(other))), processes) is None
    assert refused > 10


def test_rows_that_cannot_be_cut_are_refused_together(recipes):
    finer = {"runtime.accumulate": 16}
    rows = {name: changed(recipes[name], finer) for name in ("table6:dwnet", "table8:swin_large")}
    with pytest.raises(ConfigError) as caught:
        check_parts(rows, lambda name: f"{name}.yaml:7")
    assert str(caught.value) == (
        "table6:dwnet.yaml:7: table6:dwnet: runtime.accumulate=16: train.batch_size=1024 cannot be "
        "cut into 16 parts of a multiple of 128 images (mixup and cutmix take images in pairs, "
        "batch norm groups of train.norm_batch=128); give runtime.accumulate: 1, 2, 4 or 8, or "
        "train.norm_batch=64 and runtime.accumulate=16 (batch norm then takes other statistics: "
        "numbers change, and it is another run)"
    )
    compiled = rows["table6:dwnet"].model_dump()
    compiled["runtime"] |= {"accumulate": 1, "compile": True}
    compiled = validate(Settings, compiled, lambda *keys: ".".join(keys))
    assert why_not(compiled).startswith("runtime.compile=True: train.norm_batch")


def test_few_images_make_a_smaller_step():
    few = ["data.train_limit=20", "runtime.accumulate=5"]
    settings = study.load_study("table1", only="swin", overrides=few).variants["swin"]
    assert settings.train.batch_size > 20
    assert why_not(settings) is None
    many = study.load_study("table1", only="swin", overrides=[few[1]]).variants["swin"]
    assert why_not(many).startswith(
        "runtime.accumulate=5: train.batch_size=32 cannot be cut into 5"
    )


def test_a_segmenter_keeps_two_images_in_a_part():
    """UperNet's norms see pooled maps of one pixel; over one image these have no variance."""
    one = study.load_study("table10", tier="toy", only="swin_t").variants["swin_t"]
    assert why_not(one) is None
    four = one.model_copy(update={"runtime": one.runtime.model_copy(update={"accumulate": 4})})
    assert why_not(four) is None
    assert "needs 2; give a larger" in why_not(four, 2)
    assert "statistics over smaller parts" in smaller(one).note
