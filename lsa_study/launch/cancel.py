"""Take runs out of the queue, and let those that run save and leave."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lsa_study.errors import ConfigError, Refused
from lsa_study.launch import scheduler
from lsa_study.launch.records import LaunchFolder
from lsa_study.launch.select import tiers_of
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
        of_tier = [row for row in active if row.tier == one]
        if of_tier:
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
        if row.job is not None and row.job not in under_way:
            _mark_stopped(row)
            done.pending.append(row.name)
        elif row.job is not None or _interrupt(row):
            done.running.append(row.name)
        else:
            done.idle.append(row.name)


def _mark_stopped(row: RunStatus) -> None:
    assert row.folder is not None
    if row.folder.writer() is None and row.folder.result() is None:
        row.folder.change_state("stopped", cause="cancelled")


def _interrupt(row: RunStatus) -> bool:
    """Interrupt a run that a local queue trains on this machine."""
    writer = row.folder.writer() if row.folder is not None else None
    if writer is None or writer["host"] != socket.gethostname():
        return False
    os.kill(int(writer["pid"]), signal.SIGINT)
    return True
