"""Trackers mirror a run's records, and can neither change nor end the run."""

import importlib.util
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from lives import StopAfter
from safetensors.torch import load_file
from trackers import read

from lsa_study.training import tracking, train
from lsa_study.training.mirror import Mirror

EVERY = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("tensorboard", "wandb", "trackio")
]

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def record(epoch, attempt=1, **changes):
    known = {"step": 3 * epoch, "acc1": 10.0 + epoch / 8, "ema_acc1": None, "lr": 0.5**epoch}
    return {"epoch": epoch, "attempt": attempt, **known, **changes}


def curve_of(folder):
    """What a tracker should show, from the lines of ``metrics.jsonl``."""
    return {
        line["epoch"]: {
            {"step": "steps"}.get(name, name): pytest.approx(value, rel=1e-6)
            for name, value in line.items()
            if name != "epoch" and value is not None
        }
        for line in folder.metrics()
    }


def mirrored(folder, tracker, records):
    """One life that logs these records; what it said."""
    folder.attempt_folder(1).mkdir(exist_ok=True)
    said = []
    with Mirror(folder, 1, tracker, said.append) as mirror:
        mirror.open()
        for one in records:
            folder.log_metrics(one)
            mirror.news()
    return said


GOES_ON = """
import json, sys
from pathlib import Path
from lsa_study.record import Result
from lsa_study.rundir import RunDir
from lsa_study.training.tracking import Copy
folder, records, result = RunDir(Path(sys.argv[1])), *map(json.loads, sys.argv[2:])
copy = Copy(folder)
copy.update()
for record in records:
    folder.log_metrics(record)
    copy.update()
folder.write_result(Result(**result))
copy.close()
"""


@pytest.mark.parametrize("tracker", EVERY)
def test_a_tracker_shows_what_the_records_say(make_run, tracker, monkeypatch, tmp_path):
    """Two lives, of which the second does epoch 2 again; nothing is written elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "TRACKIO_DIR", "HOME"):
        monkeypatch.setenv(name, str(elsewhere))
    folder = make_run(runtime__tracker=tracker)
    assert mirrored(folder, tracker, [record(1), record(2)]) == []
    assert read(tracker, folder).curve == curve_of(folder)
    assert read(tracker, folder).result == {}
    again = [record(2, attempt=2, acc1=1.0), record(3, attempt=2)]
    result = {"outcome": "done", "acc1": 10.375, "reason": None}
    words = [str(folder.root), json.dumps(again), json.dumps(result)]
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
def test_a_run_is_the_same_with_a_tracker(make_run):
    """Bit by bit, stopped and resumed; and the curve has every epoch once."""
    whole, pieces = make_run("whole"), make_run("pieces", runtime__tracker="tensorboard")
    assert whole.config()["identity"] == pieces.config()["identity"]
    assert train(whole) == "done"
    for calls in (1, 5):
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
    assert train(pieces) == "done"
    one, other = load_file(whole.weights), load_file(pieces.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.correct_bits.read_bytes() == pieces.correct_bits.read_bytes()
    shown = read("tensorboard", pieces)
    assert shown.curve == curve_of(pieces)
    assert sorted(shown.curve) == [1, 2]
    assert shown.result["identity"] == pieces.config()["identity"]
    assert "mirrors no more" not in "".join(p.read_text() for p in pieces.root.glob("*/*/log.txt"))
    assert not whole.tracking.exists()


@needs_tensorboard
def test_a_tracker_draws_no_random_numbers(make_run):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    folder, before = make_run(runtime__tracker="tensorboard"), states()
    mirrored(folder, "tensorboard", [record(1)])
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
    folder, said = make_run(runtime__tracker="trackio"), []
    folder.attempt_folder(1).mkdir()
    folder.log_metrics(record(1))
    with Mirror(folder, 1, "trackio", said.append) as mirror:
        mirror.open()
        mirror._process.wait()
        mirror.news()
        mirror.news()
    assert len(said) == 1
    assert said[0].startswith("runtime.tracker='trackio': mirrors no more (")
    assert FAULTS[code] in said[0]
    assert "\n" not in said[0]


def plant(monkeypatch, folder, code):
    (folder / "trackio.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def test_a_tracker_that_fails_does_not_end_the_run(make_run, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "def init(**_): raise RuntimeError('it is\\nbroken')")
    tracked = make_run(runtime__tracker="trackio")
    assert train(tracked) == "done"
    assert len(tracked.metrics()) == 2
    log = (tracked.attempts()[0] / "log.txt").read_text()
    assert log.count("runtime.tracker='trackio': mirrors no more (broken)") == 1
    assert "Traceback" not in log
    assert "Traceback" in (tracked.attempts()[0] / "tracker.txt").read_text()


def test_a_tracker_that_is_stuck_is_given_up(make_run, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "import time\ndef init(**_): time.sleep(600)")
    folder = make_run(runtime__tracker="trackio")
    code = (
        "import sys; from pathlib import Path; from lsa_study.training import tracking\n"
        "tracking.PATIENCE_SECONDS = 1; tracking.main(Path(sys.argv[1]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False, timeout=60)
    assert ended.returncode == -14


def test_a_tracker_that_is_not_installed_is_refused_before_training(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = make_run(runtime__tracker="wandb")
    assert train(folder) == "failed"
    status = folder.status()
    assert (status.cause, status.step) == ("import", 0)
    assert status.message == (
        "runtime.tracker='wandb': the package is not installed; pip install 'lsa_study[wandb]'"
    )
    assert not folder.tracking.exists()


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
        "import sys, lsa_study.cli, lsa_study.cli.doctor, lsa_study.training.mirror\n"
        f"sys.exit(any(name in sys.modules for name in {list(tracking.TRACKERS)}))"
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
    assert {"none", *tracking.TRACKERS} == set(names)
    assert set(tracking.TRACKERS) <= set(extras)
