"""What is on disk of runs: their folders, found by name, and what launching left beside them.

Under ``results/<tier>/launch/`` lie arrays and lives:

``<key>/array.json``        one submission: its runs by array index, its job; written before it is
                            submitted, so that a launcher that dies in between loses nothing
``<key>/``                  beside it submitit's files and the output of the jobs
``lives/<identity>.jsonl``  how often a run was started, where, and why each life ended
``cancelled/<identity>``    the user does not want this run any more, whatever its job does
``held.json``               why the rest of the queue was stopped

The folder is private: submitit's pickles run as code for whoever can write them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from lsa_study import rundir
from lsa_study.config import study, yaml
from lsa_study.config.experiment import Resources
from lsa_study.config.find import home_of, side_tiers
from lsa_study.config.names import nearest, short
from lsa_study.config.settings import Tier
from lsa_study.config.study import TIERS, Study
from lsa_study.errors import ConfigError, Refused
from lsa_study.files import locked, read_json, read_whole, writable, write_json
from lsa_study.launch import scheduler
from lsa_study.launch.scheduler import SlurmJob
from lsa_study.rundir import RunDir, identity_of

INTERRUPTED = "interrupted"
"""Cause of a run that the user stopped together with its queue."""

AUTOMATIC = ("node", "lost", "preempted", "timeout", INTERRUPTED)
"""Causes that say nothing against the run: it is tried again without being asked for."""

OWN_FAULTS = ("config", "data", "import", "bug", "disk", "oom-host")
"""Causes that the next run will most likely share."""

EQUAL_FAILURES = 3
"""So many runs that died of the same error hold the rest of the queue."""

IDLE_LIVES = 3
"""So many lives in a row that gained nothing end the automatic retries."""

# -- run folders --------------------------------------------------------------------------------

NAME = re.compile(r"(?P<variant>.+)-s(?P<seed>\d+)-(?P<identity>[0-9a-f]{10})")


@dataclass(frozen=True)
class RunRef:
    """A run folder and what its name says."""

    tier: Tier
    variant: str
    seed: int
    identity: str
    folder: RunDir

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.root.name


def tiers_of(results: Path, tier: str | None) -> list[Tier]:
    """The tier asked for, else those that have runs."""
    if tier is not None:
        return [name for name in TIERS if name == tier]
    return [name for name in TIERS if rundir.runs_folder(results, name).is_dir()]


def one_run(results: Path, text: str, tier: str | None = None) -> RunRef:
    """The run whose name or identity begins with ``text``; that of a side study of one run.

    Raises:
        ConfigError: none does, or several do; they are named.
    """
    runs = chosen_runs(results, (), tier)
    begin = [run for run in runs if run.name.startswith(text) or run.identity.startswith(text)]
    if not begin and side_tiers(results, text):
        begin = chosen_runs(results, [text], tier)
    alike = [run for run in begin if text in (run.name, run.identity)] or begin
    if len(alike) == 1:
        return alike[0]
    if not alike:
        raise ConfigError(f"{text}: no run under {results} begins so; {_alike(text, runs)}")
    names = ", ".join(run.name for run in alike[:5])
    raise ConfigError(f"{text}: {len(alike)} runs begin so; write more: {names}")


def _alike(text: str, runs: Sequence[RunRef]) -> str:
    """The run or study that a text may have meant, else the first runs."""
    stems = {"-".join(run.name.split("-")[: text.count("-") + 1]) for run in runs}
    close = nearest(text, [*stems, *study.ARTICLE])
    return close if close.startswith("did") else nearest("", [run.name for run in runs[:5]])


def chosen_runs(results: Path, names: Sequence[str], tier: str | None = None) -> list[RunRef]:
    """The run folders of studies and runs by tier, seed and variant; without a name all of them.

    A study means the runs it was asked for with, whichever study made their folders, and all
    others of its variants; a side study means its own runs alone.

    Raises:
        ConfigError: a name is neither a study nor the beginning of a run's name.
    """
    runs = [
        RunRef(one, match["variant"], int(match["seed"]), match["identity"], folder)
        for one in tiers_of(results, tier)
        for folder in rundir.run_folders(results, one)
        if (match := NAME.fullmatch(folder.root.name))
    ]
    place = [*TIERS].index
    runs.sort(key=lambda run: (place(run.tier), run.seed, run.variant, run.identity))
    if not names:
        return runs
    wanted: set[str] = set()
    for name in study.expand_names(names):
        try:
            path = study.find_study(name, results)
        except ConfigError:  # no experiment file: a side study, or a run
            if home_of(results, name) is not None:
                raise
            if not side_tiers(results, name, [tier] if tier else TIERS):
                wanted.add(one_run(results, name, tier).identity)
                continue
        else:
            rows = yaml.read(path).data.get("variants")
            variants = {short(row) for row in rows} if isinstance(rows, dict) else ()
            wanted |= {run.identity for run in runs if run.variant in variants}
        wanted |= {run.identity for run in study.distinct(asked_studies(results, [name], tier))}
    return [run for run in runs if run.identity in wanted]


def asked_studies(results: Path, names: Sequence[str], tier: str | None = None) -> list[Study]:
    """Studies as they were asked for at the tiers that have runs; side studies at their own.

    Raises:
        ConfigError: what is remembered of a side study is damaged, or its study is gone.
    """
    loaded = []
    for name in study.expand_names(names):
        sides = side_tiers(results, name, [tier] if tier else TIERS)
        for place in sides or tiers_of(results, tier) or ["toy"]:
            # Else it may be no study, or none of this tier.
            with contextlib.nullcontext() if sides else contextlib.suppress(ConfigError):
                loaded.append(study.load_study(name, tier=place, recall=results))
    return loaded


@dataclass(frozen=True)
class Array:
    """One submission of runs with equal resources: a job array, or a job if it holds one run."""

    key: str
    """Its folder's name."""
    runs: tuple[str, ...]
    """Names of the run folders; the position is the array index."""
    study: str
    resources: Resources
    user: str
    created: float
    job: str | None = None
    """None until SLURM has taken it."""
    cluster: str = ""
    """SLURM's name of its cluster; empty: not known."""

    @property
    def comment(self) -> str:
        """What its job carries."""
        return f"lsa-study:{self.key}"

    def jobs(self) -> dict[str, str]:
        """The job id of every run by its identity; none until SLURM has taken it."""
        if self.job is None:
            return {}
        if len(self.runs) == 1:
            return {identity_of(self.runs[0]): self.job}
        return {identity_of(name): f"{self.job}_{index}" for index, name in enumerate(self.runs)}


