"""Rehearsals of real rows in real processes, with faults planted into them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lsa_study.config import study
from lsa_study.launch import plan, rehearse
from lsa_study.launch.rehearse import Rehearsed
from lsa_study.record import Result
from lsa_study.rundir import RunDir

SMALL = ["train.batch_size=16"]


def run_of(only="swin", tier="toy", **options):
    return study.load_study("table1", tier=tier, only=only, **options).runs()[0]


def lsa(folder, *words, fault=""):
    """Call the command; ``fault`` is code that its training processes run first."""
    (folder / "sitecustomize.py").write_text(fault)
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lsa_study.cli", *words, "--results", str(folder / "results")]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=240
    )


def rehearsed(folder, *variants, fault=""):
    only = ",".join(variants)
    return lsa(
        folder, "rehearse", "table1", "--only", only, "--set", "train.batch_size=16", fault=fault
    )


@pytest.mark.slow
def test_a_good_row_passes_and_plan_shows_its_cost(tmp_path):
    told = rehearsed(tmp_path, "swin")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1/1  swin" in told.stdout
    assert "killed, resumed at epoch" in told.stdout
    assert [p.name for p in (tmp_path / "results/toy").iterdir()] == ["rehearsal.json"]
    loaded = study.load_study("table1", only="swin,net1", overrides=SMALL)
    (row,) = rehearse.read_rehearsals(tmp_path / "results", "toy").values()
    assert (row.variant, row.state, row.device_kind) == ("swin", "ok", "cpu")
    assert 0 < row.step_seconds < row.test_seconds * 20
    assert row.peak_bytes > 1e8
    text = plan.plan_text([loaded], tmp_path / "results")
    hours = 12 * (81 * row.step_seconds + row.test_seconds) / 3600
    assert f"{hours:.2f} CPU hours for 1 of 2 runs to do" in text
    assert f"at most {row.peak_bytes / 1e9:.2f} GB (swin)" in text


FAULTS = """
import sys
if "lsa_study.launch.process" in sys.orig_argv:
    import os
    from lsa_study.training import checkpoint, run
    from lsa_study.training.step import Stepper

    def loses_moments():
        Stepper.load_state_dict = lambda self, state: self.model.load_state_dict(state["model"])

    def begins_anew():
        checkpoint.load = lambda run_dir: None

    def dies():
        Stepper.train_step = lambda *_: os.abort()

    def has_a_bug():
        Stepper.train_step = lambda *_: {}["rel_pos"]

    faults = {"swin": loses_moments, "net1": begins_anew, "net4": dies, "net5": has_a_bug}
    live = run.live

    def live_with_a_fault(run_dir, **options):
        faults[run_dir.root.parent.name.partition("-")[0]]()
        return live(run_dir, **options)

    run.live = live_with_a_fault
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [("ddf_table3", "ddf"), ("stem", "conv_bn_relu_05_short"),
     ("table9", "cascade_elsa_t_1x"), ("table10", "swin_t")],
)  # fmt: skip
def test_a_row_of_each_work_and_task_is_killed_and_resumed(tmp_path, name, row):
    told = lsa(tmp_path, "rehearse", name, "--only", row, "--set", "train.batch_size=4")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "to the same bits" in told.stdout


@pytest.mark.slow
def test_planted_faults_are_caught(tmp_path):
    """One in every row's processes; a row that fails does not keep the next from its turn."""
    words = {
        "swin": ", undisturbed",
        "net1": "began anew instead of resuming",
        "net4": "SIGABRT",
        "net5": "KeyError: 'rel_pos'",
    }
    told = rehearsed(tmp_path, *words, fault=FAULTS)
    assert told.returncode == 1, told.stdout + told.stderr
    rows = {
        row.variant: row for row in rehearse.read_rehearsals(tmp_path / "results", "toy").values()
    }
    assert set(rows) == set(words)
    for variant, row in rows.items():
        (line,) = [line for line in told.stdout.splitlines() if f"/4  {variant}" in line]
        assert row.state == "failed"
        assert "failed" in line
        assert words[variant] in row.words
    kept = {path.name.partition("-")[0] for path in (tmp_path / "results/toy/rehearsal").iterdir()}
    assert kept == set(words), "their folders are kept"


def test_missing_data_end_with_exit_code_3(tmp_path):
    told = lsa(
        tmp_path, "rehearse", "table1", "--tier", "proxy", "--only", "swin",
        "--set", f"data.root={tmp_path}/none",
    )  # fmt: skip
    assert told.returncode == 3
    assert "CIFAR-10 not found" in told.stderr
    assert not (tmp_path / "results").exists()


