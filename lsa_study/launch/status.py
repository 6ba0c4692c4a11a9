"""Where every run stands, from what is on disk and what SLURM says.

The run folder is the truth: a result ends all doubt, and a fresh heartbeat means that a run is
alive, whatever the scheduler says. Where a heartbeat is missing, evidence is asked for in this
order: the queue, the controller's memory of ended jobs, accounting if it answers. What none of them
knows is lost. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lsa_study.errors import ConfigError
from lsa_study.launch import scheduler
from lsa_study.launch.logs import last_lines
from lsa_study.launch.records import (
    INTERRUPTED,
    LaunchFolder,
    Life,
    RunRef,
    asked_runs,
    chosen_runs,
    tiers_of,
)
from lsa_study.launch.scheduler import SlurmJob
from lsa_study.rundir import RunDir

SILENT_SECONDS = 90.0
"""A heartbeat older than this is no longer believed by itself."""

STYLES = {
    "done": "green", "diverged": "yellow", "oom": "yellow", "running": "cyan", "queued": "blue",
    "waiting": "", "stopped": "magenta", "failed": "red", "lost": "red",
}  # fmt: skip
"""The states of a run as they are counted and shown; done, diverged and oom are results."""


@dataclass(frozen=True)
class RunStatus:
    """One run, as ``lsa status`` shows it."""

    name: str
    identity: str
    variant: str
    seed: int
    tier: str
    state: str = "waiting"
    """One of ``STYLES``."""
    cause: str | None = None
    """Why it stopped, failed or got lost."""
    epoch: int = 0
    epochs: int | None = None
    attempts: int = 0
    acc1: float | None = None
    """Percent, of the last epoch that was tested."""
    eta_seconds: float | None = None
    job: str | None = None
    note: str = ""
    message: str = ""
    """The last message of the run or of its job."""
    gpu_hours: float = 0.0
    """Over all lives."""
    folder: RunDir | None = None
    """None: nothing on disk yet."""


@dataclass(frozen=True)
class Job:
    """What SLURM says of a run's job."""

    id: str
    output: Path
    """What its first process printed."""
    answers: bool = True
    """Whether there is a SLURM here and it answers; else the rest means nothing."""
    queued: SlurmJob | None = None
    """None: it is not in the queue."""
    ended: SlurmJob | None = None
    """What is remembered of its end; None: nothing, or nobody has asked yet."""
    last: Sequence[str] = ()
    """The last lines it printed."""


def judge(
    row: RunStatus, writer: bool, job: Job | None, age: float, *, cancelled: bool = False
) -> RunStatus:
    """Judge where a run without a result stands.

    Args:
        row: as its status file has it.
        writer: whether somebody seems to write in its folder.
        job: its latest job; None: no scheduler ever had it.
        age: seconds since its last heartbeat; infinite if there was none.
        cancelled: whether the user cancelled it since it was last started.
    """
    state, cause = row.state, row.cause
    silence = f"no heartbeat {age / 60:.0f} min" if SILENT_SECONDS <= age < float("inf") else ""
    if (alive := _alive(state, writer and state != "failed", job, silence)) is not None:
        return replace(row, state=alive[0], cause=None, note=alive[1])
    if state == "running" or (state == "waiting" and job is not None):
        if cancelled:
            return replace(row, state="stopped", cause="cancelled")
        if job is None or job.ended is None:
            state, cause, last = "lost", "lost", ""
            note = "job not in the queue" if job else "its process is gone"
        else:
            state, cause, note, last = scheduler.why_ended(job.ended, job.last)
        note = "; ".join(filter(None, (silence, note)))
        return replace(row, state=state, cause=cause, note=note, message=last or row.message)
    if state == "stopped" and cause is None:
        cause = "cancelled" if cancelled else INTERRUPTED
    # A preemption and a plain scancel send the same signal: only SLURM knows which it was.
    if cause == "preempted" and job is not None and job.ended is not None:
        cause = "cancelled" if job.ended.state == "CANCELLED" else cause
    return replace(row, cause=cause)


