"""A detector and a segmenter through SLURM, from `lsa launch` to `lsa table`."""

import json
import re
import subprocess
import sys

import pytest

from lsa_study.config import study
from lsa_study.config.task import OF_TASK

pytestmark = pytest.mark.slurm

SMALL = [
    "train.epochs=4", "train.batch_size=4", "data.train_limit=16", "data.test_limit=8",
    "data.image_size=64", "train.lr=1.0e-4", "runtime.checkpoint_seconds=1",
    "runtime.device=cpu",
]  # fmt: skip
ROWS = {"table9": "mask_swin_t_1x", "table10": "swin_t"}


def lsa(*words):
    command = [sys.executable, "-m", "lsa_study.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launched(name, trial, tmp_path, *, nodes):
    """Launch the study's row by the command, on CPUs of nodes; the trial is of its run."""
    (trial.run,) = study.load_study(name, only=ROWS[name], overrides=SMALL).runs()
    site_file = tmp_path / f"{name}.yaml"
    site_file.write_text("check_data: job\n")
    sets = [word for setting in SMALL for word in ("--set", setting)]
    how = ["--cluster", "slurm", "--gpus", "0", "--nodes", nodes, "--as", f"small_{name}"]
    where = ["--site", str(site_file), "--results", str(trial.results)]
    assert "1 run as job" in lsa("launch", name, "--only", ROWS[name], *sets, *how, *where)


def test_a_detector_and_a_segmenter(site, trials, tmp_path):
    """The detector gives way to another job in the middle, and ends as if it had not.

    The segmenter has a process on each of two nodes.
    """
    detector, segmenter = trials("results", "results")
    launched("table9", detector, tmp_path, nodes="1")
    detector.pause()
    (job,) = site.jobs()
    assert "gpu" not in site.run("scontrol", "show", "job", job).partition("TresPerNode")[2]
    detector.cause("preemption by a higher partition")
    site.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
    launched("table10", segmenter, tmp_path, nodes="2")
    whole = {
        one: one.trained_here(one.run, tmp_path / one.run.variant, processes)
        for one, processes in ((detector, 1), (segmenter, 2))
    }
    for one, lives in ((detector, ["preempted", "done"]), (segmenter, ["done"])):
        one.prove_whole(whole[one])
        assert one.ends() == lives
        assert one.folder.result().metrics == whole[one].result().metrics
    assert detector.row.note == "life 2 (1 preemption)"
    shown = lsa("status", "--results", str(detector.results))
    assert re.search(r"RUN +STATE +EPOCH +SCORE", shown)
    for name, one in (("table9", detector), ("table10", segmenter)):
        metrics = one.folder.result().metrics
        printed = lsa("table", f"small_{name}", "--results", str(one.results))
        (row,) = [line for line in printed.splitlines() if line.startswith("| Swin-T |")]
        cells = [cell.strip() for cell in row.split("|")]
        for metric in OF_TASK[one.run.settings.task.kind]:
            assert f"{metrics[metric]:.1f}" in cells
        written = json.loads((one.results / f"toy/tables/small_{name}.json").read_text())
        assert one.run.identity in json.dumps(written), "the run behind every cell"
    assert segmenter.folder.result().score > 0
    assert [one.folder.result().processes for one in (detector, segmenter)] == [1, 2]
