"""A machine without SLURM says so, and runs nothing instead."""

import os
import subprocess
import sys

import pytest

from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.slurm import launch


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


def test_commands_without_a_cluster(slurm, tmp_path):
    slurm.answers("scontrol", "scontrol: error: failed to fetch config", code=1)
    asked, results = study.load_study("table1", only="swin").runs(), tmp_path / "results"
    answer = (
        r"launch: SLURM does not answer here \(failed to fetch config\); go to a login node, or"
    )
    with pytest.raises(EnvironmentLacks, match=answer):
        launch(asked, results, Cluster(check_data="job"))
    assert not results.exists()
