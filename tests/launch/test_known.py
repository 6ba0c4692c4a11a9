"""Runs that a committed runs.parquet knows and whose folders are elsewhere, as in a fresh clone."""

import io
import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from in_process import answer
from rich.console import Console
from synthetic import write_run
from tuned import written
from typer.testing import CliRunner

from lsa_study.analysis.collect import collect
from lsa_study.cli import app
from lsa_study.config import study
from lsa_study.config.asked import parquet_path, stored
from lsa_study.config.remember import named, remember
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.launch.cluster import Cluster, read_cluster
from lsa_study.launch.known import known_alone
from lsa_study.launch.local import Queue
from lsa_study.launch.plan import plan_text
from lsa_study.launch.retry import retry
from lsa_study.launch.slurm import launch
from lsa_study.launch.status import status
from lsa_study.record import Status
from lsa_study.rundir import RunDir, runs_folder

SMALL = ["train.epochs=1", "data.train_limit=64", "data.test_limit=64"]


def loaded(only="swin,net1", seeds=(0,)):
    return study.load_study("table1", only=only, seeds=seeds, overrides=SMALL)


def forget_folders(results, *runs, **changes):
    """What is left once runs are collected and only runs.parquet is committed."""
    for run in runs:
        write_run(results, run, changes=changes)
    collect(results, "toy", update=True)
    shutil.rmtree(results / "toy" / "runs")


@pytest.fixture
def clone(tmp_path):
    """A results folder that knows the two runs at seed 0 from runs.parquet alone."""
    remember(tmp_path, [named(loaded(), tmp_path, "small")])
    forget_folders(tmp_path, *loaded().runs())
    return tmp_path


def queue(results, runs, **how):
    return Queue(results, jobs=1, console=Console(file=io.StringIO())).work(runs, **how)


