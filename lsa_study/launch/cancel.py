"""Take runs out of the queue, and clear away what nobody needs.

What runs saves before it leaves. Nothing is deleted: it moves to ``results/<tier>/.trash/``.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lsa_study.errors import ConfigError, Refused
from lsa_study.launch import scheduler
from lsa_study.launch.records import LaunchFolder, tiers_of
from lsa_study.launch.status import RunStatus, status
from lsa_study.rundir import identity_of

MANY = 10
"""More runs than this are cancelled only after a question."""

TAKEN_OUT = "taken out of the queue"
LEAVING = "told to leave"
IDLE = "neither queued nor running"


def cancel(
    results: Path,
    names: Sequence[str],
    *,
    now: bool = False,
    confirm: Callable[[str], bool] = lambda question: False,
    tier: str | None = None,
) -> dict[str, list[str]]:
    """Cancel the runs of studies, or single runs.

    Args:
        now: what runs is ended by SLURM, which gives it some seconds; else it ends its step,
            saves and leaves.
        confirm: asked when more than ``MANY`` runs would go.

    Returns:
        Names of the runs by what was done: ``TAKEN_OUT``, ``LEAVING`` or ``IDLE``.

    Raises:
        ConfigError: no name is given, or one means nothing.
        Refused: ``confirm`` said no.
        EnvironmentLacks: SLURM does not answer.
    """
    if not names:
        raise ConfigError("lsa cancel: what? name a study, a run, or all")
    rows = [row for row in status(results, names, tier=tier) if row.folder.root.exists()]
    active = {row.identity: row for row in rows if row.state in ("queued", "running")}
    if len(active) > MANY and not confirm(f"Cancel {len(active)} runs?"):
        raise Refused(f"{len(active)} runs were left as they are: not confirmed (lsa cancel --yes)")
    tiers = {row.tier: LaunchFolder.of(results, row.tier) for row in active.values()}
    # Noted first: a job that starts just now, or is put back by somebody, reads it and leaves.
    for row in active.values():
        (tiers[row.tier].folder("cancelled") / row.identity).touch()
    jobs = [row.job for row in active.values() if row.job is not None]
    in_hand = dict[str, scheduler.SlurmJob]()
    for records in tiers.values() if jobs else ():
        in_hand |= records.in_hand()[1]
    jobs = [job for job in jobs if job in in_hand and in_hand[job].state != scheduler.UNKNOWN]
    under_way = [job for job in jobs if not in_hand[job].pending]
    scheduler.cancel([job for job in jobs if job not in under_way])
    scheduler.cancel(under_way, *(() if now else ("--signal=TERM",)))
    done: dict[str, list[str]] = {}
    for row in rows:
        what = _leave(row, row.job in under_way) if row.identity in active else IDLE
        done.setdefault(what, []).append(row.name)
    return done


def _leave(row: RunStatus, under_way: bool) -> str:
    """Record of a run whose job was cancelled that it stopped, or end one that has no job."""
    writer = row.folder.writer()
    if under_way:
        return LEAVING
    if row.job is not None:
        if writer is None and row.folder.result() is None:
            row.folder.change_state("stopped", cause="cancelled")
        return TAKEN_OUT
    if writer is None or writer.host != socket.gethostname():
        return IDLE
    os.kill(writer.pid, signal.SIGTERM)  # a local queue trains it
    return LEAVING


# -- clearing away ------------------------------------------------------------------------------

UNFINISHED = ("stopped", "failed", "lost")


def gc(
    results: Path,
    names: Sequence[str] = (),
    *,
    confirm: Callable[[str], bool],
    tier: str | None = None,
) -> dict[Path, str]:
    """Move to the trash the job files of runs that have ended and, of those named, what failed.

    Args:
        names: studies or runs whose folders go if they stopped, failed or got lost; empty: none.
        confirm: asked once with what would go; says whether to do it. A dry run says no.

    Returns:
        The folders that went, or would have gone, and why.
    """
    found: dict[Path, str] = {}
    for one in tiers_of(results, tier):
        ended = {row.identity for row in status(results, tier=one) if row.state == "done"}
        records = LaunchFolder.of(results, one)
        for array in records.arrays():
            if all(identity_of(name) in ended for name in array.runs):
                found[records.root / array.key] = "all its runs are done"
    for row in status(results, names, tier=tier) if names else ():
        if row.state in UNFINISHED:
            found[row.folder.root] = f"{row.state} ({row.cause})"
    files = [file.lstat() for path in found for file in path.rglob("*") if file.is_file()]
    size = sum(file.st_size for file in files) / 1e6
    question = f"Move {len(found)} folders ({size:.1f} MB) to {results}/<tier>/.trash?"
    if found and confirm(question):
        for path in found:
            discard(path, path.parent.parent)
    return found


def discard(path: Path, tier_folder: Path) -> None:
    """Move a folder into the tier's trash."""
    if not path.resolve().is_relative_to(tier_folder.resolve()):
        raise Refused(f"{path}: does not lie in {tier_folder}; only what does can be moved away")
    trash = tier_folder / ".trash"
    trash.mkdir(mode=0o700, exist_ok=True)
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    path.rename(trash / f"{path.name}.{stamp}")
