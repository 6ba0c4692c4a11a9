"""Inside a SLURM job: train one run folder, leave well, come back.

The payload is a path and nothing else. All that a later life needs is in the run folder, so a job
that SLURM starts again by itself (after a preemption or the loss of a node) goes on as well as one
that put itself back into the queue.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from submitit.helpers import DelayedSubmission

from lsa_study.errors import LsaError, Refused, cause_of
from lsa_study.launch import scheduler
from lsa_study.launch.causes import DISK_EXIT_CODE
from lsa_study.launch.records import LIFE_MARK, Failure, LaunchFolder, identity_of
from lsa_study.launch.track import beside
from lsa_study.record import OUTCOMES, State
from lsa_study.rundir import STALE_SECONDS, RunDir

EQUAL_FAILURES = 3
"""So many runs that died of the same error stop the rest of the queue."""

IDLE_LIVES = 3
"""So many lives in a row without a step end the requeueing: the time limit is too short."""

OWN_FAULTS = ("config", "data", "import", "bug")
"""Causes that the next run of the same array will most likely share."""

OF_LEAVING = ("bug", "node")
"""Causes that a signal to leave can have: it reaches loading processes and other ranks too."""

SIGNAL_EARLY_SECONDS = 90.0
"""SLURM may send the signal before the time limit a minute early."""

POLL_SECONDS = 5.0

RANK_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Which job this process belongs to, and which of its processes it is."""

    job: str
    restart: int
    rank: int
    count: int
    gpus: int

    @classmethod
    def here(cls) -> Place:
        """Read SLURM's variables."""
        env = os.environ
        array, index = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
        return cls(
            job=f"{array}_{index}" if array else env["SLURM_JOB_ID"],
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            rank=int(env.get("SLURM_PROCID", "0")),
            count=int(env.get("SLURM_NTASKS", "1")),
            gpus=int(env.get("LSA_GPUS", "0")),
        )


