"""Invented but plausible runs, written through the real run folder, for tests of the reports.

The article's accuracy of a row, a row effect, seed noise and image noise make each result; every
number follows from the run's identity, so two calls write the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.config.settings import SCHEMA_VERSION, Settings
from lsa_study.files import write_json
from lsa_study.record import Result, Status
from lsa_study.rundir import RunDir

IMAGES = {
    "digits": (1437, 360), "cifar10": (50000, 10000), "imagenet": (1281167, 50000),
    "scenes": (2000, 500), "coco": (117266, 5000), "ade20k": (20210, 2000),
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = "0123456789abcdef" * 4
LEVEL = {
    "net1": 80.1, "net2": 80.9, "net3": 80.9, "net4": 79.8, "net5": 81.1, "net6": 81.3,
    "net7": 81.8, "swin": 81.3, "swin_n": 81.4, "net4_n": 80.0, "net6_n": 82.0, "net7_n_sdc": 82.0,
    "net7_n_unfold": 82.4, "net7_filter_norm": 81.4, "elsa_noghost": 82.4, "elsa": 82.7,
    "dwconv": 81.6, "lsa_heads_1": 78.9, "lsa_heads_2x": 81.2, "dwconv_heads_1": 80.3,
    "dwconv_heads_1x": 81.2, "dwconv_heads_2x": 81.4,
}  # fmt: skip
ENDS = {"net7_identity": "diverged", "lsa_heads_c": "oom"}
REASONS = {
    "diverged": "epoch 3, step 7: the loss is nan at lr 0.0009",
    "oom": "epoch 1, step 1: out of memory at a batch of 64 in 1 part",
}


def write_run(
    results: Path, run: study.RunSpec, *, changes: Mapping[str, Any] | None = None
) -> RunDir:
    """Write one ended run; ``changes`` replaces facts of its result."""
    folder = RunDir(rundir.runs_folder(results, run.settings.tier) / run.name)
    result = result_of(run) | dict(changes or {})
    # Invented runs need not survive a power cut, and waiting for the disk is most of the time.
    with mock.patch("os.fsync"):
        folder.create(run.settings, variant=run.variant)
        for record in curve(result, run):
            folder.log_metrics(record)
        if result["outcome"] == "done" and result["acc1"] is not None:
            folder.write_correct(correct(result))
        folder.write_result(Result(**result_of(run)))
        change_result(folder, changes or {})
        folder.write_status(Status(state=result["outcome"]))
    return folder


def change_result(folder: RunDir, changes: Mapping[str, Any]) -> None:
    """Replace facts of a result on disk, by impossible ones too."""
    path = folder.root / "result.json"
    write_json(path, json.loads(path.read_text("utf-8")) | dict(changes))


def write_study(
    results: Path, name: str, *, tier: str = "toy", seeds: Iterable[int] = (0, 1, 2), **how: Any
) -> study.Study:
    """Write every run of a study and give it back as loaded with those seeds."""
    loaded = study.load_study(name, tier=tier, seeds=list(seeds), **how)
    for run in loaded.runs():
        write_run(results, run)
    return loaded


def result_of(run: study.RunSpec) -> dict[str, Any]:
    """The facts of a result, with exactly the keys that training writes."""
    settings: Settings = run.settings
    noise = np.random.default_rng(int(run.identity, 16))
    train_images, test_images = IMAGES[settings.data.name]
    outcome = ENDS.get(run.variant, "done")
    done = outcome == "done"
    share = LEVEL.get(run.variant, 81.0) - 81 + {"toy": 90, "proxy": 85, "paper": 81}[settings.tier]
    right = round((share + noise.normal(0, 0.15)) / 100 * test_images)
    acc1 = 100 * right / test_images if done else None
    work = 1.0 + (int(settings.identity(), 16) % 97) / 970
    return {
        "outcome": outcome,
        "acc1": acc1,
        "acc5": min(100.0, acc1 + 9) if acc1 is not None else None,
        "loss": 0.9 if done else None,
        "epoch": settings.train.epochs if done else 0,
        "epochs": settings.train.epochs,
        "weights": settings.evaluation.weights,
        "selected": settings.evaluation.epoch,
        "best_acc1": acc1 + 0.1 if acc1 is not None else None,
        "ema_acc1": None,
        "params": round(28e6 * work),
        "macs": round(4.5e9 * work),
        "train_images": train_images,
        "test_images": test_images,
        "seconds": 90.5 * work,
        "seconds_per_epoch": 7.5 * work,
        "processor_seconds_per_epoch": 14.5 * work,
        "peak_memory_bytes": round(2.1e9 * work),
        "device": "Processor 9000",
        "device_kind": "cpu",
        "precision": "float32",
        "torch": "2.9.0",
        "commit": COMMIT,
        "dirty": False,
        "code": CODE,
        "fused": "C++ kernels, 16 floats a vector",
        "threads": 2,
        "processes": 1,
        "effective_batch": settings.train.batch_size,
        "data_fingerprint": "f1f2f3f4f5",
        "attempts": 1,
        "schema": SCHEMA_VERSION,
        "identity": run.identity,
        "variant": run.variant,
        "seed": run.seed,
        "implementation": "reference",
        "reason": REASONS.get(outcome),
        "finished": "2030-01-02T03:04:05Z",
    }


def curve(result: Mapping[str, Any], run: study.RunSpec) -> list[dict[str, Any]]:
    """A record for each epoch that was finished."""
    epochs = result["epochs"] if result["outcome"] == "done" else REASONS_EPOCHS[result["outcome"]]
    final = result["acc1"] or 60.0
    noise = np.random.default_rng(run.seed).normal(0, 0.4, epochs + 1)
    return [
        {
            "epoch": epoch,
            "attempt": 1,
            "step": epoch * 20,
            "lr": 1e-3 * (1 - epoch / (epochs + 1)),
            "train_loss": 0.2 + 2 * np.exp(-4 * epoch / epochs),
            "loss": 0.3 + 2 * np.exp(-4 * epoch / epochs),
            "acc1": final - (final - 10) * np.exp(-5 * epoch / epochs) + noise[epoch] / epoch,
            "acc5": min(100.0, final + 9),
            "ema_acc1": None,
            "seconds": 7.5,
            "images_per_second": 190.0,
        }
        for epoch in range(1, epochs + 1)
    ]


REASONS_EPOCHS = {"diverged": 2, "oom": 0}


def correct(result: Mapping[str, Any]) -> np.ndarray:
    """Correctness by image: hard images are hard for every run, the rest is chance."""
    count = result["test_images"]
    right = round(result["acc1"] / 100 * count)
    hardness = np.random.default_rng(7).normal(size=count)
    luck = np.random.default_rng(int(result["identity"], 16)).normal(0, 0.5, count)
    bits = np.zeros(count, dtype=np.uint8)
    bits[np.argsort(hardness + luck)[:right]] = 1
    return bits
