"""The rehearsal of a grid: before days of training, a few real steps of every row.

Each row trains in a real process at its real batch size: once undisturbed, and once killed at a
random step and resumed. Both have to end alike: with the same bits on a CPU; on a GPU, whose sums
have no fixed order, no further apart than two undisturbed runs are. ``lsa plan`` predicts costs
from what was measured. Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from lsa_study.config.settings import Settings
from lsa_study.config.study import RunSpec
from lsa_study.config.values import IMAGES
from lsa_study.errors import LsaError
from lsa_study.files import write_json
from lsa_study.launch.process import Server, ended_by
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

FILE = "rehearsal.json"

COMPARED = ("epoch", "step", "lr", "train_loss", "loss", "acc1", "acc5", "ema_acc1")


class Rehearsed(BaseModel):
    """One row's rehearsal."""

    model_config = ConfigDict(frozen=True, strict=True)

    variant: str
    state: Literal["ok", "diverged", "oom", "failed"]
    """ok: killed, resumed and equal to the undisturbed run; diverged and oom: results as well."""
    words: str
    device: str = ""
    device_kind: str = ""
    step_seconds: float | None = None
    """Of one device alone with the whole effective batch."""
    test_seconds: float | None = None
    """Of the whole test set, on one device."""
    peak_bytes: int | None = None
    """GPU memory, or the process's on a CPU."""

    def line(self) -> str:
        """The row's line of a report."""
        measured = ""
        if self.step_seconds is not None and self.peak_bytes is not None:
            size = self.peak_bytes / 1e9
            measured = f"{self.step_seconds:.3f} s a step  {size:.2f} GB at most  "
        return f"{self.variant:<18} {self.state:<8} {measured}{self.words}"


_FILE = TypeAdapter(dict[str, dict[str, Rehearsed]])
"""The file holds them as ``rows``, by ``key``."""


def key(settings: Settings) -> str:
    """Rows that differ only in seed, number of epochs and first weights share a rehearsal."""
    train = settings.train.model_copy(update={"epochs": 1, "start": None})
    return settings.model_copy(update={"seed": 0, "train": train}).identity()


def read_rehearsals(results: Path, tier: str) -> dict[str, Rehearsed]:
    """The rehearsed rows of a tier by ``key``; none where nothing was rehearsed."""
    try:
        return _FILE.validate_json((results / tier / FILE).read_bytes())["rows"]
    except (OSError, ValueError, KeyError):
        return {}


def note(results: Path, tier: str, rows: Mapping[str, Rehearsed]) -> None:
    """Add rows to what was rehearsed before; a row rehearsed again is replaced.

    Raises:
        EnvironmentLacks: the folder cannot be written.
    """
    together = {**read_rehearsals(results, tier), **rows}
    write_json(results / tier / FILE, _FILE.dump_python({"rows": together}), make_folder=True)


