"""Turn signals into a wish to stop that training honours between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

STOPPING = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip

LEAVE_NOW_SECONDS = 5.0
"""A second interrupt within this time leaves at once."""


class StopOnSignals:
    """While active, a signal makes this true; a second interrupt soon after leaves at once.

    Outside the main thread, where Python takes no signals, it stays false.

    Args:
        leave_now: called by the second interrupt; raises ``KeyboardInterrupt`` if not given.
    """

    def __init__(self, leave_now: Callable[[], object] | None = None) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that asked to stop."""
        self._leave_now = leave_now
        self._last_interrupt = float("-inf")
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def install(self) -> Self:
        """Take the signals from now on."""
        if threading.current_thread() is threading.main_thread():
            nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            wanted = [number for number in STOPPING if number != signal.SIGHUP or not nohup]
            self._before = {number: signal.signal(number, self._ask) for number in wanted}
        return self

    __enter__ = install

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if now - self._last_interrupt < LEAVE_NOW_SECONDS:
            if self._leave_now is None:
                raise KeyboardInterrupt
            self._leave_now()
        self._last_interrupt = now
