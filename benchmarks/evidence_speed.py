"""How long 10,000 finished runs take to collect, table and judge, and in how much memory.

Run: python benchmarks/evidence_speed.py [RUNS]     Writes invented runs into a temporary folder.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lsa_study.config import study

ROOT = Path(__file__).resolve().parent.parent
TIER = "proxy"
MEASURED = """
import resource, sys, time
from pathlib import Path
start = time.perf_counter()
from lsa_study.analysis import claims, formats
from lsa_study.analysis.rows import with_runs
from lsa_study.analysis.table import build
from lsa_study.config import study
results, tier = Path(sys.argv[1]), sys.argv[2]
loaded = [study.load_study(name, tier=tier) for name in study.ARTICLE]
ready = time.perf_counter()
pairs = with_runs(loaded, results)[tier]
collected = time.perf_counter()
for one, found in pairs:
    formats.contents(build(one, found))
tabled = time.perf_counter()
claims.judge_tier(results, tier, collected=found)
judged = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{len(found.runs)} runs: import {ready - start:.2f} s, collect {collected - ready:.2f} s, "
      f"tables {tabled - collected:.2f} s, claims {judged - tabled:.2f} s, "
      f"these three {judged - ready:.2f} s, peak {peak:.2f} GiB")
"""


def main() -> None:
    """Write the runs, then measure twice: from run folders alone, and with ``runs.parquet``."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    # The invented runs are those of the tests.
    sys.path.insert(0, str(ROOT / "tests"))
    from synthetic import write_run

    rows = len(
        study.distinct(study.load_study(name, tier=TIER, seeds=[0]) for name in study.ARTICLE)
    )
    seeds = range(-(-wanted // rows))
    loaded = [study.load_study(name, tier=TIER, seeds=seeds) for name in study.ARTICLE]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for run in study.distinct(loaded)[:wanted]:
            write_run(Path(folder), run)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        for state in ("cold", "warm"):
            print(state, end=": ", flush=True)
            command = [sys.executable, "-c", MEASURED, folder, TIER]
            subprocess.run(command, check=True)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time of both: {children.ru_utime + children.ru_stime:.1f} s")


if __name__ == "__main__":
    main()
