"""Rows that begin from others: what they are, and what makes two of them comparable."""

import pytest
from tuned import written

from lsa_study.config import study
from lsa_study.config.contrast import check_contrast
from lsa_study.data import DataLacks
from lsa_study.errors import ConfigError, Refused
from lsa_study.launch import plan, rehearse
from lsa_study.launch.rehearse import shortened

START = "train.start: {row: whole}"


def identities(folder, *changes, **asked):
    return {run.variant: run for run in study.load_study(written(folder, *changes), **asked).runs()}


def test_a_run_names_the_run_it_begins_from(tmp_path):
    for seed in (0, 3):
        runs = identities(tmp_path, seeds=[seed])
        assert runs["tuned"].start == runs["whole"].identity
        assert runs["whole"].start is None
    assert study.load_study(written(tmp_path), only="tuned").runs()[0].start is not None


def test_other_settings_of_the_first_row_make_another_second(tmp_path):
    before = identities(tmp_path)
    after = identities(tmp_path, ("label: Whole, set: {}", "label: Whole, set: {train.lr: 0.5}"))
    assert {before[name].identity == after[name].identity for name in before} == {False}
    drawn = identities(tmp_path, (f", {START}", ""))
    assert drawn["tuned"].identity != before["tuned"].identity


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("{row: hole}", "train.start.row 'hole' is no row; did you mean whole?"),
        ("{row: tuned}", "tuned from tuned: no row is first"),
        ("{row: whole, recipe: abc}", "train.start.recipe is filled in by itself; drop it"),
        ("{}", "train.start: give either row or weights"),
        ("{row: whole, weights: w.pth, source: lsa}", "give either row or weights"),
        ("{weights: w.pth}", "weights and source belong together"),
        ("{row: whole, source: lsa}", "weights and source belong together"),
        ("{weights: ../w.pth, source: lsa}", "leaves the folder weights/"),
        ("{weights: /w.pth, source: lsa}", "leaves the folder weights/"),
        ("{weights: w.pth, source: mine}", "train.start.source = 'mine' will not do"),
        ("{rwo: whole}", "train.start.rwo is not a setting"),
        (
            "{weights: w.pth, source: swin, head: mapped}",
            "train.start: head='mapped' but map is null: nothing says which row of the file's "
            "classifier is which class here; give map: imagenet21k/map22kto1k.txt (",
        ),
        ("{row: whole, head: mapped, map: m.txt}", "the same classes; give head: kept"),
        ("{weights: w.pth, source: swin, map: m.txt}", "changes nothing with head='kept'; give"),
        (
            "{weights: w.pth, source: swin, head: mapped, map: ../m.txt}",
            "map='../m.txt' leaves the folder weights/",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, start, message):
    path = written(tmp_path, (START, f"train.start: {start}"))
    with pytest.raises(ConfigError) as caught:
        study.load_study(path)
    assert message in str(caught.value)
    assert "tuned.yaml:" in str(caught.value)


def test_plan_refuses_weights_without_their_map(tmp_path, monkeypatch):
    """Where the weights do not lie here either, the data are another machine's."""
    start = "train.start: {weights: w.pth, source: swin, head: mapped, map: m.txt}"
    loaded = [study.load_study(written(tmp_path, (START, start)))]
    monkeypatch.delenv("LSA_DATA", raising=False)
    plan.check_starts(loaded)
    monkeypatch.setenv("LSA_DATA", str(tmp_path))
    plan.check_starts(loaded)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "w.pth").write_bytes(b"")
    with pytest.raises(DataLacks, match=r"train\.start\.map: .*m\.txt not found .*; put the map"):
        plan.check_starts(loaded)
    (folder / "m.txt").write_text("0\n1.5\n")
    with pytest.raises(ConfigError, match=r"entry 2 is '1\.5'; give a line for every class"):
        plan.check_starts(loaded)
    (folder / "m.txt").write_text("0\n1\n")
    plan.check_starts(loaded)


def test_settings_of_a_mapped_head_are_part_of_a_run_only_where_there_is_one(tmp_path):
    tuned = study.load_study(written(tmp_path)).variants["tuned"].science()
    assert tuned["train"]["start"].keys() == {"row", "recipe", "weights", "source", "head"}
    assert "crop" not in tuned["evaluation"]


def test_rows_that_begin_from_each_other(tmp_path):
    path = written(tmp_path, ("set: {}}", "set: {train.start: {row: tuned}}}"))
    with pytest.raises(ConfigError, match="no row is first; let one be initialised at random"):
        study.load_study(path)


TWO = """
  other: {label: Other, set: {train.min_lr: 1.0e-5, OP}}
  last:
    label: Last
    against: tuned
    set: {train.lr: 1.0e-12, train.warmup_lr: 0.0, train.min_lr: 0.0, OP, START}
"""
ELSA = "model.op: {kind: elsa, group_width: 4}"


def contrast(folder, factor="factor: [model.op]", start="train.start: {row: other}"):
    path = written(folder, ("factor: [model.op]", factor))
    path.write_text(path.read_text() + TWO.replace("OP", ELSA).replace("START", start))
    check_contrast(study.load_study(path, only="tuned,last"))


def test_what_rows_begin_from_belongs_to_the_contract(tmp_path):
    """The first rows may differ in the factor as the later ones do, and in nothing else."""
    with pytest.raises(Refused) as caught:
        contrast(tmp_path)
    assert "last also changes train.start: train.min_lr (2e-05 -> 1e-05). The" in str(caught.value)
    with pytest.raises(Refused, match="may change one factor of"):
        contrast(tmp_path, "factor: [model.op, train.min_lr]")
    group = "groups: {layer: [model.op, train.min_lr]}\nfactor: [layer]"
    contrast(tmp_path, group)
    with pytest.raises(Refused, match=r"train.start.row \(whole -> None\)"):
        contrast(tmp_path, group, "train.start: null")


def test_plan_shows_it_and_a_rehearsal_needs_it_not(tmp_path):
    loaded = study.load_study(written(tmp_path))
    assert "\n  start     tuned from whole\n" in plan.plan_text([loaded], tmp_path) + "\n"
    later, _ = loaded.runs()
    assert shortened(later, checkpoints=1.0).train.start is None
    drawn = study.load_study(written(tmp_path, (f", {START}", ""))).runs()[0]
    assert rehearse.key(later.settings) == rehearse.key(drawn.settings)


def test_runs_that_begin_with_random_weights_keep_their_identity():
    settings = study.load_study("table1", only="swin").variants["swin"]
    assert "start" not in settings.science()["train"]
