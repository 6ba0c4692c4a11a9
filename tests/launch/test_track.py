"""Trackers mirror run folders, and can neither change nor end a run."""

import importlib.util
import io
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from trackers import EVERY, curve_of, needs_tensorboard, plant, read, record

from lsa_study.config import study
from lsa_study.launch import process, track
from lsa_study.launch.local import Queue
from lsa_study.record import Result
from lsa_study.rundir import RunDir, existing
from lsa_study.training import train


def quiet() -> Console:
    return Console(file=io.StringIO())


class StopAfter:
    """Asks to stop when it has been asked so many times."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def mirrored(folder, tracker, records, **flags):
    """Records that are logged while a mirror runs; what was wrong."""
    mirror = track.Mirror(folder, tracker, flags, follow=True)
    for one in records:
        folder.log_metrics(one)
    mirror.stop()
    return mirror.wait()


GOES_ON = """
import json, sys
from pathlib import Path
from lsa_study.launch import track
from lsa_study.record import Result
from lsa_study.rundir import RunDir
folder, tracker = RunDir(Path(sys.argv[1])), sys.argv[2]
records, result = map(json.loads, sys.argv[3:])
class Looks:
    def select(self, *_):
        if records:
            folder.log_metrics(records.pop(0))
            return [], [], []
        folder.write_result(Result(**result))
        return [sys.stdin], [], []
track.select = Looks()
track.main(folder, tracker, {})
"""


@pytest.mark.parametrize("tracker", EVERY)
def test_a_tracker_shows_what_the_records_say(make_run, tracker, monkeypatch, tmp_path):
    """Two lives, of which the second does epoch 2 again; nothing is written elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "TRACKIO_DIR", "HOME"):
        monkeypatch.setenv(name, str(elsewhere))
    folder = make_run(tracker=tracker)
    assert mirrored(folder, tracker, [record(1), record(2)]) is None
    assert read(tracker, folder).curve == curve_of(folder)
    assert read(tracker, folder).result == {}
    again = [record(2, attempt=2, acc1=1.0), record(3, attempt=2)]
    result = {"outcome": "done", "acc1": 10.375, "reason": None}
    words = [str(folder.root), tracker, json.dumps(again), json.dumps(result)]
    subprocess.run([sys.executable, "-c", GOES_ON, *words], check=True)
    shown = read(tracker, folder)
    assert sorted(shown.curve) == [1, 2, 3]
    assert shown.curve == curve_of(folder)
    assert shown.curve[2]["acc1"] == 1.0
    assert (shown.result["outcome"], float(shown.result["acc1"])) == ("done", 10.375)
    assert shown.settings["model.op.terms"] == '["qk", "bias"]'
    assert shown.settings["train.epochs"] == 2
    assert shown.settings["variant"] == "swin"
    assert shown.settings["identity"] == folder.config()["identity"]
    assert not elsewhere.exists()


@needs_tensorboard
@pytest.mark.parametrize(
    ("name", "judged"),
    [("table9", ["box_ap", "mask_ap"]), ("table10", ["miou"]), ("table1", [])],
)
def test_a_tracker_names_the_metrics_of_the_task(tmp_path, name, judged):
    run = study.load_study(name, tier="toy", seeds=[0]).runs()[0]
    folder = RunDir(tmp_path / run.name)
    folder.create(run.settings, variant=run.variant)
    known = dict.fromkeys(judged, 12.5)
    folder.log_metrics({"epoch": 1, "acc1": None, **{f"metrics.{k}": v for k, v in known.items()}})
    folder.write_result(Result(outcome="done", acc1=None if judged else 45.0, metrics=known))
    assert mirrored(folder, "tensorboard", []) is None
    shown = read("tensorboard", folder)
    result = {key: value for key, value in shown.result.items() if key.startswith("metrics")}
    assert result == {f"metrics.{one}": "12.5" for one in judged}
    assert shown.judged == ([f"metrics.{one}" for one in judged] or ["acc1", "loss"])


