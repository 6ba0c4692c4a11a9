"""A side study has a name of its own, and the study's own table stands."""

import pytest

from lsa_study.config import study
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError


def ask(results, alias=None, **how):
    return remember(results, [study.load_study("table1", **how)], alias)


def test_the_studys_own_table_stands(tmp_path):
    ask(tmp_path)
    (name,) = ask(tmp_path, overrides=["train.epochs=1"], only="net1")
    own = study.load_study("table1", recall=tmp_path)
    assert own.runs() == study.load_study("table1").runs()
    assert own.about == ""
    side = study.load_study(name, recall=tmp_path)
    assert (side.name, list(side.variants)) == (name, ["net1"])
    assert side.variants["net1"].train.epochs == 1
    assert side.about == "side study of table1: train.epochs=1; only net1; seeds 0"


def test_only_side_studies_asked_for(tmp_path):
    ask(tmp_path, overrides=["train.epochs=1"])
    assert study.load_study("table1", recall=tmp_path).overrides == ("train.epochs=1",)
    ask(tmp_path, overrides=["train.epochs=2"])
    assert study.load_study("table1", recall=tmp_path).overrides == ()


def test_a_name_that_is_taken_is_refused(tmp_path):
    assert ask(tmp_path, "short", overrides=["train.epochs=1"]) == ["short"]
    with pytest.raises(ConfigError, match="--as short: is the name of something else"):
        ask(tmp_path, "short", overrides=["train.epochs=2"])
