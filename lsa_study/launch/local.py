"""The local queue: train what is missing here, seed 0 of every row first.

One worker per GPU, else one. A worker that dies takes only its own run with it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lsa_study import rundir
from lsa_study.config.settings import Settings
from lsa_study.config.study import Run
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError
from lsa_study.record import OUTCOMES
from lsa_study.rundir import RunDir

SAME_ERRORS = 3
"""So many runs in a row dying with the same words hold the rest of the queue."""

SECOND_INTERRUPT_SECONDS = 5.0


@dataclass
class Summary:
    """What a call of the queue did."""

    finished: dict[str, str] = field(default_factory=dict)
    """Run name -> its state after this call."""
    already: int = 0
    interrupted: bool = False
    held: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 good, 1 some run failed, 130 interrupted."""
        if self.interrupted:
            return 130
        good = all(state in OUTCOMES for state in self.finished.values())
        return 0 if good and not self.held else 1


def visible_gpus() -> list[str]:
    """The GPUs this process may use, without importing torch."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return [
        str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.split("\n")))
    ]


def folder_of(run: Run, results: Path, known: dict[str, RunDir]) -> RunDir:
    """The run's folder: an existing one of its identity, else the one it will get."""
    here = rundir.runs_folder(results, run.settings.tier) / run.name
    return known.get(run.identity) or RunDir(here)


def need_starts(runs: Iterable[Run], known: Mapping[str, RunDir], coming: Collection[str]) -> None:
    """Check that what runs begin from is trained, or will be before them.

    Args:
        runs: to be trained.
        known: the run folders there are, by identity.
        coming: identities of the runs that are under way or will be trained with these.

    Raises:
        EnvironmentLacks: some are not; all are named.
    """
    lacking = [
        f"{run.name}: begins from {row_of(run)} ({run.start}), which has not been trained; "
        "ask for that row too"
        for run in runs
        if run.start is not None
        and run.start not in coming
        and (run.start not in known or known[run.start].result() is None)
    ]
    if lacking:
        raise EnvironmentLacks("\n".join(lacking))


def row_of(run: Run) -> str | None:
    """The row that a run begins from."""
    start = run.settings.train.start
    return None if start is None else start.row