def _alive(state: str, writer: bool, job: Job | None, silence: str) -> tuple[str, str] | None:
    """How a run is under way, as state and note; None if it is not."""
    if writer and not silence:
        return "running", ""
    if job is None or not job.answers:
        if writer:
            return "running", silence
        if job is not None and state in ("running", "waiting"):
            return "queued" if state == "waiting" else "running", "SLURM does not answer here"
        return None
    if job.queued is None:
        return None
    if job.queued.pending:
        return "queued", "held" if job.queued.held else job.queued.reason.lower()
    if state == "failed":
        return None
    return "running", silence if state == "running" else "starting"


# -- gathering the evidence ---------------------------------------------------------------------


def status(results: Path, names: Sequence[str] = (), *, tier: str | None = None) -> list[RunStatus]:
    """Where runs stand.

    Args:
        names: studies or beginnings of run names; empty: all runs that are there. Rows of a study
            that have no folder yet are listed as waiting, after the others.
        tier: None: those that have runs.

    Raises:
        ConfigError: a name means nothing.
    """
    found = chosen_runs(results, names, tier)
    rows: list[RunStatus] = []
    for one in tiers_of(results, tier):
        of_tier = [run for run in found if run.tier == one]
        rows += _of_tier(of_tier, LaunchFolder.of(results, one))
    there = Counter((row.tier, row.identity) for row in rows)
    twice = "other folders hold the same run: keep one there, move the others away"
    rows = [replace(row, note=twice) if there[row.tier, row.identity] > 1 else row for row in rows]
    return rows + [
        RunStatus(
            run.name, run.identity, run.variant, run.seed, run.settings.tier,
            epochs=run.settings.train.epochs,
        )
        for run in asked_runs(results, names, tier)
        if (run.settings.tier, run.identity) not in there
    ]  # fmt: skip


def status_json(rows: Iterable[RunStatus]) -> dict[str, Any]:
    """The answer of ``lsa status --json``."""
    shown = [one.name for one in fields(RunStatus) if one.name not in ("note", "folder")]
    return {"runs": [{key: getattr(row, key) for key in shown} for row in rows]}


def _of_tier(runs: Sequence[RunRef], records: LaunchFolder) -> list[RunStatus]:
    jobs = _jobs(records)
    rows = {run: _row(run, jobs.get(run.identity), records) for run in runs}
    unsure = {
        run: job
        for run, row in rows.items()
        if (row.state == "lost" or (row.state, row.cause) == ("stopped", "preempted"))
        and (job := jobs.get(run.identity)) is not None
        and job.answers
    }
    if unsure:
        ended = scheduler.ended(job.id for job in unsure.values())
        for run, job in unsure.items():
            if job.id in ended:
                known = replace(job, ended=ended[job.id], last=last_lines(job.output))
                rows[run] = _row(run, known, records)
    return [_with_lives(row, records.lives(run.identity)) for run, row in rows.items()]


def _jobs(records: LaunchFolder) -> dict[str, Job]:
    """The latest job of every run by identity."""
    arrays = records.arrays()
    queue: dict[str, SlurmJob] | None = None
    if arrays:
        with contextlib.suppress(scheduler.Rejected):
            queue = scheduler.queue({array.user for array in arrays})
            arrays = records.arrays(queue)
    known, answers = queue or {}, queue is not None
    return {
        identity: Job(job, records.output_of(array, job), answers, known.get(job))
        for array in arrays
        for identity, job in array.jobs().items()
    }


def _row(run: RunRef, job: Job | None, records: LaunchFolder) -> RunStatus:
    row = RunStatus(
        run.name, run.identity, run.variant, run.seed, run.tier,
        job=job.id if job else None, folder=run.folder,
    )  # fmt: skip
    try:
        result = run.folder.result()
    except ConfigError as error:
        return replace(row, state="failed", cause="disk", message=str(error))
    if result is not None:
        # Where no scheduler started it: one GPU, if it had one.
        hours = (result.seconds or 0.0) / 3600 if result.device_kind == "cuda" else 0.0
        return replace(
            row, state=result.outcome, attempts=result.attempts or 0, epoch=result.epoch or 0,
            epochs=result.epochs, acc1=result.acc1, message=result.reason or "", gpu_hours=hours,
        )  # fmt: skip
    facts = run.folder.status()
    age = float("inf") if facts.heartbeat is None else run.folder.silence()
    row = replace(
        row, state=facts.state, cause=facts.cause, epoch=facts.epoch, epochs=facts.epochs,
        attempts=facts.attempt or len(run.folder.attempts()), acc1=facts.acc1,
        eta_seconds=facts.eta_seconds, message=facts.message or "",
    )  # fmt: skip
    writer, cancelled = run.folder.writer() is not None, records.cancelled(run.identity)
    row = judge(row, writer, job, age, cancelled=cancelled)
    return row if row.state == "running" else replace(row, eta_seconds=None)


