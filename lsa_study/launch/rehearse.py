"""The rehearsal of a grid: before days of training, a few real steps of every row.

Each row trains in a real worker process at its real batch size: once undisturbed, and once killed
at a random step and resumed. Both have to end alike: with the same bits on a CPU; on a GPU, whose
sums have no fixed order, no further apart than two undisturbed runs are.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from lsa_study.config.settings import Settings
from lsa_study.config.study import Run
from lsa_study.launch import rehearsal
from lsa_study.launch.local import Worker, ended_by, visible_gpus
from lsa_study.launch.rehearsal import IMAGES, Rehearsed
from lsa_study.record import OUTCOMES
from lsa_study.rundir import RunDir

EPOCHS = STEPS = 2
"""Two epochs, so that a kill can meet their boundary and the second is timed warm; two steps each,
so that it can meet the middle of one."""

SAVED = EPOCHS * (STEPS + 1)
"""Checkpoints of a killed run: one after every step and every test."""

TEST_SHARE = 10
"""One test image in so many is looked at: enough to time, and the steps are what is rehearsed."""

ALIKE = 3.0
"""On a GPU a resumed run may be so many times as far away as an undisturbed one done again."""

COMPARED = ("epoch", "step", "lr", "train_loss", "loss", "acc1", "acc5", "ema_acc1")


class _Failed(Exception):
    """What a row's rehearsal failed at."""


def shortened(run: Run, *, checkpoints: float) -> Settings:
    """A run's settings with its batch and all else, but few steps and drawn weights.

    On a cluster its devices share a step; one alone does their parts in turn, each as large.
    """
    settings, devices = run.settings, run.resources.nodes * run.resources.gpus
    images = STEPS * settings.train.batch_size
    tested = IMAGES[settings.data.name][1] // TEST_SHARE
    changes = {
        "data": {
            "train_limit": min(images, settings.data.train_limit or images),
            "test_limit": min(tested, settings.data.test_limit or tested),
        },
        "train": {"epochs": EPOCHS, "start": None},
        "runtime": {
            "accumulate": devices * settings.runtime.accumulate, "checkpoint_seconds": checkpoints
        },
    }  # fmt: skip
    groups = {
        name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()
    }
    return settings.model_copy(update=groups)


def _live(folder: str) -> None:
    import torch

    from lsa_study.training import train

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    train(RunDir(Path(folder)))


class Rehearsal:
    """Rows rehearsed one after another; ``tell`` is given a line for each."""

    def __init__(self, results: Path, *, tell: Callable[[str], object]) -> None:
        self.results, self.tell = results, tell
        self.draw = random.Random()
        # Its processes are real, but share the seconds that importing torch takes.
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(["lsa_study.training.run", "timm.data"])

    def work(self, runs: Sequence[Run]) -> list[Rehearsed]:
        """Rehearse each distinct row once, and keep what is found for ``lsa plan``.

        Raises:
            LsaError: the data are missing or the results folder cannot be written.
        """
        rows: dict[str, Run] = {}
        for run in runs:
            rows.setdefault(rehearsal.key(run.settings), run)
        check_data(runs)
        self.tell(
            f"{len(rows)} row{'s' * (len(rows) > 1)}: each trains {EPOCHS} x {STEPS} steps "
            "undisturbed, and again killed and resumed; both have to end alike"
        )
        found: list[Rehearsed] = []
        for name, run in rows.items():
            found.append(self._row(run))
            rehearsal.note(self.results, run.settings.tier, {name: found[-1]})
            self.tell(f"{len(found)}/{len(rows)}  {found[-1].line()}")
        with contextlib.suppress(OSError):  # holds what failed
            _folder(self.results, runs[0]).parent.rmdir()
        return found

    def _row(self, run: Run) -> Rehearsed:
        folder = _folder(self.results, run)
        shutil.rmtree(folder, ignore_errors=True)
        row: dict[str, Any] = {}
        try:
            whole = self._make(folder / "whole", run, checkpoints=3600.0)
            state, words = self._live(whole)
            if state == "done":
                row |= measured(whole)
                state, words = "ok", self._kill_and_resume(folder, run, whole, row["step_seconds"])
        except _Failed as error:
            state, words = "failed", f"{error}; its folder is kept: {folder}"
        else:
            shutil.rmtree(folder)
        return Rehearsed.model_validate(
            {"variant": run.variant, "state": state, "words": words, **row}
        )

    def _kill_and_resume(self, folder: Path, run: Run, whole: RunDir, step_seconds: float) -> str:
        # The checkpoints of the last epoch's end come too late: the run would be over.
        for saves in (self.draw.randint(1, SAVED - 2), 1, 1):
            cut = self._make(folder / "killed", run, checkpoints=1e-6)
            self._kill_after(cut, saves, self.draw.uniform(0.0, step_seconds))
            if cut.result() is None:
                break
            shutil.rmtree(cut.root)
        else:
            raise _Failed("all its steps were done before it could be killed")
        if cut.status().state == "failed":
            raise _Failed(f"before it was killed: {cut.status().message}")
        state, words = self._live(cut)
        if state != "done":
            raise _Failed(f"resumed after a kill it ended {state}: {words}")
        resumed = resumed_at(cut)
        alike = "to the same bits"
        if found := differing(whole, cut):
            self._need_near(folder, run, whole, cut, f"resumed at {resumed}: {found}")
            alike = "as near as an undisturbed repeat"
        return f"killed, resumed at {resumed}, {alike}"

    def _need_near(self, folder: Path, run: Run, whole: RunDir, cut: RunDir, words: str) -> None:
        if (result := whole.result()) is not None and result.device_kind == "cpu":
            raise _Failed(words)
        again = self._make(folder / "again", run, checkpoints=3600.0)
        self._live(again)
        if farther := farther_than_a_repeat(whole, again, cut):
            raise _Failed(f"{words}; {farther}")

    def _make(self, root: Path, run: Run, *, checkpoints: float) -> RunDir:
        folder = RunDir(root)
        folder.create(shortened(run, checkpoints=checkpoints), variant=run.variant)
        return folder

    def _live(self, folder: RunDir) -> tuple[str, str]:
        """Train to the end; the state and what there is to say about it."""
        with self._process(folder) as process:
            process.join()
        status = folder.status()
        state, words = status.state, str(status.message)
        if state not in OUTCOMES:
            raise _Failed(words if state == "failed" else ended_by(process.exitcode or 0))
        return state, words

    def _kill_after(self, folder: RunDir, saves: int, pause: float) -> None:
        """Train until so many checkpoints were seen, wait a little, and kill without warning."""
        version = seen = 0
        with self._process(folder) as process:
            while seen < saves and process.is_alive():
                if (newest := _version(folder.last_checkpoint)) != version:
                    version, seen = newest, seen + 1
                time.sleep(0.001)
            process.join(pause)

    @contextlib.contextmanager
    def _process(self, folder: RunDir) -> Iterator[ForkServerProcess]:
        """A process of its own that trains; when the block ends it is killed if it still lives."""
        process = self.server.Process(target=_live, args=(str(folder.root),))
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()


