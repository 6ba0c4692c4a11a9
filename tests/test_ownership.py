"""One process writes in a run's folder, also where another one seems to have gone."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from lsa_study import ownership
from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks, Refused
from lsa_study.files import write_json
from lsa_study.record import Result, Status
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint


@pytest.fixture
def folder(tmp_path):
    run = study.load_study("table1", only="swin").runs()[0]
    made = RunDir(tmp_path / run.name)
    made.create(run.settings, variant=run.variant)
    return made


def test_a_second_writer_leaves(folder):
    with (
        folder.owned(job="812_4"),
        pytest.raises(Refused, match=r"is being written by .*job 812_4"),
        folder.owned(),
    ):
        pass
    with folder.owned():
        pass  # the first has left


@pytest.mark.parametrize(
    "owner", ["", "{", "[]", "{}", '{"host": "x", "pid": [], "start": 0}', "9" * 400]
)
def test_a_damaged_owner_is_nobody(folder, owner):
    (folder.root / "owner.json").write_text(owner)
    assert folder.writer() is None
    with folder.owned():
        assert folder.writer().pid == os.getpid()


def test_a_dead_writer_is_replaced(folder):
    code = (
        "import os, sys; from pathlib import Path; from lsa_study.rundir import RunDir\n"
        "manager = RunDir(Path(sys.argv[1])).owned(); manager.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False)
    assert (folder.root / "owner.json").exists()
    with folder.owned() as (_, attempt):
        assert attempt == 2


def test_a_writer_elsewhere_counts_by_its_heartbeat(folder):
    owner = {"host": "elsewhere", "pid": 1, "job": None, "start": 0.0}
    write_json(folder.root / "owner.json", owner)
    folder.write_status(Status(state="running", epoch=1))
    with pytest.raises(Refused, match="elsewhere"), folder.owned():
        pass
    for name in ("owner.json", "status.json"):
        old = time.time() - ownership.STALE_SECONDS - 1
        os.utime(folder.root / name, (old, old))
    with folder.owned():
        pass


def test_whoever_was_taken_over_writes_no_more(folder, monkeypatch):
    write = folder.write_status
    with folder.owned() as (old, _):
        # As it looks from another container, and after a long silence.
        monkeypatch.setattr(ownership, "_machine", lambda: "another process table")
        for name in ("owner.json", "status.json"):
            write(Status(state="running", epoch=1))
            os.utime(folder.root / name, (0, 0))
        with folder.owned() as (new, _):
            new.log_metrics({"epoch": 1, "attempt": 2})
            writes = (
                lambda: old.write_status(Status(state="failed")),
                lambda: old.log_metrics({"epoch": 1, "attempt": 1}),
                lambda: old.write_result(Result(outcome="diverged")),
                lambda: old.write_correct(np.ones(3, np.uint8)),
                lambda: checkpoint.save(old, {"epoch": 1}),
                lambda: checkpoint.save_weights(old, {}),
            )
            for late in writes:
                with pytest.raises(Refused, match="was taken over by"):
                    late()
            assert [record["attempt"] for record in folder.metrics()] == [2]
            assert folder.status().state == "running"
            assert folder.result() is None
            assert not list((folder.root / "checkpoint").iterdir())
            checkpoint.save(new, {"epoch": 2})
    assert not (folder.root / "owner.json").exists()


def test_a_namesake_in_another_process_table_is_no_corpse(folder, monkeypatch):
    with folder.owned():
        monkeypatch.setattr(ownership, "_machine", lambda: "another process table")
        with pytest.raises(Refused, match="is being written by"), folder.owned():
            pass


def test_a_process_number_used_again_is_another_process(folder, monkeypatch):
    with folder.owned():
        began = ownership._process(os.getpid())
        monkeypatch.setattr(ownership, "_process", lambda pid: f"{began}0")
        assert folder.writer() is None


def test_silence_is_counted_by_the_clock_of_the_disk(folder, monkeypatch):
    folder.write_status(Status(state="running"))
    with folder.owned():
        monkeypatch.setattr(time, "time", lambda: 9e9)
        assert folder.silence() < 5


def test_an_owner_that_cannot_be_read_is_not_nobody(folder):
    (folder.root / "owner.json").mkdir()
    with pytest.raises(EnvironmentLacks, match="is no regular file"), folder.owned():
        pass
