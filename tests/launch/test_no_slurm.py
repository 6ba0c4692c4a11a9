"""A machine without SLURM says so, and runs nothing instead."""

import os
import subprocess
import sys


def test_launch_names_what_to_do(tmp_path):
    """PATH holds nothing, so no sbatch, whatever is installed here."""
    command = [
        sys.executable, "-m", "lsa_study.cli", "launch", "table1", "--cluster", "slurm",
        "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 3
    assert "launch needs SLURM: sbatch is not on PATH here" in done.stderr
    assert "on this machine use lsa run" in done.stderr
    assert not (tmp_path / "results").exists()