def test_a_row_keeps_all_but_its_length():
    """One device does the parts of eight in turn: the batch and every part of it stay."""
    run = run_of(tier="paper")
    short = rehearse.shortened(run, checkpoints=1.0)
    changed = {"train.epochs", "data.train_limit", "data.test_limit"}
    assert set(run.settings.differing(short)) == changed
    assert (short.train.epochs, short.data.train_limit) == (2, 2 * 1024)
    assert short.data.test_limit == 5000
    assert short.runtime.accumulate == 8
    few = run_of(overrides=["data.train_limit=40", "data.test_limit=30"])
    kept = rehearse.shortened(few, checkpoints=1.0).data
    assert (kept.train_limit, kept.test_limit) == (40, 30)


def test_the_sizes_are_those_of_the_sets():
    from lsa_study import data
    from lsa_study.config.values import IMAGES
    from lsa_study.data import index

    source = data.load(run_of().settings).source
    assert IMAGES["digits"] == (source.train_images, source.test_images, source.num_classes)
    assert IMAGES["imagenet"] == (*index.EXPECTED.values(), index.CLASSES)


def row(**changes):
    known = {"step_seconds": 2.0, "test_seconds": 100.0, "peak_bytes": 31 * 10**9}
    where = {"device": "H200", "device_kind": "cuda"}
    return Rehearsed(variant="swin", state="ok", words="", **{**known, **where, **changes})


def test_the_cost_of_a_grid_by_hand(tmp_path):
    """1,281,167 images are 1,251 steps; 310 epochs of them and of the test set; three seeds."""
    rows = {rehearse.key(run_of(tier="paper").settings): row()}
    rehearse.note(tmp_path, "paper", rows)
    loaded = study.load_study("table1", tier="paper", only="swin,net7", seeds=[0, 1, 2])
    text = plan.plan_text([loaded], tmp_path)
    seconds = 310 * (1251 * 2 + 100)
    assert f"{3 * seconds / 3600:.2f} GPU hours for 3 of 6 runs to do" in text
    assert "at most 31.00 GB (swin), rehearsed on H200" in text


def test_a_run_that_two_studies_share_costs_once(tmp_path):
    loaded = [study.load_study(name, only="swin") for name in ("table1", "table3")]
    rehearse.note(tmp_path, "toy", {rehearse.key(run_of().settings): row()})
    (*_, last) = plan.plan_text(loaded, tmp_path).split("\n")
    seconds = 12 * (40 * 2 + 100)
    assert last.startswith("1 distinct runs, 12 epochs in all, 1 to do; ")
    assert f"; {seconds / 3600:.2f} GPU hours for 1 of 1 runs to do" in last


def test_trouble_is_shown_by_plan_and_unknown_costs_say_how(tmp_path):
    loaded = study.load_study("table1", only="swin")
    hint = f"lsa rehearse table1 --tier toy --results {tmp_path} --only=swin measures it"
    assert hint in plan.plan_text([loaded], tmp_path)
    bad = Rehearsed(variant="swin", state="failed", words="weights differ")
    rehearse.note(tmp_path, "toy", {rehearse.key(run_of().settings): bad})
    assert "swin: failed: weights differ" in plan.plan_text([loaded], tmp_path)


def test_rows_add_up_and_a_damaged_file_counts_as_none(tmp_path):
    rehearse.note(tmp_path, "toy", {"a": row()})
    rehearse.note(tmp_path, "toy", {"b": row(), "a": row(step_seconds=1.0)})
    found = rehearse.read_rehearsals(tmp_path, "toy")
    assert sorted(found) == ["a", "b"]
    assert found["a"].step_seconds == 1.0
    path = tmp_path / "toy" / rehearse.FILE
    content = json.loads(path.read_text())
    for damaged in ("{", "[]", json.dumps({"rows": [content]}), '{"rows": {"a": {}}}'):
        path.write_text(damaged)
        assert rehearse.read_rehearsals(tmp_path, "toy") == {}


# -- on a GPU a resumed run has to be as near as a repeated one --------------------------------


def finished(folder, shift):
    (folder / "checkpoint").mkdir(parents=True)
    run = RunDir(folder)
    save_file({"weight": np.arange(12, dtype=np.float32).reshape(3, 4) + shift}, run.weights)
    numbers = {"epoch": 1, "attempt": 1, "step": 2, "lr": 0.1, "train_loss": 1.0, "loss": 1.0}
    run.log_metrics({**numbers, "acc1": 5.0, "acc5": 9.0, "ema_acc1": None})
    run.write_result(Result(outcome="done", device_kind="cuda"))
    return run


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        (0.002, None),
        (0.1, "weights are 0.1 apart, those of two undisturbed runs 0.001"),
    ],
)
def test_on_a_gpu_the_noise_of_a_repeat_is_allowed(tmp_path, apart, words):
    whole, again, cut = (
        finished(tmp_path / name, shift)
        for name, shift in (("whole", 0.0), ("again", 0.001), ("cut", apart))
    )
    assert rehearse.differing(whole, whole) is None
    assert rehearse.differing(whole, cut).startswith("weight differs by up to")
    assert rehearse.farther_than_a_repeat(whole, again, cut) == words
    assert rehearse.farther_than_a_repeat(whole, whole, cut) is not None
