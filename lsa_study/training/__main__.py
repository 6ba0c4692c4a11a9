"""``python -m lsa_study.training RUN_DIR...``: train each folder in turn.

Exit codes: 0 all have a result, 1 some run failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lsa_study.errors import LsaError
from lsa_study.record import OUTCOMES
from lsa_study.rundir import RunDir
from lsa_study.terminal import Screen, guard_output
from lsa_study.training import StopOnSignals, train


def main(folders: list[str]) -> int:
    """Train the folders; returns the exit code."""
    console = Screen(stderr=True)
    if not folders:
        console.print("usage: python -m lsa_study.training RUN_DIR...", markup=False)
        return 2
    failed = False
    with StopOnSignals() as stop:
        for folder in folders:
            try:
                state = train(RunDir(Path(folder)), stop=stop, console=console)
            except LsaError as error:
                console.print(str(error), style="red", markup=False, highlight=False)
                state = "failed"
            except KeyboardInterrupt:
                state = "stopped"
            if state == "stopped":
                return 130
            failed |= state not in OUTCOMES
    return int(failed)


if __name__ == "__main__":
    guard_output(needed=False)
    sys.exit(main(sys.argv[1:]))
