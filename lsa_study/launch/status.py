"""Where every run stands, from what is on disk and what SLURM says; and what it printed.

The run folder is the truth: a result ends all doubt, and a fresh heartbeat means that a run is
alive, whatever the scheduler says. Where a heartbeat is missing, evidence is asked for in this
order: the queue, the controller's memory of ended jobs, accounting if it answers. What none of them
knows is lost. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lsa_study import rundir
from lsa_study.config.asked import options_of, stored
from lsa_study.config.study import TIERS, distinct
from lsa_study.config.task import METRICS, curve_key
from lsa_study.errors import ConfigError
from lsa_study.files import last_lines, read_whole
from lsa_study.launch import scheduler
from lsa_study.launch.known import KNOWN
from lsa_study.launch.records import (
    INTERRUPTED,
    LIFE_MARK,
    LaunchFolder,
    Life,
    RunRef,
    asked_studies,
    chosen_runs,
    one_run,
    tiers_of,
)
from lsa_study.launch.scheduler import SlurmJob
from lsa_study.record import OUTCOMES, judged
from lsa_study.rundir import RunDir
from lsa_study.terminal import STYLES, fitted, width_of, wrapped

SILENT_SECONDS = 90.0
"""A heartbeat older than this is no longer believed by itself."""


@dataclass(frozen=True)
class RunStatus(RunRef):
    """One run, as ``lsa status`` shows it; its folder need not be there yet."""

    state: str = "waiting"
    """One of ``STYLES``."""
    cause: str | None = None
    """Why it stopped, failed or got lost."""
    epoch: int = 0
    epochs: int | None = None
    attempts: int = 0
    acc1: float | None = None
    """Percent, of the last epoch that was tested."""
    score: float | None = None
    """The same number, or box AP or mIoU of a run of another task."""
    metric: str | None = None
    """Which of them ``score`` is, by its name in ``config.task``; None before there is one."""
    eta_seconds: float | None = None
    job: str | None = None
    note: str = ""
    message: str = ""
    """The last message of the run or of its job."""
    gpu_hours: float = 0.0
    """Over all lives."""


def judge(
    row: RunStatus,
    writer: bool,
    job: SlurmJob | None,
    age: float,
    *,
    cancelled: bool = False,
    last: Sequence[str] = (),
) -> RunStatus:
    """Judge where a run without a result stands.

    Args:
        row: as its status file has it.
        writer: whether somebody seems to write in its folder.
        job: its latest job; None: no scheduler ever had it.
        age: seconds since its last heartbeat; infinite if there was none.
        cancelled: whether the user cancelled it since it was last started.
        last: the last lines that the job printed, once its end is known.
    """
    state, cause = row.state, row.cause
    silence = f"no heartbeat {age / 60:.0f} min" if SILENT_SECONDS <= age < float("inf") else ""
    if (alive := _alive(state, writer and state != "failed", job, silence)) is not None:
        return replace(row, state=alive[0], cause=None, note=alive[1])
    if state == "running" or (state == "waiting" and job is not None):
        if cancelled:
            return replace(row, state="stopped", cause="cancelled")
        if job is not None and job.ended:
            state, cause, note, message = scheduler.why_ended(job, last)
        else:
            state, cause, message = "lost", "lost", ""
            note = "job not in the queue" if job else "its process is gone"
        note = "; ".join(filter(None, (silence, note)))
        return replace(row, state=state, cause=cause, note=note, message=message or row.message)
    if state == "stopped" and cause is None:
        cause = "cancelled" if cancelled else INTERRUPTED
    # A preemption and a plain scancel send the same signal: only SLURM knows which it was.
    if cause == "preempted" and job is not None and job.state == "CANCELLED":
        cause = "cancelled"
    return replace(row, cause=cause)


def _alive(state: str, writer: bool, job: SlurmJob | None, silence: str) -> tuple[str, str] | None:
    """How a run is under way, as state and note; None if it is not."""
    if writer and not silence:
        return "running", ""
    if job is None or job.state == scheduler.UNKNOWN:
        if writer:
            return "running", silence
        if job is not None and state in ("running", "waiting"):
            where = f"on cluster {job.reason}" if job.reason else "SLURM does not answer here"
            return "queued" if state == "waiting" else "running", where
        return None
    if job.pending:
        return "queued", "held" if job.reason.startswith("JobHeld") else job.reason.lower()
    if job.ended or job.state == scheduler.GONE or state == "failed":
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
    asked = distinct(asked_studies(results, names, tier))
    known = {at: stored(results, at, []) for at in {run.settings.tier for run in asked}}
    return rows + [
        _elsewhere(row, known[at].get(run.identity))
        for run in asked
        for at in [run.settings.tier]
        if (at, run.identity) not in there
        for folder in [RunDir(rundir.runs_folder(results, at) / run.name)]
        for epochs in [run.settings.train.epochs]
        for row in [RunStatus(at, run.variant, run.seed, run.identity, folder, epochs=epochs)]
    ]


def _elsewhere(row: RunStatus, facts: Mapping[str, Any] | None) -> RunStatus:
    """A run without a folder here, which ``runs.parquet`` may know."""
    if facts is None or facts["outcome"] not in OUTCOMES:
        return row
    known = {name: facts[name] for name in ("epoch", "attempts") if facts[name] is not None}
    every = {name: facts[curve_key(name)] for name in METRICS}
    known |= _judged(every["acc1"], every)
    return replace(row, state=facts["outcome"], note=KNOWN, **known)


def status_json(rows: Iterable[RunStatus]) -> dict[str, Any]:
    """The answer of ``lsa status --json``."""
    shown = ["name", *(one.name for one in fields(RunStatus) if one.name not in ("note", "folder"))]
    return {"runs": [{key: getattr(row, key) for key in shown} for row in rows]}


def _of_tier(runs: Sequence[RunRef], records: LaunchFolder) -> list[RunStatus]:
    arrays, queue, state = records.arrays(), dict[str, SlurmJob](), scheduler.UNKNOWN
    if arrays:
        with contextlib.suppress(scheduler.Rejected):
            arrays, queue = records.in_hand()
            state = scheduler.GONE
    jobs: dict[str, SlurmJob] = {}
    outputs: dict[str | None, Path] = {}
    comments: dict[str | None, str] = {}
    for array in arrays:
        for identity, job in array.jobs().items():
            jobs[identity] = queue.get(job, SlurmJob(job, state))
            outputs[job] = records.output_of(array, job)
            comments[job] = array.comment
    rows = [_row(run, jobs.get(run.identity), records) for run in runs]
    unsure = [
        row.job
        for row in rows
        if row.state == "lost" or (row.state, row.cause) == ("stopped", "preempted")
    ]
    asked = {job: comments[job] for job in unsure if job is not None}
    ended = scheduler.ended(asked) if state == scheduler.GONE else {}
    for place, row in enumerate(rows):
        if row.job in ended:
            last = last_lines(outputs[row.job])
            rows[place] = _row(runs[place], ended[row.job], records, last)
    return [_with_lives(row, records.lives(row.identity)) for row in rows]


def _row(
    run: RunRef, job: SlurmJob | None, records: LaunchFolder, last: Sequence[str] = ()
) -> RunStatus:
    row = RunStatus(**vars(run), job=job.job if job else None)
    try:
        result = run.folder.result()
    except ConfigError as error:
        return replace(row, state="failed", cause="disk", message=str(error))
    if result is not None:
        # Where no scheduler started it: one GPU, if it had one.
        hours = (result.seconds or 0.0) / 3600 if result.device_kind == "cuda" else 0.0
        return replace(
            row, state=result.outcome, attempts=result.attempts or 0, epoch=result.epoch or 0,
            epochs=result.epochs, message=result.reason or "", gpu_hours=hours,
            **_judged(result.acc1, result.metrics),
        )  # fmt: skip
    facts = run.folder.status()
    age = float("inf") if facts.heartbeat is None else run.folder.silence()
    row = replace(
        row, state=facts.state, cause=facts.cause, epoch=facts.epoch, epochs=facts.epochs,
        attempts=facts.attempt or len(run.folder.attempts()), **_judged(facts.acc1, facts.metrics),
        eta_seconds=facts.eta_seconds, message=facts.message or "",
    )  # fmt: skip
    writer, cancelled = run.folder.writer() is not None, records.is_cancelled(run.identity)
    row = judge(row, writer, job, age, cancelled=cancelled, last=last)
    return row if row.state == "running" else replace(row, eta_seconds=None)


def _judged(acc1: float | None, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    metric, score = judged(acc1, metrics) or (None, None)
    return {"acc1": acc1, "metric": metric, "score": score}


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


def page(rows: Sequence[RunStatus], results: Path, width: int | None = None) -> Group:
    """One line per run, what they add up to over all lives, and the command that helps.

    ``width``: what lines are cut to; None: they are as long as they are.
    """
    metrics = {row.metric for row in rows if row.metric is not None}
    several = len(metrics) != 1  # then each number has its name beside it
    score = "SCORE" if several else METRICS[metrics.pop()].short.upper()
    columns = ("RUN", "STATE", "EPOCH", score, "LEFT", "JOB", "NOTE")
    cells = (_cells(row, named=several) for row in rows)
    # A table of rich takes ten seconds for ten thousand runs.
    (header, *aligned), _ = fitted([columns, *cells], width, numbers=(2, 3, 4))
    table = Text().append("  ".join(header).rstrip(), "bold")
    for row, line in zip(rows, aligned, strict=True):
        table.append(f"\n{line[0]}  ").append("".join(line[1:2]), STYLES[row.state])
        table.append("  " + "  ".join(line[2:]).rstrip())
    counts = Counter(row.state for row in rows)
    numbers = [f"{counts[state]} {state}" for state in STYLES if counts[state]]
    lines = ["  ".join(numbers) or f"no runs under {results}"]
    if (hours := sum(row.gpu_hours for row in rows)) >= 0.05:
        lines[0] += f"   {hours:.1f} GPU-hours over all lives"
    for tier in tiers_of(results, None):
        if (held := LaunchFolder.of(results, tier).held()) is not None:
            lines += wrapped(
                f"{len(held['runs'])} runs died of the same error ({held['message']}). "
                f"Held the other {held['count']}; fix it first"
            )
    for tier in sorted({row.tier for row in rows if row.state == "waiting"}) if rows else TIERS:
        if (known := stored(results, tier, lines)) and not rows:
            lines.append(f"{len(known)} of tier {tier} in runs.parquet: see lsa status STUDY")
    here = options_of(results, *{row.tier for row in rows})
    if counts["stopped early"]:
        lines.append(f"what was stopped early, to its end: lsa retry --cause stopped-early{here}")
    if causes := {row.cause for row in rows if row.state in ("failed", "lost") and row.cause}:
        lines.append(f"again: lsa retry --cause {','.join(sorted(causes))}{here}")
    return Group(table, *map(Text, lines))


def watch(look: Callable[[], Sequence[RunStatus]], results: Path, console: Console) -> None:
    """Show the page anew every few seconds, until an interrupt or until nothing is under way."""
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            rows = look()
            live.update(page(rows, results, width_of(console)), refresh=True)
            if not any(row.state in ("running", "queued") for row in rows):
                break
            time.sleep(5.0)
    console.print(page(rows, results, width_of(console)), soft_wrap=True)


def _cells(row: RunStatus, *, named: bool) -> tuple[str, ...]:
    score = "-"
    if row.score is not None and row.metric is not None:
        score = f"{METRICS[row.metric].short} {row.score:.2f}" if named else f"{row.score:.2f}"
    notes = [row.cause if row.state in ("failed", "stopped") else None, row.note]
    if row.state in ("failed", "lost", *OUTCOMES[1:]) and row.message not in row.note:
        last = row.message.strip().splitlines() or [""]
        notes.append(last[-1][:100])
    return (
        row.name,
        row.state,
        f"{row.epoch}/{row.epochs}" if row.epochs else "-",
        score,
        "-" if row.eta_seconds is None else str(timedelta(seconds=round(row.eta_seconds))),
        row.job or "-",
        ": ".join(filter(None, notes)),
    )


# -- what a run printed --------------------------------------------------------------------------


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
        if not of_jobs and rank == 0:  # what is no job is one process
            chosen = [p for p in found.folder.attempts() if attempt in (None, int(p.name))]
            files = [folder / "log.txt" for folder in chosen]
        content = b""
        for path in files:
            with contextlib.suppress(OSError):
                content += read_whole(path) or b""
        text = content.decode("utf-8", "replace")
        if attempt is None or not of_jobs:
            return text
        # A life begins with its mark; what SLURM prints before the first belongs to the first.
        lives = re.split(f"^(?={re.escape(LIFE_MARK)})", text, flags=re.MULTILINE)
        return "".join(life for life in lives if life.startswith(f"{LIFE_MARK}{attempt}:"))

    if not (text := printed()) and (not follow or attempt is not None):
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
