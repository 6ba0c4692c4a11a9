"""How a local queue stands: a line, and on a terminal one live view of all runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from rich.text import Text

from lsa_study.config.task import METRICS
from lsa_study.record import Status, judged
from lsa_study.terminal import fitted

BAR = 12
"""Signs of a run's bar."""


@dataclass
class Board:
    """Counts the runs of a queue, and expects its end at the pace of those seen so far."""

    places: int
    done: int = 0
    """With those that had been done before."""
    seconds: list[float] = field(default_factory=list)
    """What each run took that ended here."""
    begun: dict[str, float] = field(default_factory=dict)
    """When each that is running was started, by name, on the monotonic clock."""

    def end(self, name: str) -> None:
        """Note that a run has ended."""
        self.done += 1
        self.seconds.append(time.monotonic() - self.begun.pop(name))

    def left(self, running: Sequence[tuple[str, Status]], waiting: int) -> float | None:
        """Seconds until the queue is empty; None before anything is known."""
        now = time.monotonic()
        known = {name: eta for name, one in running if (eta := one.eta_seconds) is not None}
        whole = [*self.seconds, *(now - self.begun[name] + eta for name, eta in known.items())]
        if not whole:
            return None
        usual = sum(whole) / len(whole)
        rest = [known.get(name, max(0.0, usual - now + self.begun[name])) for name, _ in running]
        return max(max(rest, default=0.0), (sum(rest) + waiting * usual) / self.places)

    def line(self, running: Sequence[tuple[str, Status]], waiting: int) -> str:
        """How many runs are done, and when all will be."""
        total = self.done + len(running) + waiting
        line = f"{self.done} of {total} runs done, {len(running)} running, {waiting} waiting"
        if (left := self.left(running, waiting)) is not None:
            days = f" in {round(left // 86_400)} days" * (left >= 86_400)
            line += (
                f", ends about {time.strftime('%H:%M', time.localtime(time.time() + left))}{days}"
            )
        return line

    def shown(self, running: Sequence[tuple[str, Status]], waiting: int, width: int) -> Text:
        """That line, and one for each run that is under way, none wider than ``width``."""
        rows = [("RUN", "", "EPOCH", "SCORE", "LEFT")]
        for name, one in running:
            bar = "━" * (BAR * one.epoch // (one.epochs or 1))
            score = "-"
            if known := judged(one.acc1, one.metrics):
                metric = METRICS[known[0]]
                score = f"{metric.short} {metric.shown(known[1])}"
            eta = "-" if one.eta_seconds is None else str(timedelta(seconds=round(one.eta_seconds)))
            rows.append((name, bar.ljust(BAR, "."), f"{one.epoch}/{one.epochs or '?'}", score, eta))
        text = Text().append(self.line(running, waiting)[:width], "bold")
        for cells in fitted(rows, width, numbers=(2, 3, 4))[0][1:]:
            text.append(f"\n{cells[0]}  ").append(cells[1], "cyan")
            text.append("  " + "  ".join(cells[2:]))
        return text
