"""A results folder of old: two finished runs, one that diverged, one that was stopped twice."""

import shutil

import pytest
from pinned import OLD, check, differing_files, lsa, rounded

STUDIES = ["table1", "table2", "table3"]
FIRST, SECOND = "swin-s0-39b8652dd2", "swin-s1-00f5e828aa"


@pytest.fixture
def results(tmp_path):
    """A copy without its tables and collected runs."""
    ignore = shutil.ignore_patterns("tables", "runs.parquet")
    return shutil.copytree(OLD, tmp_path / "old", ignore=ignore)


def test_status_reads_every_state(results):
    rows = lsa("status", "--json", "--results", results).json()["runs"]
    check("old", "status", {row["name"]: row for row in rows})
    assert {row["state"] for row in rows} == {"done", "diverged", "stopped"}
    told = lsa("status", "--results", results).out
    assert "2 done  1 diverged  1 stopped" in told


def test_tables_from_the_run_folders_are_the_old_ones(results):
    lsa("table", *STUDIES, "--results", results)
    assert differing_files(results / "toy" / "tables", OLD / "toy" / "tables") == []


def test_tables_from_the_old_collection_alone_are_the_old_ones(results):
    shutil.rmtree(results / "toy" / "runs")
    shutil.copy(OLD / "toy" / "runs.parquet", results / "toy")
    lsa("table", *STUDIES, "--results", results)
    assert differing_files(results / "toy" / "tables", OLD / "toy" / "tables") == []


def test_old_folders_and_old_collection_agree():
    told = lsa("table", *STUDIES, "--check", "--results", OLD)
    assert told.out == "all cells rebuilt\n"


def test_diff_reads_old_runs(results):
    answer = lsa("diff", FIRST, SECOND, "--json", "--results", results).json()
    check("old", "diff", rounded(answer))


def test_why_reads_old_runs(results):
    answer = lsa("why", "table1", "swin", "--json", "--results", results).json()
    for run in answer["runs"]:
        run["files"] = run["files"].removeprefix(f"{results}/")
    del answer["settings"]  # the line of a study's file
    check("old", "why", rounded(answer))


def test_logs_reads_an_old_run(results):
    told = lsa("logs", "net7", "--results", results).out
    assert "epoch 1/60" in told
    assert "resumed at epoch 3, step 3" in told


def test_plan_counts_old_runs_as_done(results):
    told = lsa("plan", "table1", "--only", "swin", "--seeds", "0-1", "--set",
               "data.train_limit=64", "--set", "data.test_limit=40", "--set", "train.epochs=1",
               "--results", results).out  # fmt: skip
    assert "2 done, 0 running, 0 to do" in told


def test_run_does_not_train_again_what_is_done(results):
    told = lsa("run", "table1", "--only", "swin", "--seeds", "0-1", "--set",
               "data.train_limit=64", "--set", "data.test_limit=40", "--set", "train.epochs=1",
               "--results", results).out  # fmt: skip
    assert told.splitlines()[-1] == "2 were done before"
