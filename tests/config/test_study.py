"""Experiment files: their runs, shared rows, and the contrast contract."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lsa_study.config import contrast, study
from lsa_study.config.yaml import read as read_strictly
from lsa_study.errors import ConfigError, Refused

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
STUDIES = [path for path in EXPERIMENTS if path.stem not in ("claims", "cluster")]


def write(tmp_path, **changes) -> Path:
    """A small experiment of two rows, changed as asked."""
    document = {
        "study": "mine",
        "title": "Mine",
        "question": "Which?",
        "factor": ["model.op.norm"],
        "baseline": "soft",
        "set": {"model.op": {"kind": "unified", "terms": ["qk"], "application": "window"}},
        "article": {"csv": str(ROOT / "results/paper/table1.csv"), "source": "none"},
        "variants": {
            "soft": {"label": "Soft", "set": {"model.op.norm": "softmax"}},
            "filter": {"label": "Filter", "set": {"model.op.norm": "filter_norm"}},
        },
    }
    document.update(changes)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_experiment_keeps_its_contract(path):
    written = list(read_strictly(path).data.get("variants", {}))  # a grid has no written row
    for tier in study.tiers_of(str(path)):
        loaded = study.load_study(path, tier=tier)
        contrast.check_contrast(loaded)
        assert [run.variant for run in loaded.runs()[: len(written)]] == written


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_row_finds_its_one_row_of_the_article(path):
    loaded = study.load_study(path, tier=study.tiers_of(str(path))[-1])
    if loaded.file.article is None:
        assert not any(variant.paper for variant in loaded.file.variants.values())
        return
    table = pd.read_csv(path.parent / loaded.file.article.csv, dtype=str)
    for name, variant in loaded.file.variants.items():
        found = table
        for column, value in variant.paper.items():
            found = found[found[column] == str(value)]
        assert not variant.paper or len(found) == 1, name


@pytest.mark.parametrize("tier", study.TIERS)
def test_one_identity_has_one_name_over_the_articles_studies(tier):
    names: dict[str, set[str]] = {}
    for stem in study.ARTICLE:
        for run in study.load_study(stem, tier=tier).runs():
            names.setdefault(run.identity, set()).add(run.name)
    assert all(len(found) == 1 for found in names.values())
    seeds = len(study.load_study("table1", tier=tier).seeds)
    assert len(names) == 24 * seeds


def test_what_must_be_equal_over_a_table_is_equal():
    for stem in study.ARTICLE:
        variants = study.load_study(stem, tier="paper").variants.values()
        assert len({(v.train, v.augment, v.data, v.model.drop_path) for v in variants}) == 1


def test_tier_and_seed_are_no_settings_of_a_file(tmp_path):
    """The seeds would be ignored, and the runs of one tier lie among those of another."""
    rows = {"soft": {"set": {"model.op.norm": "softmax", "seed": 3}},
            "filter": {"set": {"model.op.norm": "filter_norm"}, "use": ["own"]}}  # fmt: skip
    path = write(tmp_path, variants=rows)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "presets.yaml").write_text("own: {tier: paper}\n")
    with pytest.raises(ConfigError) as caught:
        study.load_study(path)
    assert str(caught.value) == (
        f"{path}:20: seed comes from seeds: or --seeds; drop it (in soft)\n"
        f"{tmp_path}/base/presets.yaml:1: tier comes from --tier; drop it (in filter)"
    )


def test_mistakes_of_names_seeds_presets_and_settings_are_named_in_one_round(tmp_path):
    """Each would be found by another check; nobody should have to run them one after the other."""
    rows = {
        "soft": {"use": ["nix"], "set": {"model.op.norm": "softmacks", "a..b": 1, "c.": 2}},
        "filter": {"set": {"model.op.norm": "softmax", "train.epochs": -3}, "against": "hard",
                   "resources": {"gpuz": 3}},
    }  # fmt: skip
    path = write(tmp_path, variants=rows, seeds=[0, 0], baseline="sofd", use=["one", "two"])
    with pytest.raises(ConfigError) as caught:
        study.load_study(path, overrides=["=3", "data.nam=x"])
    named = "\n".join(caught.value.mistakes)
    wanted = [
        "'sofd' is not a variant", "'hard' is not a variant", "0 stands 2 times", "one is no pre",
        "two is no preset", "nix is no preset", "'a..b' is not a setting", "'c.' is not a setting",
        "norm = 'softmacks' will not do", "epochs = -3 will not do", "gpuz is not a setting",
        "--set =3: not a setting", "data.nam is not a setting",
    ]  # fmt: skip
    assert [one for one in wanted if named.count(one) != 1] == []
    assert len(caught.value.mistakes) == len(wanted)


def test_rows_that_are_equal_and_claims_that_nothing_judges_are_named_together(tmp_path):
    twice = {name: {"set": {"model.op.norm": "softmax"}} for name in ("soft", "also", "too")}
    claim = {"id": "x", "text": "It is.", "metric": "miou", "relation": "above",
             "rows": ["soft", "also"]}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        study.load_study(write(tmp_path, variants=twice, claims=[claim]))
    said = [line.split(": ", 1)[1] for line in caught.value.mistakes]
    assert [line.split("; ")[0] for line in said[:2]] == [
        f"{name} has the same settings as soft" for name in ("also", "too")
    ]
    assert "metric='miou': no run records it" in said[2]


def test_what_is_empty_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        study.load_study(write(tmp_path, variants={}, seeds=[]))
    assert [line.split(": ", 1)[1] for line in caught.value.mistakes] == [
        "seeds is empty; give one at least", "variants is empty; give one at least",
    ]  # fmt: skip


def test_runs_are_seed_major(tmp_path):
    runs = study.load_study(write(tmp_path), seeds=[3, 1]).runs()
    assert [(run.seed, run.variant) for run in runs] == [
        (3, "soft"), (3, "filter"), (1, "soft"), (1, "filter"),
    ]  # fmt: skip


def test_only_keeps_the_variants_that_match(tmp_path):
    loaded = study.load_study(write(tmp_path), only="f*,nothing")
    assert list(loaded.variants) == ["filter"]
    with pytest.raises(study.NoVariant, match="known: soft, filter"):
        study.load_study(write(tmp_path), only="x*")


def test_a_second_factor_is_refused_by_name(tmp_path):
    variants = {
        "soft": {"label": "Soft", "set": {"model.op.norm": "softmax"}},
        "filter": {"label": "F", "set": {"model.op.norm": "filter_norm", "train.lr": 0.5}},
    }
    loaded = study.load_study(write(tmp_path, variants=variants))
    with pytest.raises(Refused) as caught:
        contrast.check_contrast(loaded)
    assert "filter also changes train.lr (0.002 -> 0.5). The declared factor is model.op.norm" in (
        str(caught.value)
    )
    contrast.check_contrast(loaded, allowed=["train.lr"])


def test_another_shell_is_a_second_factor(tmp_path):
    """Unless the whole layer is the factor, as in Table 6, whose notes say it."""
    variants = {
        "soft": {"label": "Dw", "set": {"model.op": {"kind": "dwconv"}}},
        "dwnet": {"label": "Dw of DWNet", "set": {"model.op": {"kind": "dwnet"}}},
    }
    loaded = study.load_study(write(tmp_path, variants=variants, factor=["model.op.kind"]))
    with pytest.raises(Refused, match=r"also changes .*model\.op\.shell \(linear -> dwnet\)"):
        contrast.check_contrast(loaded)
    contrast.check_contrast(
        study.load_study(write(tmp_path, variants=variants, factor=["model.op"]))
    )


def test_a_row_changes_one_of_several_factors(tmp_path):
    """Two at once are two questions; settings that belong together are one, once they are named."""
    size = {"model.op.norm": "filter_norm", "model.op.size": 5}
    variants = {
        "soft": {"label": "Soft", "set": {"model.op.norm": "softmax"}},
        "filter": {"label": "F", "set": {"model.op.norm": "filter_norm"}},
        "small": {"label": "S", "set": {"model.op.norm": "softmax", "model.op.size": 5}},
        "both": {"label": "B", "set": size},
    }
    path = write(tmp_path, variants=variants, factor=["model.op.norm", "model.op.size"])
    with pytest.raises(Refused) as caught:
        contrast.check_contrast(study.load_study(path))
    assert "both also changes" in str(caught.value)
    assert str(caught.value).count("also changes") == 1
    contrast.check_contrast(study.load_study(path), allowed=["model.op.size"])
    groups = {"shape": ["model.op.norm", "model.op.size"]}
    together = write(tmp_path, variants=variants, factor=["shape"], groups=groups)
    contrast.check_contrast(study.load_study(together))


@pytest.mark.parametrize("key", ["train.lr=0.5", "model.drop_path=0.5", "train.ema_decay=0.9"])
def test_planted_confounds_are_caught(tmp_path, key):
    name, value = key.split("=")
    variants = {
        "soft": {"label": "Soft", "set": {"model.op.norm": "softmax"}},
        "filter": {"label": "F", "set": {"model.op.norm": "filter_norm", name: float(value)}},
    }
    with pytest.raises(Refused, match=name):
        contrast.check_contrast(study.load_study(write(tmp_path, variants=variants)))


def test_rows_that_are_one_run_are_refused(tmp_path):
    variants = {
        "soft": {"label": "Soft", "set": {"model.op.norm": "softmax"}},
        "twin": {"label": "Twin", "set": {"model.op.norm": "softmax"}},
    }
    with pytest.raises(ConfigError, match="twin has the same settings as soft"):
        study.load_study(write(tmp_path, variants=variants))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "none"}, "baseline 'none' is not a variant; known: soft, filter"),
        ({"factor": ["model.opp"]}, "factor 'model.opp' is not a setting"),
        ({"factor": ["model"]}, "factor 'model' is many settings at once; give one of them, or"),
        ({"factor": ["train.start"]}, "factor 'train.start' is many settings at once; give one"),
        ({"factor": ["a"], "groups": {"a": ["augment"]}}, "a 'augment' is many settings at once"),
        ({"factor": ["a"], "groups": {"a": ["model.opp"]}}, "a 'model.opp' is not a setting; did"),
        ({"groups": {"train": ["train.lr"]}}, "'train' is a setting; give the group another name"),
        ({"variants": {}}, "variants"),
        ({"colour": "red"}, "colour is not a setting; known here:"),
        ({"tiers": ["paper"]}, "has no tier toy; it has paper"),
        ({"set": {"model.op": {"kind": "unified"}}}, "model.op.terms is missing"),
    ],
)
def test_mistakes_of_an_experiment_are_named_with_their_place(tmp_path, changes, message):
    with pytest.raises(ConfigError) as caught:
        study.load_study(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


PRESETS = """\
soft: {model.op.norm: softmax}
filter:
  model.op.norm: filter_norm