def lsa(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_plan_counts_them_as_done(clone):
    text = plan_text([loaded("swin,net1,net2")], clone)
    assert "reuse     2 done, of which 2 known from runs.parquet, 0 running, 1 to do" in text
    assert text.endswith("3 distinct runs, 3 epochs in all, 1 to do")
    write_run(clone, loaded("net2").runs()[0])
    assert "3 done, of which 2 known from" in plan_text([loaded("swin,net1,net2")], clone)


def test_run_does_not_train_them_and_says_so(clone):
    asked = ["table1", "--only", "swin,net1", *(f"--set={one}" for one in SMALL)]
    assert lsa("run", *asked, "--results", clone).splitlines()[-1] == (
        "2 known from runs.parquet (--again trains them)"
    )
    assert not (clone / "toy" / "runs").exists()


def test_again_trains_them_and_their_folders_win(clone):
    (run,) = loaded("swin").runs()
    before = collect(clone, "toy").runs.loc[run.identity, "loss"]
    done = queue(clone, loaded().runs(), again=True)
    assert (done.elsewhere, [*done.finished.values()]) == (0, ["done", "done"])
    after = collect(clone, "toy", update=True).runs
    assert len(after) == 2
    assert after.loc[run.identity, "loss"] != before
    last = queue(clone, loaded().runs())
    assert (last.already, last.elsewhere, last.finished) == (2, 0, {})


def test_other_settings_and_seeds_are_trained(clone):
    def missing(one):
        return {run.identity for run in one.runs()} - known_alone(one.runs(), clone, ())

    assert len(missing(loaded(seeds=[0, 1]))) == 2
    other = study.load_study("table1", only="swin", overrides=[*SMALL, "train.lr=0.5"])
    assert len(missing(other)) == 1
    assert not missing(study.load_study("small", recall=clone)), "the side study, as asked for"


def test_status_shows_how_they_ended_and_retry_leaves_them(clone):
    rows = status(clone, ["small"], tier="toy")
    assert [(row.state, row.note) for row in rows] == [("done", "known from runs.parquet")] * 2
    assert all(row.acc1 == row.score and row.acc1 > 50 for row in rows)
    assert "2 done" in lsa("status", "small", "--tier", "toy", "--results", clone)
    assert not retry(clone, ["small"], read_cluster(), tier="toy").local
    shown = lsa("why", "small", "swin", "--results", clone)
    assert "seed 0" in shown
    assert "done" in shown


def test_status_shows_how_a_detector_ended_by_its_own_metric(tmp_path):
    boxes = study.load_study("table9", only="mask_swin_t_1x", seeds=[0])
    remember(tmp_path, [named(boxes, tmp_path, "boxes")])
    forget_folders(tmp_path, *boxes.runs(), acc1=None, metrics={"box_ap": 31.0, "mask_ap": 28.0})
    [row] = status(tmp_path, ["boxes"], tier="toy")
    assert (row.state, row.metric, row.acc1) == ("done", "box_ap", None)
    assert row.score == 31


def test_what_began_here_shows_its_own_state_and_is_still_known(clone):
    (run,) = loaded("swin").runs()
    folder = RunDir(runs_folder(clone, "toy") / run.name)
    folder.create(run.settings, variant=run.variant)
    folder.write_status(Status(state="failed", cause="bug", message="no luck"))
    assert [row.state for row in status(clone, tier="toy")] == ["failed"]
    assert queue(clone, [run]).elsewhere == 1
    assert [one.identity for one in retry(clone, [], read_cluster(), causes=["bug"]).local] == [
        run.identity
    ]


def test_launch_leaves_them_unless_asked(clone, slurm):
    site = Cluster(check_data="job")
    done = launch(loaded().runs(), clone, site, dry_run=True)
    assert [*done.skipped] == ["known from runs.parquet; lsa launch --again"]
    assert not done.queued
    assert len(launch(loaded().runs(), clone, site, dry_run=True, anew=True).queued[0].runs) == 2


def test_a_run_whose_weights_others_need_is_trained_or_refused(tmp_path):
    later, first = study.load_study(written(tmp_path)).runs()
    forget_folders(tmp_path, first)
    assert known_alone([first], tmp_path, ()) == {first.identity}
    assert known_alone([later, first], tmp_path, ()) == set()
    with pytest.raises(EnvironmentLacks, match="not been trained here, so there are no weights"):
        queue(tmp_path, [later])
    forget_folders(tmp_path, later)
    assert known_alone([later, first], tmp_path, ()) == {first.identity, later.identity}


def test_a_reference_that_a_rule_measures_by_is_trained_with_those_it_measures(clone):
    swin, net1 = loaded("swin,net1").runs()
    other = replace(net1, identity="0123456789", reference=swin.identity)
    assert known_alone([swin, other], clone, ()).isdisjoint({swin.identity})
    assert swin.identity in known_alone([swin, net1], clone, ())


@pytest.mark.parametrize("damage", ["schema", "tier", "outcome", "older"])
def test_what_the_file_does_not_say_is_trained(clone, damage):
    path = parquet_path(clone, "toy")
    table = pd.read_parquet(path)
    table["schema"] += damage == "schema"
    table["settings.tier"] = "proxy" if damage == "tier" else "toy"
    table["outcome"] = "begun" if damage == "outcome" else "done"
    table.drop(columns=["epochs"] if damage == "older" else []).to_parquet(path, index=False)
    assert len(known_alone(loaded().runs(), clone, ())) == 2 * (damage == "older")


def test_status_names_what_the_file_alone_knows(clone, capfd):
    found = answer(clone, "status --results .", capfd)
    assert found[1].endswith("\n2 of tier toy in runs.parquet: see lsa status STUDY\n")


@pytest.mark.parametrize("damage", ["torn", "other"])
def test_a_file_that_cannot_be_read_is_not_taken_for_nothing_done(clone, capfd, slurm, damage):
    path = parquet_path(clone, "toy")
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:200])
    else:
        pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(ConfigError, match=r"runs\.parquet: is unreadable .* or move it away"):
        launch(loaded().runs(), clone, Cluster(check_data="job"), dry_run=True)
    asked = "table1 --only swin,net1 --set " + " --set ".join(SMALL)
    for command, code, where in (
        (f"run {asked}", 2, "err"), (f"plan {asked}", 0, "out"), ("status", 0, "out"),
        ("status small", 0, "out"), ("why small swin", 0, "err"), ("diff swin net1", 2, "err"),
        ("note swin", 2, "err"),
    ):  # fmt: skip
        found, out, err = answer(clone, f"{command} --results {clone}", capfd)
        assert found == code, command
        assert f"{path}: " in {"out": out, "err": err}[where], command
    assert not (clone / "toy" / "runs").exists()


def test_nothing_is_known_of_a_folder_without_the_file(tmp_path):
    assert stored(tmp_path, "toy") == {}
    plan = lsa("plan", "table4", "--json", "--results", tmp_path)
    assert len(json.loads(plan)["runs"]) == 3
