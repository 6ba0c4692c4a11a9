"""What a run printed: the output of its jobs, life by life, else its own log of each attempt."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from lsa_study.errors import ConfigError
from lsa_study.launch.records import LIFE_MARK, LaunchFolder, one_run


def logs(
    results: Path,
    run: str,
    write: Callable[[str], object],
    *,
    follow: bool = False,
    rank: int = 0,
    attempt: int | None = None,
) -> None:
    """Hand what a run printed to ``write``, piece by piece.

    Args:
        run: the beginning of the run's name or identity.
        follow: go on until the run has ended.
        rank: which of the run's processes.
        attempt: which of its lives, from 1; None: all.

    Raises:
        ConfigError: no such run, or it has printed nothing, or has no such life.
    """
    found = one_run(results, run)
    records = LaunchFolder.of(results, found.tier)

    def printed() -> str:
        files = [
            records.output_of(array, array.jobs()[found.identity], rank)
            for array in records.arrays()
            if found.identity in array.jobs()
        ]
        of_jobs = any(path.exists() for path in files)
        if not of_jobs:
            chosen = [p for p in found.folder.attempts() if attempt in (None, int(p.name))]
            files = [folder / "log.txt" for folder in chosen]
        existing = [path for path in files if path.exists()]
        text = "".join(path.read_text("utf-8", "replace") for path in existing)
        if attempt is None or not of_jobs:
            return text
        # A life begins with its mark; what SLURM prints before the first belongs to the first.
        lives = re.split(f"^(?={re.escape(LIFE_MARK)})", text, flags=re.MULTILINE)
        return "".join(life for life in lives if life.startswith(f"{LIFE_MARK}{attempt}:"))

    text = printed()
    if not text and (not follow or attempt is not None):
        which = "" if attempt is None else f" in life {attempt}"
        raise ConfigError(f"{found.name}: process {rank} has printed nothing{which} yet")
    write(text)
    done = len(text)
    while follow:
        follow = found.folder.result() is None and found.folder.status().state != "failed"
        if len(text := printed()) > done:
            write(text[done:])
            done = len(text)
        if follow:
            time.sleep(1.0)


def last_lines(path: Path, count: int = 20) -> list[str]:
    """The last lines of a file that hold something; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400 * count))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]
