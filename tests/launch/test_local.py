"""The local queue, with real runs in real worker processes."""

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from lsa_study import machine, rundir
from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.board import Board
from lsa_study.launch.local import Queue
from lsa_study.record import Status

SMALL = ["train.epochs=1", "data.train_limit=64", "data.test_limit=64"]


def quiet() -> Console:
    return Console(file=io.StringIO())


def runs(only, *overrides, seeds=(0,)):
    loaded = study.load_study("table1", only=only, seeds=seeds, overrides=[*SMALL, *overrides])
    return loaded.runs()


def test_on_a_terminal_there_is_one_view(tmp_path, capfd):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    Queue(tmp_path, jobs=1, console=screen).work(runs("swin,net1"))
    shown = screen.file.getvalue()
    assert "0 of 2 runs done, 1 running, 1 waiting" in shown
    assert "1 of 2 runs done, 1 running, 0 waiting, ends about" in shown
    assert shown.count(": done  acc1 ") == 2
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", ""), "what runs say is in their logs"
    assert "epoch 1/1" in next(tmp_path.glob("toy/runs/*/attempts/001/log.txt")).read_text()


def test_only_what_is_missing_is_trained(tmp_path):
    """A run that diverged has a result too."""
    (wild,) = runs("swin", "train.lr=1.0e+30")
    first = Queue(tmp_path, jobs=1, console=quiet()).work([*runs("swin"), wild])
    assert list(first.finished.values()) == ["done", "diverged"]
    assert first.exit_code == 0
    assert "epoch" in rundir.existing(tmp_path, "toy")[wild.identity].result().reason
    second = Queue(tmp_path, jobs=2, console=quiet()).work([*runs("swin,net1"), wild])
    assert second.already == 2
    assert [name.split("-")[0] for name in second.finished] == ["net1"]
    third = Queue(tmp_path, jobs=1, console=quiet()).work([*runs("swin,net1"), wild])
    assert (third.already, third.finished, third.exit_code) == (3, {}, 0)


def test_missing_data_is_told_before_anything_is_made(tmp_path):
    asked = study.load_study(
        "table1", tier="proxy", only="swin", overrides=[f"data.root={tmp_path}/none"]
    ).runs()
    with pytest.raises(EnvironmentLacks, match="none"):
        Queue(tmp_path / "results", jobs=1, console=quiet()).work(asked)
    assert not (tmp_path / "results").exists()


def test_a_precision_that_this_processor_lacks_is_reported_before_anything_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "read_whole", lambda path: b"model name : Old CPU\nflags : avx2")
    asked = runs("swin", "train.precision=bf16", "runtime.device=cpu")
    with pytest.raises(EnvironmentLacks, match="Old CPU does not compute in bfloat16 itself"):
        Queue(tmp_path / "results", jobs=1, console=quiet()).work(asked)
    assert not (tmp_path / "results").exists()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_a_killed_run_takes_no_other_with_it(tmp_path):
    """The first run's process is killed for real; the second still trains."""
    (long,), (short,) = runs("swin", "train.epochs=400"), runs("net1")
    folder = rundir.RunDir(rundir.runs_folder(tmp_path, "toy") / long.name)

    def kill():
        wait_for(folder.metrics)
        os.kill(folder.status().pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = Queue(tmp_path, jobs=1, console=quiet()).work([long, short])
    killer.join()
    assert summary.finished == {long.name: "failed", short.name: "done"}
    status = folder.status()
    assert (status.state, status.cause) == ("failed", "oom-host")
    assert "SIGKILL" in status.message
    assert summary.exit_code == 1


def test_an_interrupt_saves_and_the_next_call_goes_on(tmp_path):
    command = [
        sys.executable, "-m", "lsa_study.cli", "run", "table1", "--only", "swin", "--results",
        str(tmp_path), "--set", "train.epochs=20", "--set", "data.train_limit=128",
        "--set", "data.test_limit=64",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def status() -> Status:
        return next((f.status() for f in rundir.existing(tmp_path, "toy").values()), Status())

    wait_for(lambda: status().epoch >= 2)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping after this step..." in told
    assert status().state == "stopped"
    (folder,) = rundir.existing(tmp_path, "toy").values()
    assert folder.last_checkpoint.exists()
    before = len(folder.metrics())
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert folder.result().outcome == "done"
    assert folder.result().attempts == 2
    assert len(folder.metrics()) == 20
    assert {record["attempt"] for record in folder.metrics()[:before]} == {1}


def test_a_run_that_cannot_record_its_failure_counts_as_failed(tmp_path):
    """As on a full disk: its process ends in order, and its state stays as it was."""
    (run,) = runs("swin")
    queue = Queue(tmp_path, jobs=1, console=Console(file=io.StringIO()))
    folder = rundir.RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
    folder.create(run.settings, variant="swin")
    folder.write_status(Status(state="running"))
    queue.board = Board(1)
    queue.board.begun[run.name] = 0.0
    queue._note(run, folder, {"error": None, "code": 0})
    assert (queue.finished, queue.exit_code) == ({run.name: "failed"}, 1)
    assert "why could not be recorded; free some space" in queue.console.file.getvalue()


@pytest.mark.slow
def test_a_detector_that_is_terminated_twice_goes_on(tmp_path):
    """SIGTERM to the command itself, again while it leaves; then as if nothing had happened."""
    small = [
        "train.epochs=4", "train.batch_size=4", "data.train_limit=16", "data.test_limit=4",
        "data.image_size=64",
    ]  # fmt: skip
    asked = ["run", "table9", "--only", "mask_swin_t_1x", *(f"--set={one}" for one in small)]
    command = [sys.executable, "-m", "lsa_study.cli", *asked, "--results"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def folder(results):
        return next(iter(rundir.existing(results, "toy").values()), None)

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for epoch in (1, 2):
        process = subprocess.Popen([*command, cut], stdout=subprocess.PIPE, text=True, env=env)
        wait_for(lambda at=epoch: folder(cut) is not None and folder(cut).status().epoch >= at)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130, printed
        assert "Continue with the same command" in printed
        assert (folder(cut).status().state, folder(cut).result()) == ("stopped", None)
        assert folder(cut).last_checkpoint.exists()
    for results in (cut, whole):
        subprocess.run([*command, results], capture_output=True, check=True, env=env)
    one, other = folder(cut), folder(whole)
    assert (one.result().outcome, one.result().attempts) == ("done", 3)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert one.result().metrics == other.result().metrics


def test_equal_failures_hold_the_rest(tmp_path):
    """Folders that cannot be read fail each run in the same words; the fourth is not tried."""
    asked = runs("swin", seeds=(0, 1, 2, 3))
    for run in asked:
        folder = rundir.runs_folder(tmp_path, "toy") / run.name
        folder.mkdir(parents=True)
        rundir.RunDir(folder).create(run.settings, variant="swin")
        (folder / "checkpoint").rmdir()
        (folder / "checkpoint").write_text("in the way")
    summary = Queue(tmp_path, jobs=1, console=quiet()).work(asked)
    assert summary.exit_code == 1
    assert (list(summary.finished.values()), summary.held) == (["failed"] * 3, 1)
