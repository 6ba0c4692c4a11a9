"""Rows that begin from those of another study: which, as whom, and what is refused."""

import pytest
from begun import both
from typer.testing import CliRunner

from lsa_study.analysis.collect import collect
from lsa_study.analysis.provenance import why
from lsa_study.cli import app
from lsa_study.cli.options import Selection
from lsa_study.config import study
from lsa_study.config.contrast import check_contrast
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError, Refused
from lsa_study.launch import plan
from lsa_study.record import Result
from lsa_study.rundir import RunDir, runs_folder

START = "train.start: {study: classifiers}"
OWN = "train.start={study: table8}"


def rows(path, **asked):
    return {run.variant: run for run in study.load_study(path, **asked).runs()}


def test_the_row_of_the_same_network_is_found(tmp_path):
    classifiers, detectors = both(tmp_path)
    first, later = rows(classifiers, seeds=[3]), rows(detectors, seeds=[3])
    for name, row in (("boxes", "swin"), ("elsa_boxes", "elsa")):
        start = later[name].settings.train.start
        assert (start.what, start.head) == (f"classifiers/{row}", "drawn")
        assert later[name].start == first[row].identity
    check_contrast(study.load_study(detectors))


def test_named_or_found_it_is_the_same_run(tmp_path):
    """Studies share runs under several names, so it is the settings behind the name that count."""
    (_, detectors) = both(tmp_path)
    found = rows(detectors)["boxes"].identity
    named = START.replace("}", ", row: swin, head: drawn}")
    (classifiers, detectors) = both(tmp_path, ("detectors", START, named))
    assert rows(detectors, only="boxes")["boxes"].identity == found
    renamed = tmp_path / "others.yaml"
    renamed.write_text(classifiers.read_text().replace("study: classifiers", "study: others"))
    (_, detectors) = both(tmp_path, ("detectors", START, "train.start: {study: others}"))
    assert rows(detectors)["boxes"].identity == found


def test_other_weights_make_another_run(tmp_path):
    (_, detectors) = both(tmp_path)
    before = rows(detectors)
    (_, detectors) = both(tmp_path, ("classifiers", "train.epochs: 1", "train.epochs: 2"))
    after = rows(detectors)
    (_, detectors) = both(tmp_path, ("detectors", f"  {START}\n", ""))
    drawn = rows(detectors)
    for name in before:
        assert len({of[name].identity for of in (before, after, drawn)}) == 3
        assert after[name].start != before[name].start
        assert drawn[name].start is None


def test_the_article_s_rows_begin_from_table_8():
    """The identities of those that begin from released weights are pinned elsewhere."""
    first = rows("table8", tier="paper")
    wanted = {"swin": "swin", "elsa": "elsa"}
    for table in ("table9", "table9_3x", "table10"):
        loaded = study.load_study(table, tier="paper", overrides=[OWN])
        check_contrast(loaded)
        for run in loaded.runs():
            size = {"tiny": "", "small": "_swin_small", "base": "_swin_base"}[
                run.settings.model.backbone.removeprefix("swin_")
            ]
            row = ("elsa" if run.settings.model.op.kind == "elsa" else "") + size
            row = row.removeprefix("_") or "swin"
            assert run.settings.train.start.row == wanted.get(row, row)
            assert run.start == first[wanted.get(row, row)].identity


