"""What the output of the tests says of SLURM at its end."""

import os
import subprocess
import sys
from pathlib import Path

from slurm_summary import Faults, prove, table

TESTS = Path(__file__).resolve().parent / "slurm" / "test_command.py"


def test_a_run_is_lost_until_it_is_proved_whole():
    faults = Faults([])
    faults.cause("kill -9")
    prove(faults.cause("kill -9"))
    prove(faults.cause("two launchers", runs=16), twice=2)
    names = {name for name, _ in faults.properties}
    _, *lines, _ = table([entry for _, entry in faults.properties])
    numbers = {" ".join(line.split()[:-4]): line.split()[-4:] for line in lines}
    assert names == {"fault"}
    assert numbers == {
        "kill -9": ["2", "2", "1", "0"],
        "two launchers": ["1", "16", "0", "2"],
        "all": ["3", "18", "1", "2"],
    }


def test_the_output_says_why_tests_were_skipped(tmp_path):
    """PATH holds nothing, so no SLURM, whatever is installed here; by a worker, as in make test."""
    command = [sys.executable, "-m", "pytest", str(TESTS), "-n", "1", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(tmp_path)}, cwd=TESTS.parent.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 tests of SLURM skipped: no SLURM here: slurmctld, slurmd, munged" in done.stdout
