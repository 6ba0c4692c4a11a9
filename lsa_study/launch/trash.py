"""Clear away what nobody needs. Nothing is deleted: it moves to ``results/<tier>/.trash/``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsa_study.errors import Refused
from lsa_study.launch.records import LaunchFolder, identity_of
from lsa_study.launch.select import tiers_of
from lsa_study.launch.status import RunStatus, status

UNFINISHED = ("stopped", "failed", "lost")


@dataclass(frozen=True)
class Garbage:
    """A folder that can go."""

    path: Path
    tier: str
    why: str
    size: int
    """Bytes."""


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
    found = _job_files(results, tier)
    if names:
        found += [_run_folder(row) for row in status(results, names, tier=tier) if _unfinished(row)]
    if not found:
        return []
    size = sum(garbage.size for garbage in found)
    question = f"Move {len(found)} folders ({size / 1e6:.1f} MB) to {results}/<tier>/.trash?"
    if confirm(question):
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


def _job_files(results: Path, tier: str | None) -> list[Garbage]:
    found = []
    for one in tiers_of(results, tier):
        ended = {row.identity for row in status(results, tier=one) if row.state == "done"}
        records = LaunchFolder.of(results, one)
        for array in records.arrays():
            if all(identity_of(name) in ended for name in array.runs):
                folder = records.folder_of(array)
                found.append(Garbage(folder, one, "all its runs are done", _size(folder)))
    return found


def _unfinished(row: RunStatus) -> bool:
    return row.folder is not None and row.state in UNFINISHED


def _run_folder(row: RunStatus) -> Garbage:
    assert row.folder is not None
    root = row.folder.root
    return Garbage(root, row.tier, f"{row.state} ({row.cause})", _size(root))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
