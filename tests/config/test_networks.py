"""Which operators, stems and optimisers are accepted together, and what moves an identity."""

import re

import pytest

from lsa_study.config import study
from lsa_study.errors import ConfigError


def load(*overrides):
    return study.load_study("table1", only="swin", overrides=overrides).variants["swin"]


DEIT = ["model.backbone=deit_micro", "model.op={kind: attention}"]
RESNET = ["model.backbone=resnet_micro", "model.op={kind: conv}"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.backbone=resnet_micro"],
         "model: op.kind='unified': in the blocks of resnet_micro stands a layer that can stride, "
         "between its own convolutions; give {kind: conv} or {kind: ddf, kernel_size: 3, shell: "),
        (["model.backbone=resnet_micro", "model.op={kind: ddf}"],
         "op.shell='dwnet': in the blocks of resnet_micro"),
        (["model.backbone=deit_micro"],
         "op.kind='unified': deit_micro holds attention of all tokens; give {kind: attention}"),
        (["model.op={kind: attention}"],
         "op.kind='attention': swin_micro holds layers that see an area; give another kind, or a"),
        (["model.backbone=swin_mini", "model.stem={kind: conv}"],
         "stem.kind='conv': its first convolution halves the image, and a token of swin_mini is 1 "
         "pixel wide; give kind: patchify"),
        ([*RESNET, "model.stem={kind: conv}"],
         "stem.kind='conv': resnet_micro has a stem of its own alone; drop stem"),
        ([*DEIT, "model.stem={kind: patchify, hidden: 32}"],
         "model.stem: hidden=32 changes nothing in a stem of one convolution; drop it, or give "
         "kind: conv"),
        ([*DEIT, "model.stem={kind: conv, hidden: 0}"], "model.stem.hidden = 0 will not do"),
        ([*DEIT, "model.stem={kind: conv, norm: ln}"], "model.stem.norm = 'ln' will not do"),
        ([*DEIT, "model.stem={kind: conv}", "data.image_size=30"],
         "data.image_size=30: a conv stem cuts whole patches of 4 x 4 pixels for deit_micro; give "
         "28 or 32"),
        (["model.op={kind: conv, stride: 2}"],
         "model.op.stride is not a setting; known here: kernel_size, kind, shell"),
        (["train.optimizer={kind: adamw, momentum: 0.9}"],
         "train.optimizer: momentum=0.9 changes nothing under adamw, which has momenta of its own; "
         "drop it, or give kind: sgd"),
        (["train.optimizer={nesterov: true}"], "nesterov=True changes nothing under adamw"),
        (["train.optimizer={kind: sgd}"],
         "train.optimizer: kind='sgd' needs a momentum; give momentum: 0.9"),
        (["train.optimizer={kind: sgd, momentum: 1.0}"], "train.optimizer.momentum = 1.0"),
        (["train.optimizer={kind: sgd, momentum: 0.0, nesterov: true}"],
         "nesterov=True needs a momentum above 0"),
        (["train.optimizer={kind: lamb}"], "train.optimizer.kind = 'lamb' will not do"),
        (["model.op={kind: ddf, branches: spatial, combine: add}"],
         "combine='add' changes nothing with branches='spatial'; drop it, or give branches: both"),
        (["model.op={kind: ddf, branches: channel, heads: 1x}"],
         "heads='1x' changes nothing with branches='channel'"),
        (["model.op={kind: ddf, branches: spatial, reduction: 0.3}"], "reduction=0.3 changes"),
        (["model.op={kind: conv, kernel_size: 4}"], "4 is even; an area around a pixel"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(*overrides)


def test_what_was_always_so_is_in_no_identity():
    """One network or optimiser written in two ways is one identity."""
    plain = load()
    for same in (
        "train.optimizer={kind: adamw}",
        "model.stem=null",
        "model.stem={kind: patchify}",
    ):
        assert load(same).identity() == plain.identity()
        assert load(same).differing(plain) == {}
    ddf = load("model.op={kind: ddf}")
    written = load("model.op={kind: ddf, branches: both, norm: filter}")
    assert written.identity() == ddf.identity()


@pytest.mark.parametrize(
    "override",
    [
        "train.optimizer={kind: sgd, momentum: 0.9}",
        "train.optimizer={kind: sgd, momentum: 0.9, nesterov: true}",
        "model.stem={kind: conv}",
        "model.stem={kind: conv, act: none}",
        "model.op={kind: ddf, norm: batch}",
        "model.op={kind: ddf, branches: channel}",
        "model.op={kind: conv}",
        "model.op={kind: conv, shell: linear}",
    ],
)
def test_what_moves_numbers_is_in_the_identity(override):
    settings = load(override)
    assert settings.identity() != load().identity()
    again = type(settings).model_validate_json(settings.model_dump_json())
    assert again.identity() == settings.identity()
    changed = override.partition("=")[0]
    assert any(key.startswith(changed) for key in settings.differing(load()))
