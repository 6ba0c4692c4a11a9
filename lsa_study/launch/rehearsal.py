"""What a rehearsal found of every row, on disk, and the cost it predicts. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lsa_study.config.settings import Settings
from lsa_study.config.study import Run
from lsa_study.files import writable, write_json

IMAGES = {"digits": (1300, 497), "cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}
"""Training and test images of the whole sets."""


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
        if self.step_seconds is None or self.peak_bytes is None:
            return f"{self.variant:<18} {self.state:<8} {self.words}"
        return (
            f"{self.variant:<18} {self.state:<8} {self.step_seconds:.3f} s a step  "
            f"{self.peak_bytes / 1e9:.2f} GB at most  {self.words}"
        )


def key(settings: Settings) -> str:
    """Rows that differ only in seed, number of epochs and first weights share a rehearsal."""
    train = settings.train.model_copy(update={"epochs": 1, "start": None})
    return settings.model_copy(update={"seed": 0, "train": train}).identity()


def _path(results: Path, tier: str) -> Path:
    return results / tier / "rehearsal.json"


def read(results: Path, tier: str) -> dict[str, Rehearsed]:
    """The rehearsed rows of a tier by ``key``; none where nothing was rehearsed."""
    try:
        found = json.loads(_path(results, tier).read_text("utf-8"))["rows"]
        return {name: Rehearsed.model_validate(row) for name, row in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return {}


def note(results: Path, tier: str, rows: Mapping[str, Rehearsed]) -> Path:
    """Add rows to what was rehearsed before; a row rehearsed again is replaced.

    Raises:
        EnvironmentLacks: the folder cannot be written.
    """
    path = _path(results, tier)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    together = {**read(results, tier), **rows}
    write_json(path, {"rows": {name: row.model_dump() for name, row in together.items()}})
    return path


def device_seconds(settings: Settings, row: Rehearsed) -> float | None:
    """Device-seconds of a whole run: its steps and, after every epoch, the test set."""
    if row.step_seconds is None or row.test_seconds is None:
        return None
    images = IMAGES[settings.data.name][0]
    images = min(settings.data.train_limit or images, images)
    steps = max(1, images // settings.train.batch_size)
    return settings.train.epochs * (steps * row.step_seconds + row.test_seconds)


def predicted(runs: Sequence[Run], rows: Mapping[str, Rehearsed]) -> list[tuple[str, str]]:
    """What runs will cost and whether they fit, as ``(topic, words)``; empty if none is known."""
    known = [(run, rows[name]) for run in runs if (name := key(run.settings)) in rows]
    told: list[tuple[str, str]] = []
    totals: dict[str, list[float]] = {}
    for run, row in known:
        if (seconds := device_seconds(run.settings, row)) is not None:
            totals.setdefault(row.device_kind, []).append(seconds)
    for kind, costs in totals.items():
        name = "CPU" if kind == "cpu" else "GPU"
        told.append(
            ("cost", f"{sum(costs) / 3600:,.2f} {name} hours for {len(costs)} of {len(runs)} runs "
             f"to do, the longest {max(costs) / 3600:,.2f}")
        )  # fmt: skip
    sizes = [row for _, row in known if row.peak_bytes is not None]
    if sizes:
        most = max(sizes, key=lambda row: row.peak_bytes or 0)
        told.append(
            ("memory", f"at most {(most.peak_bytes or 0) / 1e9:.2f} GB ({most.variant}), "
             f"rehearsed on {most.device}")
        )  # fmt: skip
    bad = {row.variant: row for _, row in known if row.state != "ok"}
    told += [("trouble", f"{name}: {row.state}: {row.words}") for name, row in bad.items()]
    return told
