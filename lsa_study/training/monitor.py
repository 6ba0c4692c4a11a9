"""What people see of a run while it runs: its status file, its log, its lines or bar."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lsa_study.config.settings import Settings
from lsa_study.record import State, Status
from lsa_study.rundir import RunDir

HEARTBEAT_SECONDS = 10.0


class Monitor:
    """Reports how one attempt goes. Call ``beat`` often; it decides what is due.

    Args:
        attempt: its number; 0 in a process that does not report for the run: nothing is written.
        console: where lines, or on a terminal a bar, are shown.
    """

    def __init__(
        self, run_dir: RunDir, settings: Settings, attempt: int, console: Console | None
    ) -> None:
        self.run_dir, self.attempt, self.console = run_dir, attempt, console
        self.settings, self.epochs = settings, settings.train.epochs
        self.now = Status(
            epochs=self.epochs, attempt=attempt, host=socket.gethostname(), job=job(),
            pid=os.getpid(), message="starting", saved=run_dir.status().saved,
        )  # fmt: skip
        path = run_dir.attempt_folder(attempt) / "log.txt" if attempt else Path(os.devnull)
        self._log = path.open("a", encoding="utf-8")
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_status = self._last_line = self._started = time.monotonic()
        self._begun_at = 0.0

    def __enter__(self) -> Self:
        self.status("running")
        if self.console is not None and self.console.is_terminal and not self.console.quiet:
            columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
            self._bar = Progress(
                *columns, TextColumn("{task.fields[message]}"), console=self.console, transient=True
            )
            self._task = self._bar.add_task(self.run_dir.root.name, total=self.epochs, message="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        with contextlib.suppress(OSError):  # what a full disk did not take is tried once more
            self._log.close()

    def begin(self, done: float) -> None:
        """Start the clock of the estimate: ``done`` epochs were done by earlier attempts."""
        self._begun_at, self._started = done, time.monotonic()

    def beat(self, done: float, message: str, *, epoch: int, step: int) -> None:
        """Note that the run is alive, with ``done`` of its epochs; write what is due."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, message=message)
        if now - self._last_status >= HEARTBEAT_SECONDS:
            left = self.eta(done)
            self.status("running", epoch=epoch, step=step, message=message, eta_seconds=left)
        if now - self._last_line >= self.settings.runtime.log_seconds:
            self._line(message)

    def saved(self, done: float, epoch: int, step: int) -> None:
        """Note what the last checkpoint holds."""
        left = self.eta(done)
        self.status("running", epoch=epoch, step=step, saved=(epoch, step), eta_seconds=left)

    def epoch(self, message: str) -> None:
        """Log an epoch's numbers; show them when a line is due, and always after the last."""
        last = message.startswith(f"epoch {self.epochs}/")
        if last or time.monotonic() - self._last_line >= self.settings.runtime.log_seconds:
            self._line(message)
        else:
            self.log(message)

    def _line(self, message: str) -> None:
        self._last_line = time.monotonic()
        if self._bar is None:
            self.say(message)
        else:
            self.log(message)

    def say(self, message: str) -> None:
        """Write a line into the log and on the console, bar or not."""
        self.log(message)
        if self.console is not None:
            # On a terminal one run has all lines; in a pipe several may take turns.
            name = "" if self.console.is_terminal else f"{self.run_dir.root.name}: "
            self.console.print(f"{name}{message}", markup=False, highlight=False)

    def log(self, message: str) -> None:
        """Write into the attempt's log alone."""
        # A log that cannot be written must not end a run.
        with contextlib.suppress(OSError):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")
            self._log.flush()

    def status(self, state: State, **fields: Any) -> None:
        """Replace the status file; of ``Status``, fields not given stay, but for the estimate."""
        update = {"eta_seconds": None, **fields, "state": state}
        self.now = self.now.model_copy(update=update)
        self._last_status = time.monotonic()
        if self.attempt:
            self.run_dir.write_status(self.now)

    def eta(self, done: float) -> float | None:
        """Seconds left at the pace of this attempt; None before anything is done."""
        gained = done - self._begun_at
        if gained <= 0:
            return None
        return round((self.epochs - done) * (time.monotonic() - self._started) / gained, 1)


def job() -> str | None:
    """The scheduler's name for this job, where one started it."""
    return os.environ.get("LSA_JOB") or os.environ.get("SLURM_JOB_ID")