def _with_lives(row: RunStatus, lives: Sequence[Life]) -> RunStatus:
    """The same with what its lives say: GPU-hours, and how often it had to go."""
    if not lives:
        return row
    now = time.time()
    hours = sum(
        ((life.end or (now if row.state == "running" else life.start)) - life.start) * life.gpus
        for life in lives
    )
    row = replace(row, gpu_hours=hours / 3600)
    if len(lives) < 2:
        return row
    names = {"preempted": "preemption", "timeout": "time limit", "node": "lost node"}
    counts = Counter(names[life.why] for life in lives if life.why in names)
    ends = ", ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in counts.items())
    note = f"life {len(lives)}" + (f" ({ends})" if ends else "")
    return replace(row, note="; ".join(filter(None, (note, row.note))))


# -- the table ----------------------------------------------------------------------------------

WATCH_SECONDS = 5.0

MESSAGE_WIDTH = 100

COLUMNS = {
    "RUN": str.ljust, "STATE": str.ljust, "EPOCH": str.rjust, "TOP-1": str.rjust,
    "LEFT": str.rjust, "JOB": str.ljust, "NOTE": str.ljust,
}  # fmt: skip


def page(rows: Sequence[RunStatus], results: Path) -> Group:
    """One line per run, what they add up to over all lives, and the command that helps."""
    # A table of rich takes ten seconds for ten thousand runs.
    cells = [tuple(COLUMNS), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        [align(cell, n) for align, cell, n in zip(COLUMNS.values(), line, widths, strict=True)]
        for line in cells
    ]
    table = Text().append("  ".join(aligned[0]).rstrip(), "bold")
    for row, line in zip(rows, aligned[1:], strict=True):
        table.append(f"\n{line[0]}  ").append(line[1], STYLES[row.state])
        table.append("  " + "  ".join(line[2:]).rstrip())
    counts = Counter(row.state for row in rows)
    numbers = [f"{counts[state]} {state}" for state in STYLES if counts[state]]
    hours = sum(row.gpu_hours for row in rows)
    lines = ["  ".join(numbers) or f"no runs under {results}"]
    if hours >= 0.05:
        lines[0] += f"   {hours:.1f} GPU-hours over all lives"
    for tier in tiers_of(results, None):
        if (held := LaunchFolder.of(results, tier).held()) is not None:
            lines.append(
                f"{len(held['runs'])} runs died of the same error ({held['message']}). "
                f"Held the other {held['count']}; fix it first"
            )
    if causes := {row.cause for row in rows if row.state in ("failed", "lost") and row.cause}:
        lines.append(f"again: lsa retry --cause {','.join(sorted(causes))}")
    return Group(table, *map(Text, lines))


def watch(look: Callable[[], Sequence[RunStatus]], results: Path, console: Console) -> None:
    """Show the page anew every few seconds, until an interrupt or until nothing is under way."""
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            rows = look()
            live.update(page(rows, results), refresh=True)
            if not any(row.state in ("running", "queued") for row in rows):
                break
            time.sleep(WATCH_SECONDS)
    console.print(page(rows, results), soft_wrap=True)


def _cells(row: RunStatus) -> tuple[str, ...]:
    notes = [row.cause if row.state in ("failed", "stopped") else None, row.note]
    if row.state in ("failed", "lost", "diverged", "oom") and row.message not in row.note:
        last = row.message.strip().splitlines() or [""]
        notes.append(last[-1][:MESSAGE_WIDTH])
    return (
        row.name,
        row.state,
        f"{row.epoch}/{row.epochs}" if row.epochs else "-",
        "-" if row.acc1 is None else f"{row.acc1:.2f}",
        "-" if row.eta_seconds is None else str(timedelta(seconds=round(row.eta_seconds))),
        row.job or "-",
        ": ".join(filter(None, notes)),
    )
