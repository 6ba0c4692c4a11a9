"""The commands as a user types them."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture
def lsa(site, tmp_path):
    site_file = tmp_path / "cluster.yaml"
    site_file.write_text("check_data: job\nsbatch: {hold: true}\n")

    def call(verb, *words, code=0):
        extra = ["--site", str(site_file)] if verb == "launch" else []
        command = [sys.executable, "-m", "lsa_study.cli", verb, *words, *extra]
        done = subprocess.run(
            [*command, "--results", str(tmp_path / "results")], capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return call


def states(told):
    return {(run["variant"], run["seed"]): run["state"] for run in json.loads(told)["runs"]}


def test_from_launch_to_cancel(site, lsa):
    asked = ("table1", "--only", "swin,net1", "--set", "train.epochs=3", "--cluster", "slurm")
    assert "#SBATCH --array=0-1" in lsa("launch", *asked, "--dry-run")
    assert site.jobs() == {}
    assert "table1: 2 runs as job" in lsa("launch", *asked)
    assert "2 queued or running already" in lsa("launch", *asked)
    assert len(site.jobs()) == 2
    assert states(lsa("status", "--json")) == {("swin", 0): "queued", ("net1", 0): "queued"}
    of_study = states(lsa("status", "table1", "--json"))
    assert list(of_study.values()).count("waiting") == 6
    assert "held" in lsa("status", "swin")
    assert "1 taken out of the queue" in lsa("cancel", "swin")
    assert states(lsa("status", "--json")) == {("swin", 0): "stopped", ("net1", 0): "queued"}
    assert "cancelled; when that is mended" in lsa("retry")
    assert "1 queued or running already" in lsa("launch", *asked)
    assert len(site.jobs()) == 2


def test_what_slurm_refuses_ends_with_3(site, lsa):
    told = lsa("launch", "table1", "--partition", "gpuu", "--cluster", "slurm", code=3)
    assert "#SBATCH --partition=gpuu\n" in told, "the script that was refused"
    assert "not queued: SLURM refused array 1 of 2: " in told
    assert "known partitions: gpu, urgent" in told
    assert site.jobs() == {}
