"""A run folder survives what happens to folders: kills, torn lines, two writers, full disks."""

import json
import os
import subprocess
import sys

import pytest

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.errors import ConfigError, EnvironmentLacks, Refused
from lsa_study.files import write_json
from lsa_study.record import Status
from lsa_study.rundir import RunDir


@pytest.fixture
def run():
    return study.load("table1", only="swin").runs()[0]


@pytest.fixture
def folder(tmp_path, run):
    made = RunDir(tmp_path / run.name)
    made.create(run.settings, variant=run.variant)
    return made


def test_settings_come_back_as_they_were(folder, run):
    assert folder.settings() == run.settings
    assert folder.config()["identity"] == run.identity
    assert folder.root.stat().st_mode & 0o777 == 0o700


def test_another_run_is_refused(folder, run):
    folder.create(run.settings, variant=run.variant)
    other = study.load("table1", only="swin", overrides=["train.epochs=3"]).runs()[0]
    with pytest.raises(Refused, match=r"holds another run \(train differ\)"):
        folder.create(other.settings, variant="swin")


def test_resources_of_another_call_are_not_another_run(folder):
    other = study.load("table1", only="swin", overrides=["runtime.workers=3"]).runs()[0]
    folder.create(other.settings, variant="swin")


def test_a_torn_line_costs_nothing_but_itself(folder):
    with folder.owned() as attempt:
        folder.log_metrics({"epoch": 1, "attempt": attempt, "acc1": 10.0})
    with (folder.root / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "att')  # the kill
    assert [record["epoch"] for record in folder.metrics()] == [1]
    with folder.owned() as attempt:
        assert attempt == 2
        folder.log_metrics({"epoch": 2, "attempt": attempt, "acc1": 20.0})
    assert [(r["epoch"], r["acc1"]) for r in folder.metrics()] == [(1, 10.0), (2, 20.0)]


def test_the_last_record_of_an_epoch_wins(folder):
    for accuracy in (1.0, 2.0):
        folder.log_metrics({"epoch": 1, "attempt": 1, "acc1": accuracy})
    assert folder.metrics() == [{"epoch": 1, "attempt": 1, "acc1": 2.0}]


def test_a_second_writer_leaves(folder):
    with (
        folder.owned(job="812_4"),
        pytest.raises(Refused, match=r"is being written by .*job 812_4"),
        folder.owned(),
    ):
        pass
    with folder.owned():
        pass  # the first has left


def test_a_dead_writer_is_replaced(folder):
    code = (
        "import os, sys; from pathlib import Path; from lsa_study.rundir import RunDir\n"
        "manager = RunDir(Path(sys.argv[1])).owned(); manager.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False)
    assert (folder.root / "owner.json").exists()
    with folder.owned() as attempt:
        assert attempt == 2


def test_a_writer_elsewhere_counts_by_its_heartbeat(folder):
    owner = {"host": "elsewhere", "pid": 1, "job": None, "start": 0.0}
    write_json(folder.root / "owner.json", owner)
    folder.write_status(Status(state="running", epoch=1))
    with pytest.raises(Refused, match="elsewhere"), folder.owned():
        pass
    stale = json.loads((folder.root / "status.json").read_text())
    stale["heartbeat"] -= rundir.STALE_SECONDS + 1
    (folder.root / "status.json").write_text(json.dumps(stale))
    with folder.owned():
        pass


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"epoch": 3}', "\x00\xff"])
def test_a_garbage_status_reads_as_waiting(folder, garbage):
    (folder.root / "status.json").write_text(garbage)
    assert folder.status() == Status()


def test_a_broken_result_is_told_not_taken_for_none(folder):
    assert folder.result() is None
    (folder.root / "result.json").write_text('{"outcome": "do')
    with pytest.raises(ConfigError, match="is unreadable"):
        folder.result()


def test_a_broken_configuration_is_told(folder):
    (folder.root / "config.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not a run's configuration"):
        folder.settings()


def test_another_schema_is_told(folder):
    text = (folder.root / "config.yaml").read_text().replace("schema: 1", "schema: 99")
    (folder.root / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="was made by schema 99"):
        folder.settings()


def test_a_failed_write_leaves_the_old_file_and_no_part(folder, monkeypatch):
    folder.write_status(Status(state="running", epoch=1))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentLacks, match="No space left on device"):
        folder.write_status(Status(state="running", epoch=2))
    assert folder.status().epoch == 1
    assert not list(folder.root.glob("*.part"))


def test_existing_finds_runs_by_identity(tmp_path, run):
    folder = RunDir(rundir.runs_folder(tmp_path, "toy") / f"oldname-s0-{run.identity}")
    folder.create(run.settings, variant="oldname")
    assert rundir.existing(tmp_path, "toy") == {run.identity: folder}
    assert rundir.existing(tmp_path, "paper") == {}