def rank_variables(env: Mapping[str, str]) -> dict[str, str]:
    """What torch's processes need to find each other, from SLURM's variables.

    The address is the one from which SLURM started the processes: that of the first node, where
    rank 0 is, and one that all nodes have just reached. The port moves with the job and with every
    restart, so that what is left of an earlier life cannot be met.
    """
    count = int(env.get("SLURM_NTASKS", "1"))
    if count == 1:
        return {}
    place = int(env["SLURM_JOB_ID"]) * 31 + int(env.get("SLURM_RESTART_COUNT", "0")) * 7
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(count // int(env.get("SLURM_JOB_NUM_NODES", "1"))),
        "MASTER_ADDR": env["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": str(20000 + place % 12000),
    }


class Leave:
    """Turns true when the run has to go, and remembers which signal said so first.

    SIGUSR2: the time limit is near, or SLURM announces a preemption: save, requeue.
    SIGTERM: SLURM takes the node away and requeues by itself where it means to, or ``lsa cancel``:
    save only.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)

    def __call__(self) -> bool:
        """Whether to go."""
        return self.signal is not None


@dataclass(frozen=True)
class RunTask:
    """Train the run in ``folder``; what submitit carries to the job."""

    folder: str

    def __call__(self) -> str:
        """Train or resume; returns the state the run was left in."""
        leave = Leave()
        place = Place.here()
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(rank_variables(os.environ))
        os.environ["LSA_JOB"] = place.job
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        run = RunDir(Path(self.folder))
        _mark(run, place)
        if LaunchFolder.of_run(run.root).cancelled(identity_of(run.root.name)):
            return "stopped"
        if place.rank > 0:
            return _train(run, leave)
        return _FirstRank(run, place, leave).live()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again if it is told to leave before ``__call__`` has begun."""
        return DelayedSubmission(self)


def _mark(run: RunDir, place: Place) -> None:
    lives = LaunchFolder.of_run(run.root).lives(identity_of(run.root.name))
    earlier = [life for life in lives if (life.job, life.restart) != (place.job, place.restart)]
    _say(f"{LIFE_MARK}{len(earlier) + 1}: job {place.job} on {_node()}, process {place.rank}")


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def _train(run: RunDir, leave: Leave) -> str:
    from lsa_study.training import train

    return train(run, stop=leave, console=Console(soft_wrap=True))


class _FirstRank:
    """The process that speaks for the run."""

    def __init__(self, run: RunDir, place: Place, leave: Leave) -> None:
        self.run, self.place, self.leave = run, place, leave
        self.identity = identity_of(run.root.name)
        self.records = LaunchFolder.of_run(run.root)

    def live(self) -> str:
        self._begin()
        try:
            self._wait_for_writer()
            with beside(self.run, _say):
                state = _train(self.run, self.leave)
        except Refused as error:
            _say(str(error))
            self._end("refused")
            sys.exit(error.exit_code)
        except Exception as error:
            state = self._failed_outside(error)
        if state == "failed" and self.leave() and self.run.status().cause in OF_LEAVING:
            state = "stopped"
        if state == "stopped":
            return self._stopped()
        if state not in OUTCOMES:
            self._failed()
        self._end(state)
        return state

    # -- the life -----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._close_earlier()
        self._note(start=time.time(), host=_node(), gpus=self.place.gpus, begun_at=self._at())

    def _close_earlier(self) -> None:
        """End the lives that could not tell their end themselves."""
        beat = self.run.status().heartbeat or 0.0
        for life in self.records.lives(self.identity):
            if life.end is None:
                # SLURM restarts a job that did not leave by itself when its node is lost.
                why = "node" if life.job == self.place.job else "lost"
                end = {"end": max(life.start, beat), "why": why, "ended_at": self._at()}
                with contextlib.suppress(OSError):
                    self.records.note_life(
                        self.identity, {"job": life.job, "restart": life.restart, **end}
                    )

    def _end(self, why: str) -> None:
        self._note(end=time.time(), why=why, ended_at=self._at())

    def _note(self, **facts: Any) -> None:
        # A full disk must not keep a run from being trained, nor hide why it ended.
        with contextlib.suppress(OSError):
            self.records.note_life(
                self.identity, {"job": self.place.job, "restart": self.place.restart, **facts}
            )

    def _at(self) -> list[int]:
        status = self.run.status()
        return [status.epoch, status.step]

    def _wait_for_writer(self) -> None:
        """Let an earlier life of this job end that still runs on a node SLURM has given up."""
        end, told = time.monotonic() + STALE_SECONDS + 60.0, False
        while (writer := self.run.writer()) is not None and writer.get("job") == self.place.job:
            if not told:
                who = f"process {writer['pid']} on {writer['host']}"
                _say(f"waiting for {who}: an earlier life of this job that still writes here")
                told = True
            if self.leave() or time.monotonic() > end:
                return
            time.sleep(POLL_SECONDS)

    # -- its end ------------------------------------------------------------------------------

    def _rewrite(self, state: State, cause: str, message: str | None = None) -> None:
        with contextlib.suppress(LsaError):
            self.run.change_state(state, cause=cause, message=message)

    def _stopped(self) -> str:
        cause = self._why_leave()
        self._end(cause)
        self._rewrite("stopped", cause=cause)
        if cause == "cancelled" or self.leave.signal is not signal.SIGUSR2:
            return "stopped"
        if self._idle():
            words = (
                f"{IDLE_LIVES} lives in a row ended at the time limit without a step done; "
                "give it more hours"
            )
            self._rewrite("failed", cause="timeout", message=words)
            _say(words)
            sys.exit(1)
        try:
            scheduler.requeue(self.place.job)
            _say("put back into the queue")
        except scheduler.Rejected as error:
            _say(f"cannot go back into the queue ({error}); lsa retry will do it")
        return "stopped"

    def _why_leave(self) -> str:
        if self.records.cancelled(self.identity):
            return "cancelled"
        if self.leave.signal is not signal.SIGUSR2:
            return "preempted"
        left = scheduler.seconds_left(self.place.job)
        near = float(os.environ.get("LSA_LEAVE_SECONDS", "120")) + SIGNAL_EARLY_SECONDS
        return "timeout" if left is not None and left <= near else "preempted"

    def _idle(self) -> bool:
        lives = self.records.lives(self.identity)[-IDLE_LIVES:]
        return len(lives) == IDLE_LIVES and not any(life.gained for life in lives)

    def _failed_outside(self, error: Exception) -> str:
        """Record what failed before training could record it itself."""
        words = str(error) if isinstance(error, LsaError) else f"{type(error).__name__}: {error}"
        self._rewrite("failed", cause=cause_of(error), message=words)
        Console(soft_wrap=True).print_exception()
        return "failed"

    def _failed(self) -> NoReturn:
        """Count equal failures, and end the process so that SLURM sees one too."""
        status = self.run.status()
        cause, words = status.cause or "bug", status.message
        if status.state != "failed":
            # Training could not even write that it failed.
            cause, words = "disk", "the disk is full"
            self._rewrite("failed", cause, words)
        self._end(cause)
        if cause in OWN_FAULTS:
            words = words or cause
            failure = Failure(self.run.root.name, _signature(self.run, words), words)
            with contextlib.suppress(OSError, LsaError):
                self.records.note_failure(failure)
                hold_after(self.records, failure)
        sys.exit(DISK_EXIT_CODE if cause == "disk" else 1)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _signature(run: RunDir, words: str) -> str:
    """Equal for equal errors: the words and the lines of code, without what names the run."""
    log = run.attempts()[-1] / "log.txt" if run.attempts() else None
    trace: list[str] = []
    if log is not None and log.exists():
        tail = log.read_text("utf-8", "replace").rpartition("Traceback ")[2]
        trace = re.findall(r'File "(.+?)", line (\d+)', tail) if "File" in tail else []
    plain = words.replace(str(run.root), "").replace(run.root.name, "")
    return hashlib.sha256(repr((plain, trace)).encode()).hexdigest()[:16]


def hold_after(records: LaunchFolder, failure: Failure) -> None:
    """Stop the rest of the queue if so many runs died of this error that the next would too."""
    alike = [one.run for one in records.failures() if one.signature == failure.signature]
    if len(alike) < EQUAL_FAILURES or records.held() is not None:
        return
    waiting = [job for job in scheduler.queue().values() if job.pending]
    mine = {array.job for array in records.arrays()}
    held = [job for job in waiting if scheduler.array_of(job.job) in mine]
    if not held:
        return
    arrays = sorted({scheduler.array_of(job.job) for job in held})
    records.note_held({"words": failure.words, "runs": alike, "count": len(held), "arrays": arrays})
    scheduler.hold(arrays)