def test_a_side_study_can_be_begun_from(tmp_path):
    """Its own overrides count; without the results folder that knows it there is none."""
    both(tmp_path, ("detectors", START, "train.start: {study: longer}"))
    (side,) = Selection(
        [str(tmp_path / "classifiers.yaml")], "toy", results=tmp_path / "results",
        overrides=["train.epochs=5"],
    ).load(alias="longer")  # fmt: skip
    remember(tmp_path / "results", [side])
    (loaded,) = Selection(
        [str(tmp_path / "detectors.yaml")], "toy", results=tmp_path / "results"
    ).load()
    assert loaded.starts["boxes"].train.epochs == 5
    assert {run.start for run in loaded.runs()} == {run.identity for run in side.runs()}
    with pytest.raises(ConfigError, match=r"train\.start\.study: longer: no such study"):
        study.load_study(tmp_path / "detectors.yaml")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("{study: classifier}", "train.start.study: classifier: no such study;"),
        ("{study: detectors}", "train.start.study='detectors' is this study; drop study"),
        ("{study: table8}", "table8 has no tier toy; it has paper"),
        ("{study: ../x}", "'../x' cannot be a name; give letters"),
        ("{study: classifiers, row: swim}", "train.start.row 'swim' is no row; did you mean swin?"),
        ("{study: classifiers, recipe: abc}", "train.start.recipe is filled in by itself; drop it"),
        ("{study: classifiers, weights: w.pth, source: lsa}", "give either row or weights"),
        ("{study: classifiers, source: lsa}", "weights and source belong together"),
        (
            "{study: classifiers, row: elsa}",
            "train.start: classifiers/elsa: model.op.kind is 'unified' here and 'elsa' there; give "
            "a row of the same network, or of another study leave out row (in boxes)",
        ),
        (
            "{study: table1, row: swin}",
            "train.start: table1/swin: model.backbone is 'swin_micro4' here and 'swin_micro' there",
        ),
        (
            "{study: table1}",
            "train.start: no row of table1 has this network (swin_micro4, unified); name the row, "
            "{study: table1, row: ...}, of ",
        ),
        ("{study: table9, row: mask_swin_t_1x}", "that row is trained to detect, and what a run"),
    ],
)
def test_mistakes_are_named(tmp_path, start, message):
    (_, detectors) = both(tmp_path, ("detectors", START, f"train.start: {start}"))
    with pytest.raises(ConfigError) as caught:
        study.load_study(detectors)
    assert message in str(caught.value)
    assert "detectors.yaml:" in str(caught.value)


def test_two_rows_of_the_same_network(tmp_path):
    twice = "  swin: {set: {}}\n  longer: {set: {train.epochs: 3}}"
    (_, detectors) = both(tmp_path, ("classifiers", "  swin: {set: {}}", twice))
    with pytest.raises(ConfigError, match=r"swin, longer of classifiers have this network "):
        study.load_study(detectors)


def test_studies_that_begin_from_each_other(tmp_path):
    circle = ("classifiers", "  train.epochs: 1", f"  train.epochs: 1\n  {START}")
    circle = (*circle[:2], circle[2].replace("classifiers}", "detectors, row: boxes}"))
    (_, detectors) = both(tmp_path, circle)
    with pytest.raises(ConfigError, match=r"boxes from classifiers/swin .*: no row is first"):
        study.load_study(detectors)


def test_what_other_rows_begin_from_belongs_to_the_contract(tmp_path):
    longer = "group_width: 8, last_stage_window: 2}, train.epochs: 2}"
    old = "group_width: 8, last_stage_window: 2}}"
    (_, detectors) = both(tmp_path, ("classifiers", old, longer))
    with pytest.raises(Refused, match=r"also changes train\.start: train\.epochs \(1 -> 2\)"):
        check_contrast(study.load_study(detectors))


def test_plan_says_what_is_to_be_trained_first(tmp_path):
    paths = both(tmp_path)
    classifiers, detectors = map(study.load_study, paths)
    text = plan.plan_text([detectors], tmp_path)
    assert (
        "\n  start     boxes from classifiers/swin (not run); elsa_boxes from classifiers/elsa "
        "(not run)\n  first     swin,elsa of classifiers, with these seeds: train them before, or "
        "in the same call\n"
    ) in text
    folder = RunDir(runs_folder(tmp_path, "toy") / classifiers.runs()[0].name)
    folder.create(classifiers.runs()[0].settings, variant="swin")
    folder.write_result(Result(outcome="done"))
    text = plan.plan_text([study.load_study(paths[1], seeds=[0, 1])], tmp_path)
    assert "boxes from classifiers/swin (1 done, 1 not run); elsa_boxes from" in text
    assert "\n  first     swin,elsa of classifiers" in text
    text = plan.plan_text([classifiers, detectors], tmp_path / "other")
    assert "boxes from classifiers/swin (asked for too)" in text
    assert "\n  first " not in text
    listed = plan.plan_json(detectors)["runs"]
    assert [run["start"] for run in listed] == [run.identity for run in classifiers.runs()]
    assert all("start" not in run for run in plan.plan_json(classifiers)["runs"])
    told = why(detectors, "boxes", collect(tmp_path, "toy"), tmp_path)
    assert told["begins_from"].startswith("classifiers/swin (")


def test_the_sheet_says_who_asked_for_it():
    asked = ["plan", "table9", "--tier", "paper", "--sheet", "--set", OWN, "--only", "mask_*_t_1x"]
    told = CliRunner().invoke(app, asked).output
    assert "| mask_swin_t_1x | `train.start.row` | `swin` | ours | --set |  |" in told
