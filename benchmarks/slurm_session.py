"""A study on a SLURM cluster from launch to tables: the session that docs/cluster.md shows.

Run: python benchmarks/slurm_session.py [EPOCHS]     Starts the tests' cluster (needs slurm-wlm and
munge), trains the toy tier there and prints what a user sees; keeps nothing.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FRAME_SECONDS = 15.0
LAST_LINE = re.compile(rb"\n\d+ (done|running|queued)  .+")
"""Of a frame: how many runs are in which state."""


def lsa(*words: str, shown: bool = True) -> str:
    """Run a command and print it as a user sees it."""
    command = [sys.executable, "-m", "lsa_study.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown:
        print(f"$ lsa {' '.join(words)}\n{done.stdout}{done.stderr}", flush=True)
    return done.stdout


def frame(*words: str) -> None:
    """Print the first frame of a command that goes on in a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS="110", LINES="60", TERM="xterm")
        os.execv(sys.executable, [sys.executable, "-m", "lsa_study.cli", *words])
    told, end = b"", time.monotonic() + FRAME_SECONDS
    while not (last := LAST_LINE.search(told)) and time.monotonic() < end:
        told += os.read(terminal, 65536)
    os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told[: last.end() if last else None].decode())
    print(f"$ lsa {' '.join(words)}")
    print("\n".join(line.rstrip() for line in plain.splitlines()), flush=True)


def done() -> int:
    """How many runs have their result."""
    runs = json.loads(lsa("status", "--json", shown=False))["runs"]
    return sum(run["state"] == "done" for run in runs)


def main() -> None:
    """Launch, look, wait, make the tables."""
    epochs = sys.argv[1] if len(sys.argv) > 1 else "1"
    # The cluster is that of the tests.
    sys.path.insert(0, str(ROOT / "tests"))
    from slurm_site import running, wait_for

    os.environ["OMP_NUM_THREADS"] = "1"
    with running(max_array_size=1001) as site, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lsa(
            "launch",
            "all",
            "--tier",
            "toy",
            "--cluster",
            "slurm",
            "--set",
            f"train.epochs={epochs}",
        )
        wait_for(lambda: done() >= 5, 600, lambda: "five runs")
        frame("status", "--watch")
        wait_for(lambda: not site.jobs(), 1800, lambda: "an empty queue")
        lsa("status")
        lsa("table", "all")


if __name__ == "__main__":
    main()
