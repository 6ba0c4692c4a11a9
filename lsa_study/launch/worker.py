"""One worker process of the local queue: trains the run folders it is told, one after another.

Told by lines of JSON on standard input, ``{"check": SETTINGS}`` or ``{"train": RUN_DIR}``; answers
each with one line on the file descriptor given as its argument. Keeping the process saves the
seconds that importing torch costs for every run of a grid.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from lsa_study.config.settings import Settings
from lsa_study.errors import LsaError
from lsa_study.launch.track import beside
from lsa_study.rundir import RunDir


class StopFlag:
    """Turns true at the first interrupt, so that a run ends at a step boundary."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.asked


def check(settings: str) -> str:
    """Load the data the settings ask for, so that a missing folder is told before any training."""
    from lsa_study import data

    data.check(Settings.model_validate_json(settings))
    return "ok"


def train(folder: str, stop: StopFlag) -> str:
    """Train or resume one run folder; its outcome state."""
    from lsa_study.training import train

    run, console = RunDir(Path(folder)), Console()
    with beside(run, lambda line: console.print(line, markup=False, highlight=False)):
        return train(run, stop=stop, console=console)


def answer(order: dict[str, Any], stop: StopFlag) -> dict[str, Any]:
    """Carry out one order; errors that are told in words travel as words."""
    try:
        if "check" in order:
            return {"state": check(order["check"])}
        return {"state": train(order["train"], stop)}
    except LsaError as error:
        return {"state": "failed", "error": str(error), "exit_code": error.exit_code}


def main() -> None:
    """Serve orders until standard input closes."""
    stop = StopFlag()
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as replies:
        for line in sys.stdin:
            replies.write(json.dumps(answer(json.loads(line), stop)) + "\n")
            if stop():
                break


if __name__ == "__main__":
    main()
