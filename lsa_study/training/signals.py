"""Turn signals into a wish to stop that the training loop honours between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

LEAVE_NOW_SECONDS = 5.0
"""A second interrupt within this time leaves at once."""


class StopOnSignals:
    """While active, a signal makes this true; a second interrupt soon after leaves at once.

    Outside the main thread, where Python takes no signals, it stays false.
    """

    def __init__(self) -> None:
        self.asked = False
        self._last_interrupt = float("-inf")
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if now - self._last_interrupt < LEAVE_NOW_SECONDS:
            raise KeyboardInterrupt
        self._last_interrupt = now
