"""Settings of operators: what moves an identity, what contrasts see, what is refused."""

import re

import pytest

from lsa_study.config import study
from lsa_study.errors import ConfigError


def load(*overrides):
    return study.load_study("table1", only="swin", overrides=overrides).variants["swin"]


def layer(op):
    return load(f"model.op={op}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{kind: dwnet}", "{kind: dwconv, shell: dwnet}"),
        ("{kind: dwconv, kernel_size: 5}", "{kind: dwnet, kernel_size: 5, shell: linear}"),
        ("{kind: ddf}", "{kind: ddf, shell: dwnet}"),
    ],
)
def test_one_layer_written_in_two_ways_is_one_identity(one, other):
    assert layer(one).identity() == layer(other).identity()
    assert layer(one).differing(layer(other)) == {}
    assert "shell" not in layer(one).science()["model"]["op"]


@pytest.mark.parametrize("kind", ["dwconv", "dwnet", "ddwconv", "ddf"])
def test_what_stands_around_a_layer_is_a_setting_of_its_own(kind):
    linear, dwnet = (layer(f"{{kind: {kind}, shell: {shell}}}") for shell in ("linear", "dwnet"))
    assert linear.identity() != dwnet.identity()
    assert linear.differing(dwnet)["model.op.shell"] == ("linear", "dwnet")
    # Attention stands in linear maps too, though none of its settings says so.
    assert "model.op.shell" not in load().differing(linear)
    assert load().differing(dwnet)["model.op.shell"] == ("linear", "dwnet")


def test_the_scale_of_products_counts_only_where_it_is_set():
    assert "scale" not in load().science()["model"]["op"]
    assert load("model.op.scale=null").identity() == load().identity()
    assert load("model.op.scale=1.0").identity() != load().identity()
    assert load().differing(load("model.op.scale=1.0")) == {"model.op.scale": (None, 1.0)}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["model.op.scale=0.0"], "model.op.scale"),
        (["model.op.scale=-1.0"], "model.op.scale"),
        (["model.op.scale=.inf"], "model.op.scale"),
        (["model.op.scale=1.0", "model.op.terms=[bias]"], "scale=1 changes nothing: the bias"),
    ],
)
def test_a_scale_that_cannot_be_meant_is_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        load(*override)


def test_a_shell_that_cannot_hold_a_layer_is_refused():
    words = "shell='dwnet' with heads='1x': DWNet gives every channel its own filter; give heads: C"
    with pytest.raises(ConfigError, match=re.escape(words)):
        layer("{kind: dwconv, heads: 1x, shell: dwnet}")
