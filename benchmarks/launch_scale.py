"""How long planning, queueing and asking after 10,000 runs take, in how much memory.

Run: python benchmarks/launch_scale.py [RUNS]     Starts the tests' SLURM cluster (needs slurm-wlm
and munge) and queues the runs held, so that none is trained; writes
results/benchmarks/launch_scale.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lsa_study import rundir
from lsa_study.machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
ROWS = 8
"""Variants of Table 1."""
MOST = 1001
"""MaxArraySize, as SLURM has it where a site says nothing."""


def measured(name: str, *words: str, seconds: float | None = None) -> dict[str, Any]:
    """Run ``lsa`` in a process of its own: seconds by the clock, of the processor, memory."""
    command = [sys.executable, "-m", "lsa_study.cli", *words]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    found = {
        "what": name,
        "seconds": round(time.perf_counter() - begun, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "megabytes": round(usage.ru_maxrss / 1024),
        "seconds_wanted": seconds,
    }
    if code != 0:
        sys.exit(f"lsa {' '.join(words)} ended with {os.waitstatus_to_exitcode(code)}")
    wanted = "" if seconds is None else f"   (wanted: under {seconds:.0f} s)"
    print(
        f"{name:<42}{found['seconds']:>7.2f} s{found['processor_seconds']:>7.2f} s of processor"
        f"{found['megabytes']:>6} MB{wanted}",
        flush=True,
    )
    return found


def counting_sbatch(folder: Path) -> Path:
    """Put an ``sbatch`` first on PATH that notes each call; gives the file of notes."""
    notes = folder / "sbatch.txt"
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\necho "$1" >> {notes}\nexec {shutil.which("sbatch")} "$@"\n', "utf-8"
    )
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"{wrapper.parent}:{os.environ['PATH']}"
    return notes


def pretend_to_train(results: Path) -> None:
    """Half of the runs are done, the others have a heartbeat of now."""
    beat = {"state": "running", "heartbeat": time.time(), "epoch": 1, "epochs": 3, "attempt": 1}
    done = {"outcome": "done", "acc1": 50.0, "epoch": 3, "epochs": 3, "attempts": 1, "seconds": 9}
    for number, run in enumerate(rundir.existing(results, "toy").values()):
        name, facts = [("result.json", done), ("status.json", beat)][number % 2]
        (run.root / name).write_text(json.dumps(facts), "utf-8")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "slurm": subprocess.run(
            ["sbatch", "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[1],
    }


def write(facts: dict[str, Any]) -> None:
    """Keep the figures."""
    path = ROOT / "results" / "benchmarks" / "launch_scale.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def main() -> None:
    """Plan, try, queue, ask; write the figures."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    # The cluster is that of the tests.
    sys.path.insert(0, str(ROOT / "tests"))
    from slurm_site import running

    asked = ["table1", "--seeds", f"0-{-(-wanted // ROWS) - 1}"]
    with running(max_array_size=MOST), tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        site = Path(folder) / "cluster.yaml"
        site.write_text("check_data: job\nsbatch: {hold: true}\n", "utf-8")
        where = ["--results", str(results)]
        launch = ["launch", *asked, *where, "--site", str(site)]
        print(f"{wanted} runs on {machine()}")
        figures = [
            measured("lsa plan", "plan", *asked, *where, seconds=10),
            measured("lsa plan --json", "plan", *asked, *where, "--json", seconds=10),
            measured("lsa launch --dry-run", *launch, "--dry-run", seconds=10),
        ]
        notes = counting_sbatch(Path(folder))
        figures.append(measured("lsa launch", *launch))
        calls = notes.read_text("utf-8").split()
        submitted = sum(call != "--test-only" for call in calls)
        print(f"sbatch: {submitted} submissions (MaxArraySize {MOST}), each tried once before")
        figures.append(measured("lsa launch again: nothing is missing", *launch))
        for state in ("first", "warm"):
            figures.append(measured(f"lsa status, all queued, {state}", "status", *where))
        pretend_to_train(results)
        for state in ("first", "warm"):
            words = "lsa status --json, half done, half running"
            figures.append(measured(f"{words}, {state}", "status", "--json", *where, seconds=3))
        figures.append(measured("lsa status table1, the same", "status", *asked[:1], *where))
        facts = {"runs": wanted, "max_array_size": MOST, "submissions": submitted}
        write({**facts, "machine": machine(), "figures": figures})


if __name__ == "__main__":
    main()