LIFE_MARK = "=== life "
"""Begins the first line that each process of a life prints; the life's number follows."""


@dataclass
class Life:
    """One start of a run by the scheduler."""

    job: str
    restart: int
    """How often SLURM had restarted the job before."""
    start: FiniteFloat
    host: str
    gpus: int
    begun_at: list[int]
    """Epochs done at the start, and steps done of the next, as the last checkpoint has them."""
    end: FiniteFloat | None = None
    why: str | None = None
    """How it ended: an outcome, preempted, timeout, cancelled, node, lost, or a failure's cause."""
    ended_at: list[int] | None = None


class Held(TypedDict):
    """``held.json``: why the queue was stopped."""

    message: str
    """The error that several runs died of."""
    runs: list[str]
    count: int
    """Jobs that wait."""
    arrays: list[str]


def error_of(run: RunDir, since: float = 0.0) -> str | None:
    """The error that ended a run, if the next run may well die of it too; equal for equal errors.

    Errors are the same if their lines of code are, and their messages but for the run's name and
    numbers, such as of processes and bytes.

    Args:
        since: what is older does not count, in seconds since 1970.
    """
    status = run.status()
    late = (status.heartbeat or 0.0) >= since
    if status.state != "failed" or status.cause not in OWN_FAULTS or not late:
        return None
    trace: list[str] = []
    for attempt in run.attempts()[-1:]:
        with contextlib.suppress(OSError):
            log = (read_whole(attempt / "log.txt") or b"").decode("utf-8", "replace")
            _, begun, tail = log.rpartition("Traceback ")
            trace = re.findall(r'File "(.+?)", line (\d+)', tail) if begun else []
    plain = (status.message or "").replace(str(run.root), "").replace(run.root.name, "")
    return repr((re.sub(r"\d+", "0", plain), trace))


