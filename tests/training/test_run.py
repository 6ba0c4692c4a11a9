"""Whole runs on real digits: their records, their results, their failures."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lives import StopAfter, equal, weights_of
from rich.console import Console

import lsa_kernels
import lsa_study
from lsa_study import data, models
from lsa_study.errors import ConfigError, Refused
from lsa_study.files import write_json
from lsa_study.record import Status
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint, environment, evaluate, run, train
from lsa_study.training.monitor import Monitor

RESULT_KEYS = {
    "outcome", "acc1", "acc5", "loss", "epoch", "epochs", "weights", "selected", "best_acc1",
    "ema_acc1", "params", "macs", "train_images", "test_images", "seconds",
    "seconds_per_epoch", "processor_seconds_per_epoch", "peak_memory_bytes", "device",
    "device_kind", "precision", "torch",
    "commit", "dirty", "effective_batch", "data_fingerprint", "attempts", "schema",
    "identity", "variant", "seed", "implementation", "reason", "finished", "start", "continued",
    "code", "fused", "threads", "processes",
}  # fmt: skip
STATUS_KEYS = {
    "state", "heartbeat", "epoch", "epochs", "step", "attempt", "host", "job", "pid", "cause",
    "message", "eta_seconds", "acc1", "saved",
}  # fmt: skip
METRIC_KEYS = {
    "epoch", "attempt", "step", "lr", "train_loss", "loss", "acc1", "acc5", "model_acc1",
    "ema_acc1", "seconds", "images_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One finished run, looked at by several tests."""
    from lsa_study.config import study

    overrides = ["train.epochs=2", "data.train_limit=96", "train.batch_size=32"]
    (asked,) = study.load_study("table1", only="net7", seeds=[3], overrides=overrides).runs()
    folder = RunDir(tmp_path_factory.mktemp("done") / "run")
    folder.create(asked.settings, variant="net7")
    console = Console(file=io.StringIO(), force_terminal=False)
    torch.set_num_threads(1)
    assert train(folder, console=console) == "done"
    return folder, console.file.getvalue()


def test_the_result_says_all_that_tables_need(done):
    folder, _ = done
    result = folder.result()
    assert set(result.as_json()) == RESULT_KEYS
    assert result.outcome == "done"
    assert (result.epoch, result.epochs, result.attempts) == (2, 2, 1)
    assert (result.train_images, result.test_images) == (96, 497)
    assert (result.variant, result.seed) == ("net7", 3)
    assert result.identity == folder.settings().identity()
    assert (result.weights, result.selected, result.ema_acc1) == ("model", "last", None)
    assert (result.precision, result.effective_batch) == ("float32", 32)
    assert result.params == 45058
    assert result.macs > 1e6
    assert result.reason is None
    assert "UnifiedSpatialOp" in result.implementation
    assert 0 < result.seconds < 600
    assert result.peak_memory_bytes > 1e8
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", result.finished)


def test_the_metrics_agree_with_the_result(done):
    folder, _ = done
    records = folder.metrics()
    assert [set(record) for record in records] == [METRIC_KEYS] * 2
    assert [(r["epoch"], r["step"], r["attempt"]) for r in records] == [(1, 3, 1), (2, 6, 1)]
    result = folder.result()
    assert records[-1]["acc1"] == result.acc1
    assert records[-1]["loss"] == result.loss
    assert result.best_acc1 == max(record["acc1"] for record in records)


def test_one_bit_per_test_image(done):
    """The kept weights, judged anew one by one, give the kept bits and accuracy."""
    folder, _ = done
    settings = folder.settings()
    packed = np.load(folder.correct_bits)
    bits = np.unpackbits(packed["bits"], count=int(packed["count"]))
    sets = data.load(settings)
    model = models.from_settings(settings.model, image_size=28, num_classes=10)
    model.load_state_dict(weights_of(folder))
    model.eval()
    for row in (0, 100, 496):
        image = sets._normalise(sets._tests[0][0][row : row + 1])
        with torch.no_grad():
            assert bits[row] == (model(image).argmax() == sets._tests[0][1][row])
    assert 100 * bits.mean() == pytest.approx(folder.result().acc1)
    scores = evaluate.evaluate(model, sets, 64)
    assert scores.bits.tolist() == bits.tolist()
    assert scores.acc5 >= scores.acc1
    assert scores.acc5 == pytest.approx(folder.result().acc5)
    assert scores.loss == pytest.approx(folder.result().loss, rel=1e-5)


def test_the_folder_is_left_tidy(done):
    folder, told = done
    kept = {str(p.relative_to(folder.root)) for p in folder.root.rglob("*") if p.is_file()}
    assert kept == {
        "config.yaml", "status.json", "metrics.jsonl", "result.json", "correct.npz", ".lock",
        "checkpoint/weights.safetensors", "attempts/001/log.txt", "attempts/001/environment.json",
    }  # fmt: skip
    status = folder.status()
    assert set(status.as_json()) == STATUS_KEYS
    assert (status.state, status.epoch, status.cause) == ("done", 2, None)
    (found,) = folder.environments()
    assert found.kernels == lsa_kernels.build_info()
    assert "no gradient of a bias" in found.attention
    # Where they lie is of this machine alone, and no other path.
    assert found.fused == "none" or lsa_kernels.build_info().startswith(f"{found.fused}, /")
    assert (found.processes, found.code) == (1, environment.code_digest())
    assert found.threads == 1
    assert found.packages["torch"]
    assert len(found.commit or 40 * "x") == 40
    assert found.test_images == folder.result().test_images
    assert re.search(r"epoch 2/2  loss \d\.\d+  test \d\.\d+  acc1 \d+\.\d+ %", told)
    assert re.search(r"done: acc1 \d+\.\d+ % after epoch 2", told)


