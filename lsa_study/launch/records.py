"""What launching leaves on disk under ``results/<tier>/launch/``: arrays, lives, failures.

``<key>/array.json``        one submission: its runs by array index, its job; written before it is
                            submitted, so that a launcher that dies in between loses nothing
``<key>/``                  beside it submitit's files and the output of the jobs
``lives/<identity>.jsonl``  how often a run was started, where, and why each life ended
``failures/<identity>.json``  the error a run died with, so that equal errors can be counted
``cancelled/<identity>``    the user does not want this run any more, whatever its job does
``held.json``               why the rest of the queue was stopped

The folder is private: submitit's pickles run as code for whoever can write them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lsa_study.config.study import Resources
from lsa_study.errors import EnvironmentLacks
from lsa_study.files import write_json


def identity_of(name: str) -> str:
    """The identity at the end of a run folder's name."""
    return name.rsplit("-", 1)[-1]


@dataclass(frozen=True)
class Array:
    """One submission of runs with equal resources: a job array, or a job if it holds one run."""

    key: str
    """Its folder's name; the job carries it as ``COMMENT_PREFIX + key``."""
    runs: tuple[str, ...]
    """Names of the run folders; the position is the array index."""
    study: str
    resources: Resources
    gpus: int
    """GPUs that one run holds."""
    user: str
    created: float
    job: str | None = None
    """None until SLURM has taken it."""

    def job_of(self, index: int) -> str | None:
        """The job id of a run."""
        if self.job is None:
            return None
        return f"{self.job}_{index}" if len(self.runs) > 1 else self.job


COMMENT_PREFIX = "lsa-study:"

LIFE_MARK = "=== life "
"""Begins the first line that each process of a life prints; the life's number follows."""


@dataclass
class Life:
    """One start of a run by the scheduler."""

    job: str
    restart: int
    """How often SLURM had restarted the job before."""
    start: float
    host: str
    gpus: int
    begun_at: list[int]
    """Epochs done at the start, and steps done of the next."""
    end: float | None = None
    why: str | None = None
    """How it ended: an outcome, preempted, timeout, cancelled, node, lost, or a failure's cause."""
    ended_at: list[int] | None = None

    @property
    def gained(self) -> bool:
        """Whether it moved the run on, as far as is known."""
        return self.ended_at is None or self.ended_at > self.begun_at


@dataclass(frozen=True)
class Failure:
    """The error that a run died with."""

    run: str
    signature: str
    """Equal for runs that died of the same error."""
    words: str


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
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            raise EnvironmentLacks(
                f"{self.root}: cannot be written ({error.strerror}); choose another --results"
            ) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # -- arrays -------------------------------------------------------------------------------

    def folder_of(self, array: Array) -> Path:
        """Where an array's files lie."""
        return self.root / array.key

    def write(self, array: Array) -> None:
        """Record an array."""
        folder = self.folder_of(array)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(
            folder / "array.json", asdict(array) | {"resources": array.resources.model_dump()}
        )

    def arrays(self) -> list[Array]:
        """All submissions, oldest first; damaged records are left out."""
        found = []
        for path in self.root.glob("*/array.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                facts = json.loads(path.read_text("utf-8"))
                facts["runs"] = tuple(facts["runs"])
                facts["resources"] = Resources.model_validate(facts["resources"])
                found.append(Array(**facts))
        return sorted(found, key=lambda array: (array.created, array.key))

    def adopt(self, comments: Mapping[str, str]) -> None:
        """Find the jobs of arrays whose launcher died before it noted them.

        Args:
            comments: comment of every job in the queue -> its array's job id.
        """
        for array in self.arrays():
            job = comments.get(COMMENT_PREFIX + array.key)
            if array.job is None and job is not None:
                self.write(replace(array, job=job))

    # -- lives --------------------------------------------------------------------------------

    def lives(self, identity: str) -> list[Life]:
        """All starts of a run, oldest first."""
        try:
            lines = (self.root / "lives" / f"{identity}.jsonl").read_text("utf-8").splitlines()
        except OSError:
            return []
        lives: dict[tuple[str, int], Life] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                facts = json.loads(line)
                key = facts["job"], facts["restart"]
                lives[key] = replace(lives[key], **facts) if key in lives else Life(**facts)
        return list(lives.values())

    def known_lives(self) -> set[str]:
        """Identities of the runs that were ever started by the scheduler."""
        return {path.name.removesuffix(".jsonl") for path in (self.root / "lives").glob("*.jsonl")}

    def note_life(self, identity: str, facts: Mapping[str, Any]) -> None:
        """Append to a run's lives; ``job`` and ``restart`` say which one is meant."""
        folder = self.root / "lives"
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / f"{identity}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
            file.flush()
            os.fsync(file.fileno())

    # -- failures -----------------------------------------------------------------------------

    def failures(self) -> list[Failure]:
        """The errors that runs died with and that nobody has looked after yet."""
        found = []
        for path in sorted((self.root / "failures").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Failure(**json.loads(path.read_text("utf-8"))))
        return found

    def note_failure(self, failure: Failure) -> None:
        """Record a run's error."""
        folder = self.root / "failures"
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / f"{identity_of(failure.run)}.json", asdict(failure))

    def forget(self, identities: Sequence[str]) -> None:
        """Drop the errors of runs that are queued again, and that they were cancelled."""
        for identity in identities:
            (self.root / "failures" / f"{identity}.json").unlink(missing_ok=True)
            (self.root / "cancelled" / identity).unlink(missing_ok=True)

    # -- cancelling ---------------------------------------------------------------------------

    def cancelled(self, identity: str) -> bool:
        """Whether the user cancelled the run since it was last queued."""
        return (self.root / "cancelled" / identity).exists()

    def note_cancelled(self, identities: Sequence[str]) -> None:
        """Record that runs are not wanted any more."""
        folder = self.root / "cancelled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for identity in identities:
            (folder / identity).touch()

    # -- holding ------------------------------------------------------------------------------

    def held(self) -> dict[str, Any] | None:
        """Why the queue was stopped, if it was: ``words``, ``count`` and ``arrays``."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.root / "held.json").read_text("utf-8"))
            return found if isinstance(found, dict) else None
        return None

    def note_held(self, facts: Mapping[str, Any] | None) -> None:
        """Record that the queue was stopped, or, with None, that it goes on."""
        if facts is None:
            (self.root / "held.json").unlink(missing_ok=True)
        else:
            write_json(self.root / "held.json", facts)


def new_key() -> str:
    """A name for a submission that no other has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