@needs_tensorboard
def test_a_run_is_the_same_with_a_tracker(make_run):
    """Bit by bit, stopped and resumed; and the curve has every epoch once."""
    whole, pieces = make_run("whole"), make_run("pieces", tracker="tensorboard")
    said = []
    assert whole.config()["identity"] == pieces.config()["identity"]
    assert train(whole) == "done"
    for calls in (1, 5, 1000):
        with track.beside(pieces, said.append):
            state = train(pieces, stop=StopAfter(calls))
        assert state == ("done" if calls == 1000 else "stopped")
    one, other = load_file(whole.weights), load_file(pieces.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.correct_bits.read_bytes() == pieces.correct_bits.read_bytes()
    shown = read("tensorboard", pieces)
    assert shown.curve == curve_of(pieces)
    assert sorted(shown.curve) == [1, 2]
    assert shown.result["identity"] == pieces.config()["identity"]
    assert "mirrors no more" not in "".join(p.read_text() for p in pieces.root.glob("*/*/log.txt"))
    assert said == []
    assert not whole.tracking.exists()


@needs_tensorboard
def test_a_tracker_draws_no_random_numbers(make_run):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    folder, before = make_run(tracker="tensorboard"), states()
    with track.beside(folder, print):
        folder.log_metrics(record(1))
    assert list(read("tensorboard", folder).curve) == [1]
    assert states() == before


FAULTS = {
    "raise RuntimeError('bad wheel')": "RuntimeError: bad wheel",
    "def init(**_): raise OSError(28, 'No space left')": "OSError: [Errno 28] No space left",
    "import os, signal\ndef init(**_): os.kill(os.getpid(), signal.SIGKILL)": "signal SIGKILL",
    "def init(**_): return None": "has no attribute 'log'",
    "import os\ndef init(**_): os.environ['TRACKIO_SPACE_ID']": "KeyError: 'TRACKIO_SPACE_ID'",
}


@pytest.mark.parametrize("code", FAULTS, ids=FAULTS.values())
def test_a_tracker_that_fails_is_one_line(make_run, monkeypatch, tmp_path, code):
    """It fails on import, at the start, by a signal, at a record, for want of a server's name."""
    plant(monkeypatch, tmp_path, code)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/else")
    folder, said = make_run(tracker="trackio"), []
    folder.log_metrics(record(1))
    with track.beside(folder, said.append):
        folder.log_metrics(record(2))
    assert len(said) == 1
    assert said[0].startswith("runtime.tracker='trackio': mirrors no more (")
    assert FAULTS[code] in said[0]
    assert "\n" not in said[0]


def test_a_tracker_that_fails_does_not_end_the_run(make_run, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "def init(**_): raise RuntimeError('it is\\nbroken')")
    tracked = make_run(tracker="trackio")
    with track.beside(tracked, print):
        assert train(tracked) == "done"
    assert len(tracked.metrics()) == 2
    log = (tracked.attempts()[0] / "log.txt").read_text()
    assert log.count("runtime.tracker='trackio': mirrors no more (broken)") == 1
    assert "Traceback" not in log
    assert "Traceback" in (tracked.tracking / "trackio.txt").read_text()


def test_a_tracker_that_is_stuck_is_given_up(make_run, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "import time\ndef init(**_): time.sleep(600)")
    folder = make_run(tracker="trackio")
    folder.tracking.mkdir()
    code = (
        "import pathlib, sys; from lsa_study.launch import track\n"
        "from lsa_study.rundir import RunDir\n"
        "track.PATIENCE_SECONDS = 1\n"
        "track.main(RunDir(pathlib.Path(sys.argv[1])), 'trackio', {})"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False, timeout=60)
    assert ended.returncode == -14


def test_a_tracker_that_is_not_installed_is_refused_before_training(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = make_run(tracker="wandb")
    assert process.train(folder, lambda: False, quiet()) == "failed"
    status = folder.status()
    assert (status.cause, status.step) == ("import", 0)
    assert status.message == (
        "runtime.tracker='wandb': the package is not installed; pip install 'lsa_study[wandb]'"
    )
    assert not folder.tracking.exists()
    assert not folder.attempts()


def test_the_queue_mirrors_a_run_that_asks_for_it(tmp_path, monkeypatch):
    """Also one whose tracker fails, which is one line of the console and of the log."""
    plant(monkeypatch, tmp_path, "def init(**_): raise RuntimeError('bad wheel')")
    small = ["train.epochs=1", "data.train_limit=64", "data.test_limit=64"]
    loaded = [
        study.load_study(
            "table1", only=row, seeds=[0], overrides=[*small, f"runtime.tracker={tracker}"]
        ).runs()
        for row, tracker in (("swin", "tensorboard"), ("net1", "trackio"))
    ]
    if importlib.util.find_spec("tensorboard") is None:
        del loaded[0]
    runs = [run for one in loaded for run in one]
    queue = Queue(tmp_path / "results", jobs=1, console=quiet())
    assert set(queue.work(runs).finished.values()) == {"done"}
    folders = {run.variant: existing(tmp_path / "results", "toy")[run.identity] for run in runs}
    log = (folders["net1"].attempts()[0] / "log.txt").read_text()
    assert log.count("runtime.tracker='trackio': mirrors no more (RuntimeError: bad wheel)") == 1
    if "swin" in folders:
        assert read("tensorboard", folders["swin"]).curve == curve_of(folders["swin"])
        assert read("tensorboard", folders["swin"]).result["outcome"] == "done"


@pytest.mark.parametrize("command", ["run", "rehearse", "launch"])
def test_a_command_refuses_it_with_exit_code_3(tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['wandb'] = None")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    told = subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", command, "table1", "--only", "swin",
         "--set", "runtime.tracker=wandb", "--results", str(tmp_path / "results")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 3
    assert told.stderr == (
        "lsa: runtime.tracker='wandb': the package is not installed; "
        "pip install 'lsa_study[wandb]'\n"
    )
    assert not (tmp_path / "results").exists()


def test_no_tracker_is_imported_unless_asked_for():
    code = (
        "import sys, lsa_study.cli, lsa_study.cli.doctor, lsa_study.launch.track\n"
        f"sys.exit(any(name in sys.modules for name in {list(track.TRACKERS)}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_tracker_has_an_extra_of_its_name():
    import tomllib
    from pathlib import Path
    from typing import get_args

    from lsa_study.config.settings import Runtime

    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    names = get_args(Runtime.model_fields["tracker"].annotation)
    assert {"none", *track.TRACKERS} == set(names)
    assert set(track.TRACKERS) <= set(extras)