def test_a_run_that_has_ended_is_left_alone(done):
    folder, _ = done
    before = folder.result()
    checkpoint.save(folder, {"left": torch.ones(1)})
    folder.write_status(Status(state="running", epoch=2))
    assert train(folder) == "done"
    assert folder.result() == before
    assert len(folder.attempts()) == 1
    assert not folder.last_checkpoint.exists()
    assert folder.status().state == "done"


# -- results that are not done ---------------------------------------------------------------


def test_divergence_is_a_result_with_its_first_step(make_run):
    """A huge rate: the loss of step 1 is finite, a later one is not."""
    folder = make_run(train__lr="1.0e+30", train__warmup_epochs=0)
    assert train(folder) == "diverged"
    result = folder.result()
    assert set(result.as_json()) == RESULT_KEYS
    assert (result.outcome, result.acc1, result.loss) == ("diverged", None, None)
    assert re.fullmatch(
        r"epoch 1, step 2: training loss (nan|inf) at lr \d\.\d+e\+30", result.reason
    )
    assert folder.status().state == "diverged"
    assert not folder.correct_bits.exists()
    assert train(folder) == "diverged"
    assert len(folder.attempts()) == 1


def test_divergence_in_the_last_step_is_seen_on_the_test_set(make_run):
    folder = make_run(
        train__lr="1.0e+30", train__warmup_epochs=0, train__epochs=1, data__train_limit=32
    )
    assert train(folder) == "diverged"
    assert "after step 1: test loss" in folder.result().reason


# -- failures --------------------------------------------------------------------------------


def log_of(folder: RunDir) -> str:
    return (folder.attempts()[-1] / "log.txt").read_text()


def test_missing_data_fail_before_training(make_run, tmp_path):
    folder = make_run(tier="proxy", data__root=tmp_path / "nowhere")
    console = Console(file=io.StringIO())
    assert train(folder, console=console) == "failed"
    status = folder.status()
    assert (status.state, status.cause) == ("failed", "data")
    assert "CIFAR-10 not found at" in status.message
    assert "Traceback" not in log_of(folder) + console.file.getvalue()
    assert "CIFAR-10 not found at" in " ".join(console.file.getvalue().split())


def test_a_batch_that_cannot_be_cut_is_the_users_fault(make_run):
    folder = make_run(runtime__accumulate=3)
    assert train(folder) == "failed"
    assert folder.status().cause == "config"
    assert "train.batch_size = 32 cannot be cut into 3 parts" in folder.status().message


def test_a_gpu_that_is_not_there(make_run):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    folder = make_run(runtime__device="cuda")
    assert train(folder) == "failed"
    assert folder.status().cause == "node"
    assert "device cuda: torch can use no GPU (" in folder.status().message
    assert "--set runtime.device=cpu" in folder.status().message


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KeyError("rel_pos"), "bug"),
        (ImportError("no triton"), "import"),
        (OSError(5, "Input/output error"), "disk"),
    ],
)
def test_a_crash_keeps_its_traceback_in_the_log(make_run, monkeypatch, error, cause):
    folder = make_run()
    monkeypatch.setattr(run.Trainer, "_train_epoch", lambda self: (_ for _ in ()).throw(error))
    assert train(folder) == "failed"
    status = folder.status()
    assert status.cause == cause
    assert type(error).__name__ in status.message
    assert "Traceback (most recent call last)" in log_of(folder)
    monkeypatch.undo()
    assert train(folder) == "done"
    assert folder.status().cause is None
    assert folder.result().attempts == 2


def test_a_disk_that_fills_up_loses_nothing(make_run, monkeypatch):
    folder = make_run(runtime__checkpoint_seconds=0.0001)
    assert train(folder, stop=StopAfter(2)) == "stopped"
    kept = folder.last_checkpoint.read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train(folder) == "failed"
    assert folder.status().cause == "disk"
    assert "No space left on device" in folder.status().message
    assert folder.last_checkpoint.read_bytes() == kept
    monkeypatch.undo()
    whole = make_run("whole")
    assert [train(folder), train(whole)] == ["done", "done"]
    assert equal(weights_of(folder), weights_of(whole))


def test_a_log_that_a_full_disk_does_not_take_ends_no_run(make_run, monkeypatch):
    """Nor does closing it, which writes what is left."""
    monkeypatch.setattr(os, "devnull", "/dev/full")
    folder = make_run()
    with Monitor(folder, folder.settings(), 0, None) as monitor:
        monitor.log("epoch 1/2")
    assert monitor._log.closed


