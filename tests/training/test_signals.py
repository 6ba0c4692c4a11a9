"""Signals to real processes: leave at a step boundary, or at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_kill import wait_for

from lsa_study.rundir import RunDir
from lsa_study.training.__main__ import main

LONG = {"train__epochs": 300, "runtime__checkpoint_seconds": 1000}


def begun(folder: RunDir):
    return lambda: len(folder.metrics()) >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_leaves(make_run, start, number):
    folder, next_one = make_run("first", **LONG), make_run("second", **LONG)
    process = start(main, [str(folder.root), str(next_one.root)])
    wait_for(begun(folder), process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 130
    status = folder.status()
    assert status.state == "stopped"
    assert status.message.startswith("saved at epoch")
    log = (folder.root / "attempts/001/log.txt").read_text()
    assert "Stopping after this step... saved at epoch" in log
    assert folder.last_checkpoint.exists()
    assert not (folder.root / "owner.json").exists()
    assert next_one.status().state == "waiting"


def main_with_a_long_step(folders):
    from lsa_study.training.step import Stepper

    def long(self, epoch, step, batches):
        (Path(folders[0]) / "in-a-step").touch()
        time.sleep(60)

    Stepper.train_step = long
    return main(folders)


def test_a_second_interrupt_leaves_at_once(make_run, start):
    folder = make_run(**LONG)
    process = start(main_with_a_long_step, [str(folder.root)])
    wait_for((folder.root / "in-a-step").exists, process)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert time.monotonic() - asked < 30
    assert folder.status().state == "stopped"
    assert folder.status().message == "left at once; the last checkpoint stands"
    assert not (folder.root / "owner.json").exists()


@pytest.fixture
def decoded_run(make_run, image_folder):
    """A run whose images are decoded by two processes."""
    return make_run(
        tier="paper", data__root=image_folder, data__image_size=28, data__train_limit=64,
        train__batch_size=2, train__epochs=100, model__backbone="swin_micro", runtime__workers=2,
    )  # fmt: skip


@pytest.mark.parametrize("locked", [False, True])
def test_a_signal_to_the_whole_job_is_no_failure(decoded_run, start, tmp_path, locked):
    """It reaches the loading processes too, also while one holds a lock that the run needs."""
    folder, mark = decoded_run, tmp_path / "hold-the-lock"
    process = start(main_of_a_group, [str(folder.root)], mark)
    wait_for(lambda: folder.status().step > 2 or begun(folder)(), process)
    if locked:
        mark.touch()
        wait_for(lambda: not mark.exists(), process)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 130, (folder.attempts()[0] / "log.txt").read_text()
    assert folder.status().state == "stopped"


def test_loading_processes_end_with_their_run(decoded_run, start):
    process = start(main_of_a_group, [str(decoded_run.root)], Path("never"))
    wait_for(lambda: decoded_run.status().step > 2 or begun(decoded_run)(), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    end = time.monotonic() + 30
    while any(map(is_running, children)):
        assert time.monotonic() < end, "they are still there"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main_of_a_group(folders, mark):
    """In a process group of its own; who removes ``mark`` holds the lock of an event for long."""
    from multiprocessing.synchronize import Event

    from lsa_study.training import monitor

    def is_set(self):
        with self._cond:
            with contextlib.suppress(FileNotFoundError):
                mark.unlink()
                time.sleep(2)
            return not self._flag._semlock._is_zero()

    Event.is_set = is_set
    os.setpgid(0, 0)
    monitor.HEARTBEAT_SECONDS = 0.0
    return main(folders)


@pytest.mark.slow
def test_the_command(make_run, start, tmp_path):
    """A folder that lacks its data, one that is none, a good one: exit code 1, no traceback."""
    good, bad = make_run("good"), make_run("bad", tier="proxy", data__root=tmp_path)
    command = [
        sys.executable,
        "-m",
        "lsa_study.training",
        str(bad.root),
        str(tmp_path),
        str(good.root),
    ]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "1000"}
    )  # fmt: skip
    assert told.returncode == 1
    assert good.result().outcome == "done"
    assert "CIFAR-10 not found at" in told.stderr
    assert "is not a run's configuration" in told.stderr
    assert "Traceback" not in told.stderr
    again = start(main, [str(good.root)])
    again.join(60)
    assert again.exitcode == 0