def check_data(runs: Sequence[Run]) -> None:
    """Look whether the data of all runs are there and whole.

    Raises:
        LsaError: they are not.
    """
    worker = Worker(0, visible_gpus(), 1)
    try:
        for settings in {run.settings.reads(): run.settings for run in runs}.values():
            worker.check_data(settings)
    finally:
        worker.process.kill()
        worker.close()


def _folder(results: Path, run: Run) -> Path:
    return results / run.settings.tier / "rehearsal" / run.name


def _version(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def measured(folder: RunDir) -> dict[str, Any]:
    """What a finished run cost: the warm second epoch's steps and test, and the most memory."""
    result, record = folder.result(), folder.metrics()[-1]
    assert result is not None
    assert result.effective_batch is not None
    assert result.test_images is not None
    step = result.effective_batch / record["images_per_second"]
    steps = record["step"] // record["epoch"]
    whole_set = IMAGES[folder.settings().data.name][1] / result.test_images
    return {
        "device": result.device,
        "device_kind": result.device_kind,
        "step_seconds": step,
        "test_seconds": max(0.0, record["seconds"] - steps * step) * whole_set,
        "peak_bytes": result.peak_memory_bytes,
    }


def resumed_at(folder: RunDir) -> str:
    """Where the second life went on, as its log says."""
    log = (folder.attempts()[-1] / "log.txt").read_text("utf-8")
    found = re.search(r"resumed at (epoch \d+, step \d+)", log)
    if found is None:
        raise _Failed("killed after a checkpoint, it began anew instead of resuming")
    return found[1]


def differing(one: RunDir, other: RunDir) -> str | None:
    """What differs between two finished runs: a number of an epoch, or a bit of a weight."""
    for mine, theirs in zip(one.metrics(), other.metrics(), strict=True):
        for name in COMPARED:
            if mine[name] != theirs[name]:
                return (
                    f"{name} of epoch {mine['epoch']} is {theirs[name]}, undisturbed {mine[name]}"
                )
    first, second = _weights(one), _weights(other)
    for name, tensor in first.items():
        if tensor.tobytes() != second[name].tobytes():
            gap = np.abs(tensor - second[name]).max()
            return f"{name} differs by up to {gap:.2g}"
    return None


def farther_than_a_repeat(whole: RunDir, again: RunDir, cut: RunDir) -> str | None:
    """What is wrong with a resumed run that is farther from ``whole`` than noise explains.

    Args:
        again: ``whole`` done once more, undisturbed.
    """
    noise, apart = distance(whole, again), distance(whole, cut)
    if apart <= ALIKE * noise:
        return None
    return f"weights are {apart:.2g} apart, those of two undisturbed runs {noise:.2g}"


def distance(one: RunDir, other: RunDir) -> float:
    """Root mean square difference of all weights."""
    first, second = _weights(one), _weights(other)
    squares = [((a - second[name]).astype(np.float64) ** 2) for name, a in first.items()]
    return math.sqrt(sum(s.sum() for s in squares) / sum(s.size for s in squares))


def _weights(folder: RunDir) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder.weights)
