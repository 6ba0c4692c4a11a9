"""A life's side of its tracker: the process that mirrors the records, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lsa_study.rundir import RunDir
from lsa_study.training import tracking

ELSEWHERE = ("WANDB_", "TRACKIO_")
"""Beginnings of variables that could lead a tracker to a server or another folder."""


class Mirror:
    """Has the run's records repeated to a tracker; its failures are a line in the log.

    Args:
        attempt: the life whose folder gets what the tracker prints, as ``tracker.txt``.
        tracker: of ``runtime.tracker``; with "none" nothing is done.
        say: is told in one line when the mirror is lost.
    """

    def __init__(
        self, run_dir: RunDir, attempt: int, tracker: str, say: Callable[[str], object]
    ) -> None:
        self.run_dir, self.tracker, self.say = run_dir, tracker, say
        self.printed = run_dir.attempt_folder(attempt) / "tracker.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(self._process)

    def open(self) -> None:
        """Start to mirror.

        Raises:
            TrackerLacks: the tracker is not installed.
        """
        if self.tracker == "none":
            return
        tracking.require(self.tracker)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ELSEWHERE)}
        command = [sys.executable, "-m", tracking.__name__, str(self.run_dir.root.absolute())]
        try:
            with self.printed.open("wb") as file:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=file, stderr=file, bufsize=0,
                    env=environment, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._lost(str(error))

    def news(self) -> None:
        """Say that there is a new record."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
        except OSError:
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        # It ends by itself, if need be by its own alarm.
        code = process.wait()
        self._process = None
        if code < 0:
            self._lost(f"ended by signal {signal.Signals(-code).name}")
        elif code > 0:
            lines = self.printed.read_text("utf-8", "replace").split("\n")
            self._lost(next((line for line in reversed(lines) if line.strip()), f"code {code}"))

    def _lost(self, words: str) -> None:
        self.say(
            f"runtime.tracker={self.tracker!r}: mirrors no more ({words}); metrics.jsonl has "
            "everything, and the next life mirrors it anew"
        )
