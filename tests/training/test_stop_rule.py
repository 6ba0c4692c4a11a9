"""The stopping rule: runs far behind their reference row's end early, as an outcome of its own."""

import json

import pytest

from lsa_study import training
from lsa_study.analysis.collect import collect
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.retry import retry
from lsa_study.rundir import RunDir, runs_folder
from lsa_study.training.stop_rule import why_given_up

SMALL = ["train.epochs=4", "data.train_limit=64", "data.test_limit=64"]
RULE = "runtime.stop={below: reference, at: 0.5, margin: 10}"


def never():
    return False


def pair(results, *overrides, rule=RULE):
    """The folders of a baseline and of a row, the baseline's without a record yet."""
    loaded = study.load_study("table1", only="swin,net1", overrides=[*SMALL, rule, *overrides])
    folders = {}
    for run in loaded.runs():
        folders[run.variant] = folder = RunDir(runs_folder(results, "toy") / run.name)
        folder.create(run.settings, variant=run.variant, reference=run.reference)
    return loaded, folders["net1"], folders["swin"]


def record(run, *accuracies):
    for epoch, acc1 in enumerate(accuracies, start=1):
        run.log_metrics({"epoch": epoch, "attempt": 1, "acc1": acc1})


@pytest.mark.parametrize(
    ("theirs", "ours", "epoch"),
    [
        ([90, 50, 50], [20, 45], None),  # the first epoch is before ``at``
        ([50, 50, 50], [50, 40], None),  # exactly the margin is allowed
        ([50, 50, 50], [50, 39.9], 2),
        ([50], [1, 1, 1], None),  # the reference has not come so far: nothing waits
        ([50, 50], [1, 1, 1], 2),  # ... and is judged as soon as it has
        ([50, 50, 50, 90], [50, 50, 50, 1], None),  # a run that reached its end is finished
    ],
)
def test_what_the_rule_says(tmp_path, theirs, ours, epoch):
    loaded, net1, swin = pair(tmp_path)
    record(swin, *theirs)
    record(net1, *ours)
    reason = why_given_up(net1, loaded.variants["net1"])
    assert (reason is None) if epoch is None else reason.startswith(f"epoch {epoch} of 4: ")
    assert why_given_up(swin, loaded.variants["swin"]) is None, "the reference has none itself"


def test_a_damaged_reference_ends_nothing(tmp_path):
    loaded, net1, swin = pair(tmp_path)
    record(net1, 1, 1, 1)
    (swin.root / "metrics.jsonl").write_text('{"epoch": 2, "acc1": "high"}\n{"epoch": 3}\n\x00')
    assert why_given_up(net1, loaded.variants["net1"]) is None


def test_a_run_is_given_up_shown_so_and_trained_to_its_end_when_asked(tmp_path):
    loaded, net1, swin = pair(tmp_path)
    record(swin, 100, 100, 100)
    assert training.train(net1, stop=never) == "stopped early"
    result = net1.result()
    assert (result.outcome, result.acc1, result.epoch) == ("stopped early", None, 2)
    assert "epoch 2 of 4" in result.reason
    assert "swin-s0" in result.reason
    assert net1.status().state == "stopped early"
    assert training.train(net1, stop=never) == "stopped early", "its result stands"
    row = next(row for row in rows_of(loaded, collect(tmp_path, "toy")) if row.variant == "net1")
    assert (row.outcome, row.word) == ("stopped early 1/1", "stopped early")
    table = build(loaded, collect(tmp_path, "toy"))
    (note,) = [note for note in table.notes if note.mark == "‡"]
    assert "net1 seed 0 in epoch 2 of 4" in note.text
    assert [row.variant for row in table.rows if "‡" in row.marks] == ["net1"]

    left = retry(tmp_path, [], Cluster(), causes=["config"])
    assert not left.local
    again = retry(tmp_path, [], Cluster(), causes=["stopped-early"])
    assert [run.identity for run in again.local] == [net1.identity]
    assert net1.result() is None
    assert training.train(net1, stop=never) == "done"
    assert [one["epoch"] for one in net1.metrics()] == [1, 2, 3, 4]
    assert json.loads((net1.root / "attempts/001/result.json").read_text())["epoch"] == 2
    assert net1.result().attempts == 2


def test_seeds_that_were_left_make_no_difference_of_the_row(tmp_path):
    from synthetic import change_result, write_study

    loaded = write_study(tmp_path, "table1", seeds=(0, 1, 2))
    run = next(run for run in loaded.runs() if (run.variant, run.seed) == ("net1", 1))
    change_result(
        RunDir(runs_folder(tmp_path, "toy") / run.name),
        {"outcome": "stopped early", "acc1": None, "reason": "epoch 4 of 12: so"},
    )
    rows = {row.variant: row for row in rows_of(loaded, collect(tmp_path, "toy"))}
    assert rows["net1"].outcome == "stopped early 1/3"
    assert rows["net1"].contrast.difference.mean is None
    assert rows["net2"].contrast.difference.mean is not None


def test_the_rule_moves_no_identity_and_knows_rows_that_are_not_asked_for():
    plain = study.load_study("table1", only="net1", seeds=[3])
    ruled = study.load_study("table1", only="net1", seeds=[3], overrides=[RULE])
    (before,), (after,) = plain.runs(), ruled.runs()
    (swin,) = study.load_study("table1", only="swin", seeds=[3]).runs()
    assert before.identity == after.identity
    assert (before.reference, after.reference) == (None, swin.identity)


def test_a_study_file_declares_it(tmp_path):
    from lsa_study.config.find import find_study

    text = find_study("table1").read_text("utf-8")
    path = tmp_path / "own.yaml"
    csv = find_study("table1").parent.parent / "results/paper/table1.csv"
    text = text.replace("../results/paper/table1.csv", str(csv))
    path.write_text(f"{text}\nstop: {{below: reference, at: 0.3, margin: 10}}\n")
    loaded = study.load_study(path)
    rules = {settings.runtime.stop.margin for settings in loaded.variants.values()}
    assert rules == {10}
    assert {run.variant for run in loaded.runs() if run.reference is None} == {"swin"}
    assert study.distinct([loaded])[0].variant == "swin", "others are measured by it"