@dataclass(frozen=True)
class LaunchFolder:
    """The launch records of one tier."""

    root: Path

    @classmethod
    def of(cls, results: Path, tier: str) -> LaunchFolder:
        """The folder of a tier; it may not exist yet."""
        return cls(results / tier / "launch")

    @classmethod
    def of_run(cls, run_folder: Path) -> LaunchFolder:
        """The folder that belongs to ``results/<tier>/runs/<name>``."""
        return cls(run_folder.parent.parent / "launch")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only launcher of this tier while the block runs; waits for another."""
        with writable(self.root):
            self.folder("")
        with locked(self.root / ".lock"):
            yield

    def own(self) -> bool:
        """Whether this user has records here; those of others are left alone.

        Raises:
            Refused: others can write here, and what they write would run as this user's code.
        """
        try:
            found = self.root.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if found.st_uid == os.geteuid() and (not S_ISDIR(found.st_mode) or found.st_mode & 0o022):
            raise Refused(
                f"{self.root}: others can write here, or it is a link; look at what lies in it, "
                f"then: chmod go-w {self.root}"
            )
        return found.st_uid == os.geteuid()

    def folder(self, name: str) -> Path:
        """A folder for records of one kind, made if need be; nobody else can look into it."""
        with contextlib.suppress(FileExistsError):
            self.root.mkdir(mode=0o700, parents=True)
        if not self.own():
            raise Refused(
                f"{self.root}: was made by another user, who alone can launch there; "
                "choose another --results folder"
            )
        folder = self.root / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def write(self, array: Array) -> None:
        """Record an array."""
        folder = self.folder(array.key)
        write_json(folder / "array.json", TypeAdapter(Array).dump_python(array, mode="json"))

    def arrays(self) -> list[Array]:
        """All submissions, oldest first; damaged records are left out."""
        found: list[Array] = []
        for path in sorted(self.root.glob("*/array.json")) if self.own() else ():
            with contextlib.suppress(OSError, ValueError):
                found.append(TypeAdapter(Array).validate_json(read_whole(path) or b""))
        return sorted(found, key=lambda array: (array.created, array.key))

    def in_hand(self) -> tuple[list[Array], dict[str, SlurmJob]]:
        """All submissions, and those of their jobs that have not ended, by job id.

        A job is ours by the key in its comment: its number may be used again. Notes the jobs of
        submissions whose launcher died before it could.

        Raises:
            Rejected: SLURM does not answer.
        """
        arrays, cluster = self.arrays(), scheduler.setting("ClusterName", "")
        keys = {array.comment for array in arrays}
        listed = scheduler.queue({array.user for array in arrays})
        queue = {job: one for job, one in listed.items() if one.comment in keys}
        jobs = {job.comment: scheduler.array_of(job.job) for job in queue.values()}
        for place, array in enumerate(arrays):
            if array.job is None and (job := jobs.get(array.comment)) is not None:
                arrays[place] = replace(array, job=job, cluster=cluster)
                self.write(arrays[place])
            elif array.cluster not in ("", cluster):
                queue |= {  # those cancelled leave as soon as they start, there too
                    job: SlurmJob(job, scheduler.UNKNOWN, array.cluster)
                    for identity, job in array.jobs().items()
                    if not self.is_cancelled(identity)
                }
        return arrays, queue

    def output_of(self, array: Array, job: str, rank: int = 0) -> Path:
        """The file that one process of a job prints into."""
        return self.root / array.key / f"{job}_{rank}_log.out"

    def lives(self, identity: str) -> list[Life]:
        """All starts of a run, oldest first."""
        lines: list[bytes] = []
        with contextlib.suppress(OSError):
            lines = (read_whole(self.root / "lives" / f"{identity}.jsonl") or b"").splitlines()
        lives: dict[tuple[str, int], dict[str, Any]] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                facts = json.loads(line)
                lives.setdefault((facts["job"], facts["restart"]), {}).update(facts)
        found: list[Life] = []
        for facts in lives.values():
            with contextlib.suppress(ValueError):
                found.append(TypeAdapter(Life).validate_python(facts))
        return found

    def idle(self, identity: str, job: str | None = None) -> bool:
        """Whether the last ``IDLE_LIVES`` of a run, or of one job of it, gained nothing."""
        lives = [life for life in self.lives(identity) if job in (None, life.job)]
        last = [life for life in lives if life.end is not None][-IDLE_LIVES:]
        still = [life.ended_at is not None and life.ended_at <= life.begun_at for life in last]
        return len(last) == IDLE_LIVES and all(still)

    def note_life(self, identity: str, facts: Mapping[str, Any]) -> None:
        """Append to a run's lives; ``job`` and ``restart`` say which one is meant."""
        with (self.folder("lives") / f"{identity}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cancelled(self, identity: str) -> Path:
        """The file that is there from when the user cancels a run until it is queued again."""
        return self.root / "cancelled" / identity

    def is_cancelled(self, identity: str) -> bool:
        """Whether it is there; another user, who cannot look, takes it for not."""
        with contextlib.suppress(OSError):
            return self.cancelled(identity).exists()
        return False

    def held(self) -> Held | None:
        """Why the queue was stopped, if it was."""
        with contextlib.suppress(ValueError):
            return TypeAdapter(Held).validate_python(read_json(self.root / "held.json"))
        return None

    def note_held(self, facts: Held | None) -> None:
        """Record that the queue was stopped, or, with None, that it goes on."""
        if facts is None:
            (self.root / "held.json").unlink(missing_ok=True)
        else:
            write_json(self.root / "held.json", facts)