fast: {train.lr: 0.5, model.op.norm: softmax}
whole: {model.op: {kind: elsa}}
wrong:
  train.lr: 0.1
  train.epohcs: 3
word: text
sized:
  toy: {model.op.norm: softmax, train.epochs: 3}
  paper: {model.op.norm: filter_norm, train.lr: 0.25}
torn: {toy: text}
"""


def used(tmp_path, *, everywhere=(), soft=("soft",), row=(), **asked):
    """The small experiment with its norms from presets."""
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "presets.yaml").write_text(PRESETS)
    variants = {
        "soft": {"label": "Soft", "use": list(soft)},
        "filter": {"label": "Filter", "use": ["filter"], "set": dict(row)},
    }
    return study.load_study(write(tmp_path, use=list(everywhere), variants=variants), **asked)


def test_presets_are_layered_before_what_is_set_beside_them(tmp_path):
    plain = study.load_study(write(tmp_path)).runs()
    assert [run.identity for run in used(tmp_path).runs()] == [run.identity for run in plain]
    loaded = used(tmp_path, everywhere=["fast"], row={"train.lr": 0.25})
    assert [one.train.lr for one in loaded.variants.values()] == [0.5, 0.25]
    assert [one.model.op.norm for one in loaded.variants.values()] == ["softmax", "filter_norm"]
    changed = used(tmp_path, everywhere=["fast"], overrides=["train.lr=0.125"])
    assert {one.train.lr for one in changed.variants.values()} == {0.125}
    assert used(tmp_path, soft=["soft", "fast"]).variants["soft"].train.lr == 0.5


def test_a_preset_may_hold_other_settings_at_each_tier(tmp_path):
    """At a tier that it does not name it sets nothing."""
    toy = used(tmp_path, soft=["sized"], row={"train.lr": 0.5}).variants["soft"]
    assert (toy.model.op.norm, toy.train.epochs) == ("softmax", 3)
    paper = used(tmp_path, soft=["sized"], row={"train.lr": 0.5}, tier="paper", only="soft")
    paper = paper.variants["soft"]
    assert (paper.model.op.norm, paper.train.lr) == ("filter_norm", 0.25)
    assert paper.train.epochs == used(tmp_path, tier="paper").variants["soft"].train.epochs
    with pytest.raises(ConfigError, match=r"model\.op\.norm is missing"):
        used(tmp_path, soft=["sized"], tier="proxy")


@pytest.mark.parametrize(
    ("names", "place", "message"),
    [
        (["sotf"], "mine.yaml:", "sotf is no preset of "),
        (["sotf"], "mine.yaml:", "presets.yaml; did you mean soft?"),
        (["xyz"], "mine.yaml:", "known: soft, filter, fast, whole, wrong, word, "),
        (["word"], "presets.yaml:9: ", "word = 'text'; give it settings"),
        (["soft", "filter"], "mine.yaml:", "presets soft and filter disagree on model.op.norm ("),
        (["soft", "filter"], "presets.yaml:3", "use one of them"),
        (["soft", "whole"], "presets.yaml:5", "disagree on model.op ("),
        (["whole", "soft"], "presets.yaml:5", "disagree on model.op.norm ("),
        (["torn"], "presets.yaml:13: ", "torn.toy = 'text'; give it settings"),
        (["filter", "sized"], "presets.yaml:11", "filter and sized disagree on model.op.norm ("),
        (["wrong"], "presets.yaml:8: ", "train.epohcs is not a setting; did you mean train.epochs"),
    ],
)
def test_mistakes_of_presets_are_named_where_they_stand(tmp_path, names, place, message):
    with pytest.raises(ConfigError) as caught:
        used(tmp_path, soft=names)
    assert place in str(caught.value)
    assert message in str(caught.value)


def test_the_repositorys_presets_are_found_from_any_folder(tmp_path):
    loaded = study.load_study(write(tmp_path, set={"model.op.border": "zero"}, use=["lsa"]))
    assert loaded.variants["filter"].model.op.terms == ("qk", "bias")


def test_a_row_called_as_an_operator_is_no_operator(tmp_path):
    variants = {"elsa": {"label": "ELSA", "lable": "x"}, "ddf": {"label": "DDF", "group_width": 3}}
    with pytest.raises(ConfigError) as caught:
        study.load_study(write(tmp_path, baseline="elsa", variants=variants))
    assert "variants.elsa.lable is not a setting; did you mean variants.elsa.label?" in str(
        caught.value
    )
    assert "variants.ddf.group_width is not a setting; known here: against, columns" in str(
        caught.value
    )


def test_resources_are_checked_where_they_stand(tmp_path):
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+: gpus = 'two' is not a number"):
        study.load_study(write(tmp_path, resources={"gpus": "two"}))


def test_unknown_names_are_answered_with_the_nearest_or_the_known_ones():
    with pytest.raises(ConfigError, match=r"no such study; did you mean table1\?"):
        study.load_study("tabel1")
    with pytest.raises(ConfigError, match="no such study; known: all, ddf_table3"):
        study.load_study("zzz")
    with pytest.raises(ConfigError, match="no such tier; known: toy, proxy, paper"):
        study.load_study("table1", tier="big")


def test_planning_does_not_need_torch():
    code = (
        "import importlib, sys\n"
        "for name in ('config.study', 'rundir', 'launch.plan', 'launch.local', 'cli'):\n"
        "    importlib.import_module(f'lsa_study.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kernels_folder_is_not_a_package():
    assert not (ROOT / "kernels/__init__.py").exists()
