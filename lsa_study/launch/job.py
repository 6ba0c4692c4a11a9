"""Inside a SLURM job: train one run folder, leave well, come back.

The payload is a path and nothing else. All that a later life needs is in the run folder, so a job
that SLURM starts again by itself (after a preemption or the loss of a node) goes on as well as one
that put itself back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from submitit.helpers import DelayedSubmission

from lsa_study import training
from lsa_study.errors import LsaError, Refused
from lsa_study.launch import process, scheduler
from lsa_study.launch.records import (
    EQUAL_FAILURES,
    IDLE_LIVES,
    LIFE_MARK,
    LaunchFolder,
    error_of,
)
from lsa_study.ownership import STALE_SECONDS
from lsa_study.record import OUTCOMES, State
from lsa_study.rundir import RunDir, identity_of
from lsa_study.terminal import Screen, guard_output
from lsa_study.training import StopOnSignals

OF_LEAVING = ("bug", "node", "oom-host")
"""Causes that a signal to leave can have: it reaches loading processes and other ranks too."""

SIGNAL_EARLY_SECONDS = 90.0
"""SLURM may send the signal before the time limit a minute early."""

RANK_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""How torch's processes find each other."""


def rank_variables(env: Mapping[str, str]) -> dict[str, str]:
    """``RANK_VARIABLES`` from SLURM's variables; none for a process alone.

    The address is the one from which SLURM started the processes: that of the first node, where
    rank 0 is, and one that all nodes have just reached. The port moves with the job and with every
    restart, so that what is left of an earlier life cannot be met.
    """
    if (count := int(env.get("SLURM_NTASKS", "1"))) == 1:
        return {}
    place = int(env["SLURM_JOB_ID"]) * 31 + int(env.get("SLURM_RESTART_COUNT", "0")) * 7
    on_node = count // int(env.get("SLURM_JOB_NUM_NODES", "1"))
    return {
        "RANK": env["SLURM_PROCID"], "WORLD_SIZE": str(count), "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(on_node), "MASTER_ADDR": env["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": str(20000 + place % 12000),
    }  # fmt: skip