def test_other_data_than_it_began_with_are_refused(make_run, monkeypatch):
    folder = make_run()
    assert train(folder, stop=StopAfter(1)) == "stopped"
    monkeypatch.setattr(data.in_memory.digits, "VERSION", "digits-other")
    data.in_memory._read.cache_clear()
    assert train(folder) == "failed"
    assert folder.status().cause == "data"
    assert re.search(
        "was begun with data digits-1-.*, found are digits-other-", folder.status().message
    )
    monkeypatch.undo()
    data.in_memory._read.cache_clear()
    assert train(folder) == "done"


@pytest.mark.parametrize(
    ("path", "computes"),
    [
        ("lsa_study/ops/unified.py", True),
        ("lsa_study/models/new.py", True),
        ("lsa_kernels/csrc/simd.h", True),
        ("lsa_kernels/gpu/eq4.py", True),
        ("lsa_study/analysis/html.py", False),
        ("lsa_study/ops/__pycache__/unified.pyc", False),
    ],
)
def test_the_digest_is_of_the_sources_that_compute(tmp_path, monkeypatch, path, computes):
    for package in (lsa_study, lsa_kernels):
        source = Path(package.__file__).parent
        shutil.copytree(source, tmp_path / source.name)
        copied = str(tmp_path / source.name / "__init__.py")
        monkeypatch.setattr(package, "__file__", copied)
    before = environment.code_digest()
    changed = tmp_path / path
    changed.parent.mkdir(exist_ok=True)
    changed.write_bytes((changed.read_bytes() if changed.exists() else b"") + b"\n")
    assert (environment.code_digest() != before) == computes


def test_a_run_that_went_on_with_other_code_says_so(make_run, monkeypatch):
    folder = make_run()
    for commit, stop in (("a" * 40, StopAfter(1)), ("b" * 40, StopAfter(1)), ("b" * 40, None)):
        monkeypatch.setattr(environment, "code_digest", lambda commit=commit: commit)
        train(folder, **({} if stop is None else {"stop": stop}))
    assert folder.result().continued == f"code {'a' * 10}, then {'b' * 10}"


def test_a_run_of_equal_attempts_says_nothing(make_run):
    folder = make_run()
    assert [train(folder, stop=StopAfter(1)), train(folder)] == ["stopped", "done"]
    assert folder.result().continued is None


def test_a_process_that_was_taken_over_leaves(make_run):
    folder = make_run()

    def taken_over():
        owner = {"host": "elsewhere", "pid": 1, "start": time.time(), "token": "another"}
        write_json(folder.root / "owner.json", owner)
        return False

    with pytest.raises(Refused, match="was taken over by elsewhere"):
        train(folder, stop=taken_over)
    assert folder.metrics() == []
    assert folder.writer().host == "elsewhere"
    assert "was taken over by elsewhere" in log_of(folder)


def test_a_checkpoint_of_another_version_is_told(make_run):
    folder = make_run(runtime__checkpoint_seconds=0.0001)
    assert train(folder, stop=StopAfter(1)) == "stopped"
    state = torch.load(folder.last_checkpoint, weights_only=True)
    state["progress"]["last"]["unknown"] = 1.0
    torch.save(state, folder.last_checkpoint)
    assert train(folder) == "failed"
    assert "written by another version of this code" in str(folder.status())


def test_two_writers_are_refused(make_run):
    folder = make_run()
    with folder.owned(), pytest.raises(Refused, match="is being written by"):
        train(folder)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run's configuration"):
        train(RunDir(tmp_path))


def test_the_heart_beats_within_long_epochs(make_run, monkeypatch):
    """Status and lines come while an epoch runs, not only at its end."""
    from lsa_study.training import monitor

    monkeypatch.setattr(monitor, "HEARTBEAT_SECONDS", 0.0)
    folder = make_run(runtime__log_seconds=0.0001)
    seen = []
    original = RunDir.write_status

    def watch(self, status):
        seen.append((status.state, status.epoch, status.step))
        original(self, status)

    monkeypatch.setattr(RunDir, "write_status", watch)
    console = Console(file=io.StringIO())
    assert train(folder, console=console) == "done"
    assert {("running", 0, step) for step in (1, 2, 3)} <= set(seen)
    assert {("running", 1, step) for step in (1, 2, 3)} <= set(seen)
    assert "epoch 1/2  step 2/3" in console.file.getvalue()
    assert "epoch 2/2  testing" in console.file.getvalue()


def test_a_terminal_gets_a_bar_and_no_lines(make_run):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    started = time.monotonic()
    assert train(make_run(), console=console) == "done"
    told = console.file.getvalue()
    assert "━" in told
    assert "done: acc1" in told
    assert time.monotonic() - started < 60


def test_peak_memory_is_of_this_run():
    """In a process of its own: what other tests left behind moves the peak too."""
    code = (
        "import torch; from lsa_study.training.environment import *\n"
        "cpu = torch.device('cpu'); torch.ones(75_000_000); much = peak_memory(cpu)\n"
        "forget_peak_memory(cpu); print(much - peak_memory(cpu))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200_000_000
