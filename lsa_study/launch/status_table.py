"""The answer of ``lsa status`` for people: a table, what it adds up to, what to do next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lsa_study.launch.records import LaunchFolder
from lsa_study.launch.select import tiers_of
from lsa_study.launch.status import STATES, RunStatus

STYLES = {
    "done": "green", "running": "cyan", "queued": "blue", "diverged": "yellow", "oom": "yellow",
    "failed": "red", "lost": "red", "stopped": "magenta",
}  # fmt: skip

WATCH_SECONDS = 5.0

MESSAGE_WIDTH = 100


def show(rows: Sequence[RunStatus], results: Path, console: Console) -> None:
    """Print the table and its summary."""
    console.print(_page(rows, results), soft_wrap=True)


def watch(look: Callable[[], Sequence[RunStatus]], results: Path, console: Console) -> None:
    """Show the table anew every few seconds, until an interrupt or until nothing is under way."""
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            rows = look()
            live.update(_page(rows, results), refresh=True)
            if not any(row.state in ("running", "queued") for row in rows):
                break
            time.sleep(WATCH_SECONDS)
    show(rows, results, console)


def _page(rows: Sequence[RunStatus], results: Path) -> Group:
    words = [Text(line) for line in summary(rows, results)]
    return Group(table(rows), *words)


def table(rows: Sequence[RunStatus]) -> Text:
    """One line per run."""
    # A table of rich takes ten seconds for ten thousand runs.
    cells = [HEADERS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(HEADERS, line, widths, strict=True)
        ]
        for line in cells
    ]
    shown = Text().append("  ".join(lines[0]).rstrip(), "bold")
    for row, line in zip(rows, lines[1:], strict=True):
        shown.append(f"\n{line[0]}  ").append(line[1], STYLES.get(row.state, ""))
        shown.append("  " + "  ".join(line[2:]).rstrip())
    return shown


HEADERS = ("RUN", "STATE", "EPOCH", "TOP-1", "LEFT", "JOB", "NOTE")

_RIGHT = ("EPOCH", "TOP-1", "LEFT")


def _cells(row: RunStatus) -> tuple[str, ...]:
    return (
        row.name,
        row.state,
        f"{row.epoch}/{row.epochs}" if row.epochs else "-",
        "-" if row.acc1 is None else f"{row.acc1:.2f}",
        "-" if row.eta_seconds is None else str(timedelta(seconds=round(row.eta_seconds))),
        row.job or "-",
        _note(row),
    )


def _note(row: RunStatus) -> str:
    told = [row.cause if row.state in ("failed", "stopped") else None, row.note]
    if row.state in ("failed", "lost", "diverged", "oom") and row.message not in row.note:
        last = row.message.strip().splitlines() or [""]
        told.append(last[-1][:MESSAGE_WIDTH])
    return ": ".join(words for words in told if words)


def summary(rows: Sequence[RunStatus], results: Path) -> list[str]:
    """Counts, GPU-hours over all lives, and the command that helps."""
    counts = Counter(row.state for row in rows)
    words = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    hours = sum(row.gpu_hours for row in rows)
    lines = ["  ".join(words) or f"no runs under {results}"]
    if hours >= 0.05:
        lines[0] += f"   {hours:.1f} GPU-hours over all lives"
    for tier in tiers_of(results, None):
        held = LaunchFolder.of(results, tier).held()
        if held is not None:
            lines.append(
                f"{len(held['runs'])} runs died of the same error ({held['words']}). "
                f"Held the other {held['count']}; mend it first"
            )
    causes = {row.cause for row in rows if row.state in ("failed", "lost") and row.cause}
    if causes:
        lines.append(f"again: lsa retry --cause {','.join(sorted(causes))}")
    return lines