@dataclass(frozen=True)
class RunTask:
    """Train the run in ``folder``; what submitit carries to the job."""

    folder: str

    def __call__(self) -> str:
        """Train or resume; returns the state the run was left in."""
        guard_output(needed=False)
        # SIGUSR2: the time limit is near, or a preemption is announced: save, requeue. SIGTERM:
        # SLURM takes the node away and requeues by itself where it means to, or ``lsa cancel``:
        # save only. Submitit's own handlers never come back: they would queue the job once more.
        stop = StopOnSignals().install()
        env, run = os.environ, RunDir(Path(self.folder))
        array = env.get("SLURM_ARRAY_JOB_ID")
        env["LSA_JOB"] = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        for name in RANK_VARIABLES:
            env.pop(name, None)
        env.update(rank_variables(env))
        env.setdefault("OMP_NUM_THREADS", env.get("SLURM_CPUS_PER_TASK", "1"))
        life = _Life(run, stop)
        if life.records.is_cancelled(life.identity):
            return "stopped"
        if env.get("SLURM_PROCID", "0") != "0":
            return training.train(run, stop=stop, console=Screen())
        return life.carry_out()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again if it is told to leave before ``__call__`` has begun."""
        return DelayedSubmission(self)


def _say(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


class _Life:
    """One start of a run by SLURM; its first process speaks for it."""

    def __init__(self, run: RunDir, stop: StopOnSignals) -> None:
        self.run, self.stop = run, stop
        self.identity = identity_of(run.root.name)
        self.records = LaunchFolder.of_run(run.root)
        self.job = os.environ["LSA_JOB"]
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        starts = {(life.job, life.restart) for life in self.records.lives(self.identity)}
        number = len(starts | {(self.job, self.restart)})
        where = f"job {self.job} on {self.host}, process {os.environ.get('SLURM_PROCID', '0')}"
        _say(f"{LIFE_MARK}{number}: {where}")

    def carry_out(self) -> str:
        """Train, record how the life ended, and see to the next."""
        beat = self.run.status().heartbeat or 0.0
        for life in self.records.lives(self.identity):
            if life.end is None:  # it could not record its end itself
                # SLURM restarts a job that did not leave by itself when its node is lost.
                why = "node" if life.job == self.job else "lost"
                end, at = max(life.start, beat), self._position()
                self._note(job=life.job, restart=life.restart, end=end, why=why, ended_at=at)
        if self.records.idle(self.identity, self.job):
            self._give_up()
        gpus = int(os.environ.get("LSA_GPUS", "0"))
        self._note(start=time.time(), host=self.host, gpus=gpus, begun_at=self._position())
        self._wait_for_writer()
        try:
            state = process.train(self.run, self.stop, Screen())
        except Refused as error:
            _say(str(error))
            self._end("refused")
            sys.exit(error.exit_code)
        if state == "failed" and self.stop() and self.run.status().cause in OF_LEAVING:
            state = "stopped"
        if state == "stopped":
            return self._stopped()
        if state not in OUTCOMES:
            self._failed()
        self._end(state)
        return state

    def _end(self, why: str) -> None:
        self._note(end=time.time(), why=why, ended_at=self._position())

    def _note(self, **facts: Any) -> None:
        this = {"job": self.job, "restart": self.restart}
        # A full disk, or a folder opened to others, must not keep a run from being trained.
        with contextlib.suppress(OSError, LsaError):
            self.records.note_life(self.identity, this | facts)

    def _position(self) -> list[int]:
        return list(self.run.status().saved)

    def _wait_for_writer(self) -> None:
        """Let an earlier life of this job end that still runs on a node SLURM has given up."""
        end, reported = time.monotonic() + STALE_SECONDS + 60.0, False
        while (writer := self.run.writer()) is not None and writer.job == self.job:
            if not reported:
                who = f"process {writer.pid} on {writer.host}"
                _say(f"waiting for {who}: an earlier life of this job that still writes here")
                reported = True
            if self.stop() or time.monotonic() > end:
                return
            time.sleep(5.0)

    def _change_state(self, state: State, cause: str, message: str | None = None) -> None:
        with contextlib.suppress(LsaError):
            self.run.change_state(state, cause=cause, message=message)

    def _stopped(self) -> str:
        if self.records.is_cancelled(self.identity):
            cause = "cancelled"
        elif self.stop.signal is not signal.SIGUSR2:
            cause = "preempted"
        else:
            left = scheduler.seconds_left(self.job)
            near = float(os.environ.get("LSA_LEAVE_SECONDS", "120")) + SIGNAL_EARLY_SECONDS
            cause = "timeout" if left is not None and left <= near else "preempted"
        self._end(cause)
        self._change_state("stopped", cause)
        if cause == "cancelled" or self.stop.signal is not signal.SIGUSR2:
            return "stopped"
        if self.records.idle(self.identity, self.job):
            self._give_up()
        # SLURM ends the job's processes before scontrol has its answer; it ignores what we ignore.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            scheduler.requeue(self.job)
            _say("put back into the queue")
        except scheduler.Rejected as error:
            _say(f"cannot go back into the queue ({error}); lsa retry will do it")
        return "stopped"

    def _give_up(self) -> NoReturn:
        """End a job that SLURM would start again and again for nothing."""
        ends = [life.why or "lost" for life in self.records.lives(self.identity)][-IDLE_LIVES:]
        # Killed and started again by SLURM: whether for its node or for others is not known.
        why = "lost" if ends[-1] == "node" else ends[-1]
        message = (
            f"{IDLE_LIVES} lives in a row ended ({', '.join(ends)}) with nothing saved; give it "
            f"more hours, or a place where it can stay, then: lsa retry --cause {why}"
        )
        self._change_state("failed", why, message)
        _say(message)
        sys.exit(1)

    def _failed(self) -> NoReturn:
        """Count equal failures, and end the process so that SLURM sees one too."""
        status = self.run.status()
        cause = status.cause or "bug"
        if status.state != "failed":
            # Training could not even write that it failed.
            cause = "disk"
            self._change_state("failed", cause, "the disk is full")
        self._end(cause)
        with contextlib.suppress(OSError, LsaError):
            self._hold_rest()
        sys.exit(scheduler.DISK_EXIT_CODE if cause == "disk" else 1)

    def _hold_rest(self) -> None:
        """Hold the rest of the queue if so many died of this error that the next would too."""
        if (error := error_of(self.run)) is None or self.records.held() is not None:
            return
        arrays, folder = self.records.arrays(), self.run.root.parent
        queued = {name: array.created for array in arrays for name in array.runs}
        equal = [n for n, since in queued.items() if error_of(RunDir(folder / n), since) == error]
        if len(equal) < EQUAL_FAILURES:
            return
        in_hand = self.records.in_hand()[1].values()
        if held := [scheduler.array_of(job.job) for job in in_hand if job.pending]:
            self.records.note_held({
                "message": self.run.status().message or "", "runs": equal,
                "count": len(held), "arrays": sorted(set(held)),
            })  # fmt: skip
            scheduler.order("hold", sorted(set(held)))
