"""Take runs out of the queue, and clear away what nobody needs.

What runs saves before it leaves. Nothing is deleted: it moves to ``results/<tier>/.trash/``.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from lsa_study.errors import ConfigError, Refused
from lsa_study.launch import scheduler
from lsa_study.launch.records import LaunchFolder, identity_of, tiers_of
from lsa_study.launch.status import RunStatus, status

MANY = 10
"""More runs than this are cancelled only after a question."""


@dataclass
class Cancelled:
    """What a cancelling did; run names."""

    pending: list[str] = field(default_factory=list)
    """Taken out of the queue."""
    running: list[str] = field(default_factory=list)
    """Told to save and leave, or with ``now`` ended."""
    idle: list[str] = field(default_factory=list)
    """There was nothing to cancel."""

    def words(self) -> list[str]:
        """What to tell the user, line by line."""
        lines = []
        if self.pending:
            lines.append(f"{len(self.pending)} taken out of the queue")
        if self.running:
            lines.append(f"{len(self.running)} told to leave")
        if self.idle:
            lines.append(f"{len(self.idle)} neither queued nor running")
        return lines


def cancel(
    results: Path,
    names: Sequence[str],
    *,
    how: Literal["save", "now"] = "save",
    confirm: Callable[[str], bool] = lambda question: False,
    tier: str | None = None,
) -> Cancelled:
    """Cancel the runs of studies, or single runs.

    Args:
        results: the results folder.
        names: studies or beginnings of run names.
        how: save: what runs ends its step, saves and leaves; now: it is ended by SLURM, which
            gives it some seconds.
        confirm: asked when more than ``MANY`` runs would go.
        tier: toy, proxy or paper; None: all that have runs.

    Raises:
        ConfigError: no name is given, or one means nothing.
        Refused: ``confirm`` said no.
        EnvironmentLacks: SLURM does not answer.
    """
    if not names:
        raise ConfigError("lsa cancel: what? name a study, a run, or all")
    rows = [row for row in status(results, names, tier=tier) if row.folder is not None]
    active = [row for row in rows if row.state in ("queued", "running")]
    if len(active) > MANY and not confirm(f"Cancel {len(active)} runs?"):
        raise Refused(f"{len(active)} runs were left as they are: not confirmed (lsa cancel --yes)")
    done = Cancelled(idle=[row.name for row in rows if row not in active])
    for one in tiers_of(results, tier):
        if of_tier := [row for row in active if row.tier == one]:
            _cancel(of_tier, LaunchFolder.of(results, one), how, done)
    return done


def _cancel(rows: Sequence[RunStatus], records: LaunchFolder, how: str, done: Cancelled) -> None:
    # Noted first: a job that starts just now, or is put back by somebody, reads it and leaves.
    records.note_cancelled([row.identity for row in rows])
    jobs = [row.job for row in rows if row.job is not None]
    in_hand = scheduler.queue({array.user for array in records.arrays()}) if jobs else {}
    under_way = [job for job in jobs if job in in_hand and not in_hand[job].pending]
    scheduler.cancel([job for job in jobs if job not in under_way])
    scheduler.cancel(under_way, *(("--signal=TERM",) if how == "save" else ()))
    for row in rows:
        assert row.folder is not None
        writer = row.folder.writer()
        if row.job in under_way:
            done.running.append(row.name)
        elif row.job is not None:
            if writer is None and row.folder.result() is None:
                row.folder.change_state("stopped", cause="cancelled")
            done.pending.append(row.name)
        elif writer is not None and writer["host"] == socket.gethostname():
            os.kill(int(writer["pid"]), signal.SIGTERM)  # a local queue trains it
            done.running.append(row.name)
        else:
            done.idle.append(row.name)


# -- clearing away ------------------------------------------------------------------------------

UNFINISHED = ("stopped", "failed", "lost")


@dataclass(frozen=True)
class Garbage:
    """A folder that can go."""

    path: Path
    tier: str
    why: str
    size: int
    """Bytes."""

    @classmethod
    def of(cls, path: Path, tier: str, why: str) -> Self:
        """The folder with its size."""
        files = [found.lstat() for found in path.rglob("*") if found.is_file()]
        return cls(path, tier, why, sum(file.st_size for file in files))


def gc(
    results: Path,
    names: Sequence[str] = (),
    *,
    confirm: Callable[[str], bool],
    tier: str | None = None,
) -> list[Garbage]:
    """Move to the trash the job files of runs that have ended and, of those named, what failed.

    Args:
        results: the results folder.
        names: studies or runs whose folders go if they stopped, failed or got lost; empty: none.
        confirm: asked once with what would go; says whether to do it. A dry run says no.
        tier: toy, proxy or paper; None: all.

    Returns:
        What went, or would have gone.
    """
    found = []
    for one in tiers_of(results, tier):
        ended = {row.identity for row in status(results, tier=one) if row.state == "done"}
        records = LaunchFolder.of(results, one)
        for array in records.arrays():
            if all(identity_of(name) in ended for name in array.runs):
                found.append(Garbage.of(records.folder_of(array), one, "all its runs are done"))
    for row in status(results, names, tier=tier) if names else ():
        if row.folder is not None and row.state in UNFINISHED:
            found.append(Garbage.of(row.folder.root, row.tier, f"{row.state} ({row.cause})"))
    size = sum(garbage.size for garbage in found)
    question = f"Move {len(found)} folders ({size / 1e6:.1f} MB) to {results}/<tier>/.trash?"
    if found and confirm(question):
        for garbage in found:
            discard(garbage.path, results / garbage.tier)
    return found


def discard(path: Path, tier_folder: Path) -> Path:
    """Move a folder into the tier's trash; returns where it lies now."""
    if not path.resolve().is_relative_to(tier_folder.resolve()):
        raise Refused(f"{path}: does not lie in {tier_folder}; only what does can be moved away")
    trash = tier_folder / ".trash"
    trash.mkdir(mode=0o700, exist_ok=True)
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    return path.rename(trash / f"{path.name}.{stamp}")
