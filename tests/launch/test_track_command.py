"""``lsa track`` mirrors the runs of a study, or one run, while they are trained or after."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from trackers import curve_of, needs_tensorboard, plant, read, record

from lsa_study.record import Result, Status


@pytest.fixture
def lsa_track():
    """Start the command on the results folder that a run folder is in."""
    with contextlib.ExitStack() as stack:

        def start(folder, *words, **variables):
            command = [sys.executable, "-m", "lsa_study.cli", "track", *words]
            process = subprocess.Popen(
                [*command, "--results", str(folder.root.parents[2])],
                env={**os.environ, **variables},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@needs_tensorboard
@pytest.mark.parametrize("how", ["study", "name", "identity", "path"])
def test_the_command_mirrors_what_is_there(make_run, lsa_track, how):
    one, other = make_run("swin-s0-0123456789"), make_run("net1-s0-abcdef0123")
    for folder in (one, other):
        folder.log_metrics(record(1))
        folder.write_result(Result(outcome="done", acc1=10.125))
    words = {"study": "table1", "name": "swin-s0", "identity": "012345", "path": str(one.root)}
    command = lsa_track(one, words[how])
    told, errors = command.communicate()
    mirrored = [one, other] if how == "study" else [one]
    assert (command.returncode, errors) == (0, "")
    expected = [f"{run.root.name}: {run.tracking / 'tensorboard'}" for run in mirrored]
    assert sorted(told.splitlines()) == sorted(expected)
    for folder in mirrored:
        assert read("tensorboard", folder).curve == curve_of(folder)
        assert read("tensorboard", folder).result == {"outcome": "done", "acc1": "10.125"}
    assert (how == "study") == other.tracking.exists()


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def curve_so_far(folder):
    """What TensorBoard shows while it is being written, which it is in pieces."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return read("tensorboard", folder).curve


@needs_tensorboard
def test_following_ends_with_the_last_run_also_one_that_begins_meanwhile(make_run, lsa_track):
    one = make_run("swin-s0-0123456789")
    command = lsa_track(one, "table1", "-f")
    one.log_metrics(record(1))
    wait_until(lambda: curve_so_far(one) == curve_of(one))
    one.log_metrics(record(2))
    wait_until(lambda: curve_so_far(one) == curve_of(one))
    one.write_result(Result(outcome="done", acc1=10.125))
    other = make_run("net1-s0-abcdef0123")
    other.log_metrics(record(1))
    wait_until(lambda: curve_so_far(other) == curve_of(other))
    assert command.poll() is None
    other.write_status(Status(state="failed"))
    assert command.wait(60) == 0
    assert read("tensorboard", one).result == {"outcome": "done", "acc1": "10.125"}
    assert read("tensorboard", other).curve == curve_of(other)


@needs_tensorboard
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_mirror_outlives_the_command(make_run, lsa_track, number):
    folder = make_run()
    command = lsa_track(folder, "swin", "-f")
    wait_until((folder.tracking / "tensorboard").is_dir)
    folder.log_metrics(record(1))
    command.send_signal(number)
    assert command.wait(60) == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    with folder.locked("tensorboard"):  # free once the mirror has ended
        assert read("tensorboard", folder).curve == curve_of(folder)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["absent"], 2, "absent: no run under"),
        (["table2"], 2, "table2: no runs under"),
        (["swin", "--tracker", "mlflow"], 2, "--tracker mlflow: no such tracker; known: tensorbo"),
        (["swin", "--mode", "live"], 2, "--mode live: no such mode; known: offline, online"),
        (["swin", "--group", "a"], 2, "are for wandb, not for tensorboard; leave them out, or add"),
        (["swin", "--tracker", "wandb"], 3, "runtime.tracker='wandb': the package is not insta"),
    ],
)
def test_what_the_command_refuses(make_run, lsa_track, tmp_path, words, code, told):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['wandb'] = None")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    folder = make_run()
    command = lsa_track(folder, *words, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    _, errors = command.communicate()
    assert (command.returncode, told in errors, errors.count("\n")) == (code, True, 1)
    assert not folder.tracking.exists()


def test_a_tracker_that_fails_is_one_line_of_the_command(
    make_run, lsa_track, monkeypatch, tmp_path
):
    plant(monkeypatch, tmp_path, "def init(**_): raise RuntimeError('bad wheel')")
    folder = make_run(tracker="trackio")
    folder.write_result(Result(outcome="done"))
    command = lsa_track(folder, "swin")
    told, errors = command.communicate()
    assert (command.returncode, errors) == (1, "")
    assert told == f"{folder.root.name}: failed (RuntimeError: bad wheel)\n"


WANDB = """
import json, os
class Settings(dict):
    __init__ = lambda self, **given: super().__init__(given)
def init(**given):
    given = {k: given[k] for k in ("mode", "project", "entity", "group", "tags") if k in given}
    raise RuntimeError(json.dumps([given, os.environ.get("WANDB_API_KEY")], sort_keys=True))
"""


def test_flags_reach_wandb_and_a_key_only_when_it_is_online(
    make_run, lsa_track, monkeypatch, tmp_path
):
    """A stand-in says what it was called with; the package itself needs a server for this."""
    (tmp_path / "wandb.py").write_text(WANDB)
    plant(monkeypatch, tmp_path, "")
    folder = make_run(tracker="wandb")
    folder.write_result(Result(outcome="done"))
    flags = ["--project", "p", "--entity", "e", "--group", "g", "--tag", "a", "--tag", "b"]
    for mode, key in (("online", '"secret"'), ("offline", "null")):
        command = lsa_track(folder, "swin", *flags, "--mode", mode, WANDB_API_KEY="secret")
        given = {
            "mode": mode, "project": "p", "entity": "e", "group": "g", "tags": ["a", "b"],
        }  # fmt: skip
        expected = json.dumps(given, sort_keys=True)
        assert f"RuntimeError: [{expected}, {key}]" in command.communicate()[0]