def ended_by(code: int) -> str:
    """How a process ended, in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Worker:
    """A child process and what it is doing.

    Args:
        index: its place among ``jobs`` workers, which share GPUs and cores.
    """

    def __init__(self, index: int, gpus: Sequence[str], jobs: int) -> None:
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "lsa_study.launch.worker", str(writer)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[writer], env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        self.replies = os.fdopen(reader)
        self.index = index
        self.run: Run | None = None

    def tell(self, **order: str) -> None:
        """Give it an order; see ``worker``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def reply(self) -> dict[str, Any] | None:
        """The next answer; None when the process has gone."""
        line = self.replies.readline()
        return json.loads(line) if line.endswith("\n") else None

    def check_data(self, settings: Settings) -> None:
        """Have it look whether the data are there.

        Raises:
            LsaError: the data are missing or damaged.
        """
        self.tell(check=settings.model_dump_json())
        reply = self.reply()
        if reply is None:
            raise LsaError("the worker process died while it looked at the data; see above")
        if reply["state"] == "failed":
            kind = {2: ConfigError, 3: EnvironmentLacks}.get(reply["exit_code"], LsaError)
            raise kind(reply["error"])

    def close(self) -> int:
        """Let it end once its order is done; returns its exit code."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.replies.close()
        return self.process.wait()


class Queue:
    """Runs waiting for workers."""

    def __init__(self, results: Path, *, jobs: int | None, console: Console) -> None:
        self.results = results
        self.console = console
        self.gpus = visible_gpus()
        self.jobs = jobs or max(1, len(self.gpus))
        self.summary = Summary()
        self.waiting: deque[Run] = deque()
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.interrupted_at: float | None = None
        self.last_errors: list[str] = []

    def work(self, runs: Sequence[Run], *, started: Callable[[], None] = lambda: None) -> Summary:
        """Train what has no result yet; ``started`` is called once nothing is known to lack.

        Raises:
            LsaError: the data are missing or the results folder cannot be written; nothing ran.
        """
        self.known: dict[str, RunDir] = {}
        for tier in {run.settings.tier for run in runs}:
            self.known |= rundir.existing(self.results, tier)
        for run in runs:
            if folder_of(run, self.results, self.known).result() is None:
                self.waiting.append(run)
            else:
                self.summary.already += 1
        need_starts(self.waiting, self.known, {run.identity for run in self.waiting})
        previous = signal.signal(signal.SIGINT, self._interrupt)
        try:
            if self.waiting:
                self._check_data()
            started()
            self._serve()
        finally:
            signal.signal(signal.SIGINT, previous)
            for worker in list(self.workers):
                self._retire(worker)
        return self.summary

    def _serve(self) -> None:
        while self.waiting and len(self.workers) < min(self.jobs, len(self.waiting)):
            self._hire()
        for worker in self.workers:
            self._next(worker)
        while any(worker.run for worker in self.workers):
            for key, _ in self.selector.select(timeout=1.0):
                self._hear(key.data)

    def _hire(self) -> Worker:
        worker = Worker(len(self.workers), self.gpus, self.jobs)
        self.workers.append(worker)
        self.selector.register(worker.replies, selectors.EVENT_READ, worker)
        return worker

    def _retire(self, worker: Worker) -> int:
        self.workers.remove(worker)
        self.selector.unregister(worker.replies)
        return worker.close()

    def _check_data(self) -> None:
        worker = self._hire()
        for settings in {run.settings.reads(): run.settings for run in self.waiting}.values():
            worker.check_data(settings)

    def _next(self, worker: Worker) -> None:
        run = None if self.interrupted_at is not None else self._first_ready()
        worker.run = run
        if run is None:
            return
        self.waiting.remove(run)
        folder = folder_of(run, self.results, self.known)
        folder.create(run.settings, variant=run.variant, start=run.start)
        self.console.print(f"[bold]{run.name}[/]  ({len(self.waiting)} waiting)", highlight=False)
        worker.tell(train=str(folder.root))

    def _first_ready(self) -> Run | None:
        """The next run that does not wait for another's weights."""
        under_way = [worker.run for worker in self.workers if worker.run is not None]
        coming = {run.identity for run in (*self.waiting, *under_way)}
        return next((run for run in self.waiting if run.start not in coming), None)

    def _hear(self, worker: Worker) -> None:
        run, reply = worker.run, worker.reply()
        assert run is not None
        if reply is None:
            code = self._retire(worker)
            reply = {"state": "failed", "error": self._died(run, code)}
            worker = self._hire() if self.waiting and self.interrupted_at is None else worker
        worker.run = None
        self._note(run, reply)
        for idle in [one for one in self.workers if one.run is None]:
            self._next(idle)

    def _died(self, run: Run, code: int) -> str:
        cause = "oom-host" if code == -signal.SIGKILL else "bug"
        words = f"the worker process ended by {ended_by(code)}"
        folder = folder_of(run, self.results, self.known)
        folder.change_state("failed", cause=cause, message=words)
        return words

    def _note(self, run: Run, reply: dict[str, Any]) -> None:
        self.summary.finished[run.name] = reply["state"]
        status = folder_of(run, self.results, self.known).status()
        error = reply.get("error") or (status.message if reply["state"] == "failed" else None)
        if error is None:
            self.last_errors.clear()
            return
        self.summary.errors.append(f"{run.name}: {error}")
        self.console.print(f"{run.name}: {error}", style="red", markup=False, highlight=False)
        self.last_errors.append(str(error))
        recent = self.last_errors[-SAME_ERRORS:]
        if len(recent) == SAME_ERRORS and len(set(recent)) == 1 and self.waiting:
            self.summary.held = len(self.waiting)
            self.waiting.clear()
            self.console.print(
                f"The last {SAME_ERRORS} runs died with the same error. Held the other "
                f"{self.summary.held}. Fix it, then call the same command again.",
                style="red",
            )

    def _interrupt(self, number: int, frame: object) -> None:
        now = time.monotonic()
        again = self.interrupted_at is not None and (
            now - self.interrupted_at < SECOND_INTERRUPT_SECONDS
        )
        self.interrupted_at = now
        self.summary.interrupted = True
        self.waiting.clear()
        for worker in self.workers:
            worker.process.send_signal(signal.SIGKILL if again else signal.SIGINT)
        if not again:
            self.console.print("Stopping after this step... (again within 5 s: leave now)")