def predicted(runs: Sequence[RunSpec], rows: Mapping[str, Rehearsed]) -> list[tuple[str, str]]:
    """What runs will cost and whether they fit, as lines by topic; empty if none is known."""
    known = [(run.settings, rows[name]) for run in runs if (name := key(run.settings)) in rows]
    lines: list[tuple[str, str]] = []
    totals: dict[str, list[float]] = {}
    for settings, row in known:
        if row.step_seconds is not None and row.test_seconds is not None:
            name, limit = settings.data.name, settings.data.train_limit
            images = IMAGES[name][0] if name in IMAGES else limit
            if images is None:
                continue  # nobody knows how many a set from outside has before it is read
            images = min(limit or images, images)
            images -= settings.data.validation or 0
            steps = max(1, images // settings.train.batch_size)
            epoch = steps * row.step_seconds + row.test_seconds
            totals.setdefault(row.device_kind, []).append(settings.train.epochs * epoch / 3600)
    for kind, hours in totals.items():
        name = "CPU" if kind == "cpu" else "GPU"
        done = f"{len(hours)} of {len(runs)} runs to do"
        longest = f"the longest {max(hours):,.2f}"
        lines.append(("cost", f"{sum(hours):,.2f} {name} hours for {done}, {longest}"))
    if most := max((row.peak_bytes or 0 for _, row in known), default=0):
        row = next(row for _, row in known if row.peak_bytes == most)
        size = f"at most {most / 1e9:.2f} GB"
        lines.append(("memory", f"{size} ({row.variant}), rehearsed on {row.device}"))
    bad = {row.variant: row for _, row in known if row.state != "ok"}
    lines += [("trouble", f"{name}: {row.state}: {row.words}") for name, row in bad.items()]
    return lines


# -- rehearsing ----------------------------------------------------------------------------------


def shortened(run: RunSpec, *, checkpoints: float) -> Settings:
    """A run's settings with its batch and all else, but few steps and drawn weights.

    On a cluster its devices share a step; one alone does their parts in turn, each as large.
    """
    settings, devices = run.settings, run.resources.nodes * run.resources.gpus
    images = STEPS * settings.train.batch_size
    known, limit = IMAGES.get(settings.data.name), settings.data.test_limit
    tested = known[1] // TEST_SHARE if known else limit
    limits = {
        "train_limit": min(images, settings.data.train_limit or images),
        "test_limit": tested and min(tested, limit or tested),
        "validation": None,  # a few steps' images have none to spare
    }
    parts = devices * settings.runtime.accumulate
    runtime = {"accumulate": parts, "checkpoint_seconds": checkpoints}
    groups = {
        "data": settings.data.model_copy(update=limits),
        "train": settings.train.model_copy(update={"epochs": EPOCHS, "start": None}),
        "runtime": settings.runtime.model_copy(update=runtime),
    }
    return settings.model_copy(update=groups)


@dataclass
class Rehearsal:
    """Rows rehearsed one after another; ``tell`` is given a line for each."""

    results: Path
    tell: Callable[[str], object]

    def work(self, runs: Sequence[RunSpec]) -> list[Rehearsed]:
        """Rehearse each distinct row once, and keep what is found for ``lsa plan``.

        Raises:
            LsaError: the data are missing or the results folder cannot be written.
        """
        rows: dict[str, RunSpec] = {}
        for run in runs:
            rows.setdefault(key(run.settings), run)
        with Server() as self.server:
            self.server.check_data(runs)
            self.tell(
                f"{len(rows)} row{'s' * (len(rows) > 1)}: each trains {EPOCHS} x {STEPS} steps "
                "undisturbed, and again killed and resumed; both have to end alike"
            )
            found: list[Rehearsed] = []
            for name, run in rows.items():
                found.append(self._row(run))
                note(self.results, run.settings.tier, {name: found[-1]})
                self.tell(f"{len(found)}/{len(rows)}  {found[-1].line()}")
        with contextlib.suppress(OSError):  # holds what failed
            self._folder(runs[0]).parent.rmdir()
        return found

    def _row(self, run: RunSpec) -> Rehearsed:
        folder = self._folder(run)
        shutil.rmtree(folder, ignore_errors=True)
        row: dict[str, Any] = {"variant": run.variant}
        try:
            whole = self._train(folder / "whole", run)
            row |= {"state": whole.status().state, "words": str(whole.status().message)}
            if row["state"] == "done":
                result, record = whole.result(), whole.metrics()[-1]
                assert result is not None
                assert result.effective_batch is not None
                assert result.test_images is not None
                # The second epoch is warm.
                step = result.effective_batch / record["images_per_second"]
                tests = record["seconds"] - record["step"] // record["epoch"] * step
                known = IMAGES.get(run.settings.data.name)
                whole_set = known[1] / result.test_images if known else 1.0
                row |= {
                    "device": result.device, "device_kind": result.device_kind,
                    "step_seconds": step, "test_seconds": max(0.0, tests) * whole_set,
                    "peak_bytes": result.peak_memory_bytes,
                }  # fmt: skip
                row["words"] = self._kill_and_resume(folder, run, whole, row["step_seconds"])
                row["state"] = "ok"
        except LsaError as error:
            row |= {"state": "failed", "words": f"{error}; its folder is kept: {folder}"}
        else:
            shutil.rmtree(folder)
        return Rehearsed.model_validate(row)

    def _folder(self, run: RunSpec) -> Path:
        return self.results / run.settings.tier / "rehearsal" / run.name

    def _train(self, root: Path, run: RunSpec, *, checkpoints: float = 3600.0) -> RunDir:
        """Train to the end, from where the folder stands."""
        folder = RunDir(root)
        folder.create(shortened(run, checkpoints=checkpoints), variant=run.variant)
        report = self.server.train(folder).wait()
        status = folder.status()
        if status.state not in OUTCOMES:
            died = ended_by(report.get("code"))
            raise LsaError(str(status.message) if status.state == "failed" else died)
        return folder

    def _kill_and_resume(
        self, folder: Path, run: RunSpec, whole: RunDir, step_seconds: float
    ) -> str:
        """Train again with a kill in between, and compare; returns how it went."""
        cut = RunDir(folder / "killed")
        # The checkpoints of the last epoch's end come too late: the run would be over.
        for saves in (random.randint(1, SAVED - 2), 1, 1):
            cut.create(shortened(run, checkpoints=1e-6), variant=run.variant)
            self._kill_after(cut, saves, random.uniform(0.0, step_seconds))
            if cut.result() is None:
                break
            shutil.rmtree(cut.root)
        else:
            raise LsaError("all its steps were done before it could be killed")
        if cut.status().state == "failed":
            raise LsaError(f"before it was killed: {cut.status().message}")
        self._train(cut.root, run, checkpoints=1e-6)
        if (ended := cut.status()).state != "done":
            raise LsaError(f"resumed after a kill it ended {ended.state}: {ended.message}")
        log = (cut.attempts()[-1] / "log.txt").read_text("utf-8")
        if (resumed := re.search(r"resumed at epoch \d+, (step \d+|its test)", log)) is None:
            raise LsaError("killed after a checkpoint, it began anew instead of resuming")
        if (found := differing(whole, cut)) is None:
            return f"killed, {resumed[0]}, to the same bits"
        if (result := whole.result()) is not None and result.device_kind == "cpu":
            raise LsaError(f"{resumed[0]}: {found}")
        again = self._train(folder / "again", run)
        if farther := farther_than_a_repeat(whole, again, cut):
            raise LsaError(f"{resumed[0]}: {found}; {farther}")
        return f"killed, {resumed[0]}, as near as an undisturbed repeat"

    def _kill_after(self, folder: RunDir, saves: int, pause: float) -> None:
        """Train until so many checkpoints were seen, wait a little, and kill without warning."""
        version = seen = 0
        child = self.server.train(folder)
        while seen < saves and not child.ended(0.001):
            with contextlib.suppress(FileNotFoundError):
                newest = folder.last_checkpoint.stat().st_mtime_ns
                version, seen = newest, seen + (newest != version)
        child.ended(pause)
        child.kill()
        child.wait()


def differing(one: RunDir, other: RunDir) -> str | None:
    """What differs between two finished runs: a number of an epoch, or a bit of a weight."""
    for mine, theirs in zip(one.metrics(), other.metrics(), strict=True):
        further = sorted(name for name in mine if name.startswith("metrics."))
        for name in (*COMPARED, *further):
            if mine[name] != theirs[name]:
                return (
                    f"{name} of epoch {mine['epoch']} is {theirs[name]}, undisturbed {mine[name]}"
                )
    first, second = _weights(one), _weights(other)
    for name, tensor in first.items():
        if tensor.tobytes() != second[name].tobytes():
            return f"{name} differs by up to {abs(tensor - second[name]).max():.2g}"
    return None


def farther_than_a_repeat(whole: RunDir, again: RunDir, cut: RunDir) -> str | None:
    """What is wrong with a resumed run that is farther from ``whole`` than noise explains.

    Args:
        again: ``whole`` done once more, undisturbed.
    """

    def distance(other: RunDir) -> float:
        """Root mean square difference of all weights."""
        first, second = _weights(whole), _weights(other)
        squares = [((a - second[name]).astype("float64") ** 2) for name, a in first.items()]
        return math.sqrt(sum(s.sum() for s in squares) / sum(s.size for s in squares))

    noise, apart = distance(again), distance(cut)
    if apart <= ALIKE * noise:
        return None
    return f"weights are {apart:.2g} apart, those of two undisturbed runs {noise:.2g}"


def _weights(folder: RunDir) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder.weights)
