"""Options that do nothing are found; those of the article's studies all do something."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lsa_study.config import study
from lsa_study.config.operators import OutlookOp
from lsa_study.launch import plan
from lsa_study.models import operators
from lsa_study.models.ablation_check import inactive_options

ROOT = Path(__file__).resolve().parent.parent.parent


def lsa(*arguments, **environment):
    """Run the command in its own process, as a shell would."""
    command = [sys.executable, "-m", "lsa_study.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


@pytest.mark.parametrize("name", [*study.ARTICLE, "ddf_table3", "ddf_table5"])
def test_rows_of_the_article_all_differ(name):
    loaded = study.load_study(name, tier="toy")
    assert inactive_options(loaded.variants) == []


def test_rows_of_the_stems_all_differ():
    """Rates and warm-ups are no matter of the network: one of each stem."""
    loaded = study.load_study("stem", tier="toy", only="*_05_none")
    assert len(loaded.variants) == 5
    assert inactive_options(loaded.variants) == []


def seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.real_process  # the times of forks are not this process's children's
def test_every_row_of_the_article_is_proven_at_its_full_size_within_a_minute():
    """The two tables of sizes and backbones included, and another row of a name that Table 4 has.

    Studies may call different networks the same; the name must not hide one of them.
    """
    names = (*study.ARTICLE, "table6", "table8")
    wide = ["model.op.group_width=8"]
    other = study.load_study("table4", tier="paper", only="elsa", overrides=wide)
    before = seconds_of_children()
    told = plan.check_models([*(study.load_study(name, tier="paper") for name in names), other])
    assert told == "52 networks built; no two of them are the same"
    assert seconds_of_children() - before < 60


def test_an_option_that_a_builder_forgets_is_found(monkeypatch):
    def forgetful(op, place):
        return whole(op.model_copy(update={"norm": "softmax"}), place)

    whole = operators.BUILDERS["unified"]
    monkeypatch.setitem(operators.BUILDERS, "unified", forgetful)
    found = inactive_options(study.load_study("table2", tier="toy").variants)
    assert len(found) == 3  # of three norms, every pair
    assert found[0].startswith("net7_identity and net7_filter_norm differ in model.op.norm, but ")


def variant(**changes):
    """One network of table 6 with another operator, backbone or depth."""
    settings = study.load_study("table6", tier="paper", only="swin").variants["swin"]
    return settings.model_copy(update={"model": settings.model.model_copy(update=changes)})


def test_an_option_that_volo_forgets_is_found(monkeypatch):
    """Stride changes no weight: only the answer of a VOLO shows it."""
    volo = {f"stride{n}": variant(backbone="volo_d1", op=OutlookOp(stride=n)) for n in (1, 2)}
    assert inactive_options(volo) == []
    whole = operators.BUILDERS["outlook"]
    monkeypatch.setitem(operators.BUILDERS, "outlook", lambda op, place: whole(OutlookOp(), place))
    (words,) = inactive_options(volo)
    assert words.startswith("stride1 and stride2 differ in model.op.stride, but their networks do")


def test_sizes_and_depths_count_too():
    swin = variant()
    rows = {"swin": swin, "small": variant(backbone="swin_small"), "deep": variant(drop_path=0.3)}
    assert inactive_options(rows) == []


def test_a_rate_that_reaches_no_block_is_found(monkeypatch):
    whole = operators.build_block
    monkeypatch.setattr(
        operators, "build_block", lambda op, place, drop_path, **kw: whole(op, place, **kw)
    )
    (words,) = inactive_options({"swin": variant(), "deep": variant(drop_path=0.3)})
    assert words.startswith("swin and deep differ in model.drop_path, but their networks do not")


def test_two_ways_to_compute_the_same_are_no_dead_option():
    op = variant().model.op.model_copy(update={"implementation": "reference"})
    assert inactive_options({"auto": variant(), "reference": variant(op=op)}) == []


STUDY = """
study: mine
title: Mine
question: Does a window of 9 pixels differ on a map of 7?
factor: [model.op]
baseline: seven
article: {csv: results/paper/table4.csv, source: Table 4}
variants:
  seven:
    label: seven
    set: {model.op: {kind: elsa, group_width: 4}}
  nine:
    label: nine
    set: {model.op: {kind: elsa, group_width: 4, last_stage_window: 9}}
"""


def test_plan_refuses_a_row_whose_option_does_nothing(tmp_path):
    """At 224 px the last stage has 7 x 7 pixels; at 384 px the same rows differ."""
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY.replace("results/", f"{ROOT}/results/"))
    told = lsa("plan", path, "--tier", "paper", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert told.returncode == 4, told.stderr
    assert not (tmp_path / "cache" / "lsa_kernels").exists(), "planning compiled the kernels"
    assert "differ in model.op.last_stage_window, but their networks do not" in told.stderr
    assert "Traceback" not in told.stderr
    wide = study.load_study(path, tier="paper", overrides=["data.image_size=384"])
    assert inactive_options(wide.variants) == []
