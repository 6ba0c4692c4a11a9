"""Where every run stands, from what is on disk and what SLURM says.

The run folder is the truth: a result ends all doubt, and a fresh heartbeat means that a run is
alive, whatever the scheduler says. Where a heartbeat is missing, evidence is asked for in this
order: the queue, the controller's memory of ended jobs, accounting if it answers. What none of them
knows is lost. Nothing here imports torch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsa_study.errors import ConfigError
from lsa_study.launch import scheduler, select
from lsa_study.launch.causes import judge
from lsa_study.launch.logs import last_lines, output_name
from lsa_study.launch.records import Array, LaunchFolder, Life, identity_of
from lsa_study.launch.scheduler import Ended, Queued
from lsa_study.launch.select import Found
from lsa_study.record import Result, Status
from lsa_study.rundir import RunDir

SILENT_SECONDS = 90.0
"""A heartbeat older than this is no longer believed by itself."""

STATES = (
    "done", "diverged", "oom", "running", "queued", "waiting", "stopped", "failed", "lost",
)  # fmt: skip


@dataclass
class RunStatus:
    """One run, as ``lsa status`` shows it."""

    name: str
    identity: str
    variant: str
    seed: int
    tier: str
    state: str = "waiting"
    """One of ``STATES``; done, diverged and oom are results."""
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
    """The last words of the run or of its job."""
    gpu_hours: float = 0.0
    """Over all lives."""
    lost_on: str | None = None
    """The nodes its last job ended on, where SLURM still knows."""
    folder: RunDir | None = None
    """None: nothing on disk yet."""


@dataclass(frozen=True)
class _Evidence:
    """What is known about the jobs of a tier beside the run folders."""

    records: LaunchFolder
    queue: dict[str, Queued] | None
    """None: there is no SLURM here, or it does not answer."""
    jobs: dict[str, tuple[str | None, Array]] = field(default_factory=dict)
    """Identity -> its latest job and the array that it was part of."""

    @classmethod
    def gather(cls, results: Path, tier: str) -> _Evidence:
        records = LaunchFolder.of(results, tier)
        arrays = records.arrays()
        queue = _queue(arrays)
        if queue is not None and any(array.job is None for array in arrays):
            by_comment = {job.comment: scheduler.array_of(job.job) for job in queue.values()}
            records.adopt(by_comment)
            arrays = records.arrays()
        jobs = {
            identity_of(name): (array.job_of(index), array)
            for array in arrays
            for index, name in enumerate(array.runs)
        }
        return cls(records, queue, jobs)


def _queue(arrays: Sequence[Array]) -> dict[str, Queued] | None:
    if not arrays:
        return {}
    if not scheduler.here():
        return None
    try:
        return scheduler.queue({array.user for array in arrays})
    except scheduler.Rejected:
        return None


def status(results: Path, names: Sequence[str] = (), *, tier: str | None = None) -> list[RunStatus]:
    """Tell where runs stand.

    Args:
        results: the results folder.
        names: studies or beginnings of run names; empty: all runs that are there. Rows of a study
            that have no folder yet are listed as waiting.
        tier: toy, proxy or paper; None: those that have runs.

    Returns:
        One entry per run, by tier, seed and variant.

    Raises:
        ConfigError: a name means nothing.
    """
    found = select.chosen(results, names, tier)
    rows: list[RunStatus] = []
    for one in select.tiers_of(results, tier):
        rows += _judge_all([run for run in found if run.tier == one], results, one)
    return rows + _not_begun(rows, results, names, tier)


def as_json(rows: Iterable[RunStatus]) -> dict[str, Any]:
    """The answer of ``lsa status --json``."""
    keys = (
        "name", "identity", "variant", "seed", "tier", "state", "cause", "epoch", "epochs",
        "attempts", "acc1", "eta_seconds", "job", "message", "gpu_hours",
    )  # fmt: skip
    return {"runs": [{key: getattr(row, key) for key in keys} for row in rows]}


def _not_begun(
    rows: Sequence[RunStatus], results: Path, names: Sequence[str], tier: str | None
) -> list[RunStatus]:
    """The runs that studies were asked for and that nothing on disk stands for."""
    there = {row.identity for row in rows}
    return [
        RunStatus(
            run.name, run.identity, run.variant, run.seed, run.settings.tier,
            epochs=run.settings.train.epochs,
        )
        for run in select.asked_runs(results, names, tier)
        if run.identity not in there
    ]  # fmt: skip


# -- judging ------------------------------------------------------------------------------------


def _judge_all(found: Sequence[Found], results: Path, tier: str) -> list[RunStatus]:
    evidence = _Evidence.gather(results, tier)
    started = evidence.records.known_lives()
    rows = []
    for run in found:
        row = RunStatus(
            run.name, run.identity, run.variant, run.seed, tier,
            job=evidence.jobs.get(run.identity, (None,))[0], folder=run.folder,
        )  # fmt: skip
        _judge(row, run.folder, evidence)
        if run.identity in started:
            _tell_lives(row, evidence.records.lives(run.identity))
        rows.append(row)
    _look_after_gone(rows, evidence)
    return rows


GONE = "gone"
"""Not a state that is shown: the run has no result, nobody writes, and no job is in the queue."""


def _judge(row: RunStatus, folder: RunDir, evidence: _Evidence) -> None:
    """Fill in the state from the run folder and the queue."""
    try:
        result = folder.result()
    except ConfigError as error:
        row.state, row.cause, row.message = "failed", "disk", str(error)
        return
    if result is not None:
        row.state, row.attempts = result.outcome, result.attempts or 0
        row.epoch, row.epochs = result.epoch or 0, result.epochs
        row.acc1, row.message = result.acc1, result.reason or ""
        row.gpu_hours = _alone(result)
        return
    facts = folder.status()
    row.attempts = facts.attempt or len(folder.attempts())
    row.epoch, row.epochs = facts.epoch, facts.epochs
    row.acc1, row.cause, row.message = facts.acc1, facts.cause, facts.message or ""
    row.state = _state(row, facts, folder, evidence)
    if row.state == "running":
        row.eta_seconds = facts.eta_seconds
    if row.state in ("running", "queued"):
        row.cause = None


def _alone(result: Result) -> float:
    """GPU-hours of a run that no scheduler started: one GPU, if it had one."""
    return (result.seconds or 0.0) / 3600 if result.device_kind == "cuda" else 0.0


def _state(row: RunStatus, facts: Status, folder: RunDir, evidence: _Evidence) -> str:
    age = time.time() - (facts.heartbeat or 0.0)
    writer = folder.writer() if facts.state != "failed" else None
    if writer is not None and age < SILENT_SECONDS:
        return "running"
    if row.job is not None and evidence.queue is not None:
        return _by_queue(row, facts, evidence.queue.get(row.job), age)
    if writer is not None:
        row.note = _silent(age)
        return "running"
    if row.job is not None and facts.state in ("running", "waiting"):
        row.note = "SLURM does not answer here"
        return "queued" if facts.state == "waiting" else "running"
    return GONE if facts.state == "running" else facts.state


def _by_queue(row: RunStatus, facts: Status, job: Queued | None, age: float) -> str:
    state = facts.state
    if job is None:
        never = state == "waiting" and row.job is not None
        return GONE if state == "running" or never else state
    if job.pending:
        row.note = "held" if job.held else job.reason.lower()
        return "queued"
    if state == "failed":
        return state
    row.note = _silent(age) if state == "running" else "starting"
    return "running"


def _silent(age: float) -> str:
    return f"no heartbeat {age / 60:.0f} min" if age >= SILENT_SECONDS else ""


def _look_after_gone(rows: Sequence[RunStatus], evidence: _Evidence) -> None:
    """Say of runs that are simply gone what SLURM still knows about their jobs."""
    gone = [row for row in rows if row.state == GONE or _left_by_order(row, evidence)]
    known: dict[str, Ended] = {}
    if evidence.queue is not None and gone:
        known = scheduler.ended(row.job for row in gone if row.job is not None)
    for row in gone:
        end = known.get(row.job or "")
        if row.state == GONE and evidence.records.cancelled(row.identity):
            row.state, row.cause = "stopped", "cancelled"
        elif row.state == GONE:
            _pronounce(row, end, evidence)
        elif end is not None and end.state == "CANCELLED":
            row.cause = "cancelled"


def _left_by_order(row: RunStatus, evidence: _Evidence) -> bool:
    # A preemption and a plain scancel send the same signal: only SLURM knows which it was.
    queue = evidence.queue or {}
    return row.state == "stopped" and row.cause == "preempted" and row.job not in queue


def _pronounce(row: RunStatus, end: Ended | None, evidence: _Evidence) -> None:
    assert row.folder is not None
    last: list[str] = []
    if row.job is not None:
        array = evidence.jobs[row.identity][1]
        last = last_lines(evidence.records.folder_of(array) / output_name(row.job, rank=0))
    verdict = judge(end, last, had_job=row.job is not None)
    row.state, row.cause = verdict.state, verdict.cause
    row.message = verdict.message or row.message
    beat = row.folder.status().heartbeat
    silence = "" if beat is None else _silent(time.time() - beat)
    row.note = "; ".join(words for words in (silence, verdict.words) if words)
    if end is not None and end.nodes:
        row.lost_on = end.nodes


def _tell_lives(row: RunStatus, lives: Sequence[Life]) -> None:
    """Add what the lives of a run say: GPU-hours, nodes, and how often it had to go."""
    now = time.time()
    hours = [
        ((life.end or (now if row.state == "running" else life.start)) - life.start) * life.gpus
        for life in lives
    ]
    row.gpu_hours = sum(hours) / 3600
    if len(lives) < 2:
        return
    words = {"preempted": "preemption", "timeout": "time limit", "node": "lost node"}
    counts = Counter(words[life.why] for life in lives if life.why in words)
    told = ", ".join(f"{number} {word}{'s' * (number > 1)}" for word, number in counts.items())
    life_words = f"life {len(lives)}" + (f" ({told})" if told else "")
    row.note = "; ".join(words for words in (life_words, row.note) if words)
