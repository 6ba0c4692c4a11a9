import os
from pathlib import Path

import pytest

from lsa_study.config import study
from lsa_study.rundir import RunDir


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder of a few seconds: table 1's Swin on 96 digits."""

    def make(name="swin-s0-0123456789", tracker="none") -> RunDir:
        small = ["train.epochs=2", "data.train_limit=96", "train.batch_size=32"]
        overrides = [*small, f"runtime.tracker={tracker}"]
        (run,) = study.load_study("table1", only="swin", seeds=[0], overrides=overrides).runs()
        folder = RunDir(tmp_path / "results" / "toy" / "runs" / name)
        folder.create(run.settings, variant="swin")
        return folder

    return make


class ScriptedSlurm:
    """SLURM's commands as scripts that print what a test says and note how they were called."""

    COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct", "sacctmgr")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for command in self.COMMANDS:
            self.answers(command, "")
        self.cluster("study")
        self.answers("sbatch", "Submitted batch job 41")

    def answers(self, command, text, *, code=0):
        """From now on the command prints this, as an error if it fails."""
        (self.folder / f"{command}.answer").write_text(f"{text}\n" if text else "")
        place, stream = self.folder / command, 2 if code else 1
        place.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {self.folder}/calls\nenv >> {place}.env\n'
            f"cat {place}.answer >&{stream}\nexit {code}\n"
        )
        place.chmod(0o755)

    def cluster(self, name):
        self.answers("scontrol", f"ClusterName = {name}\nMaxArraySize = 1001")

    def queue(self, *lines):
        """Lines of id, state, reason and comment, with a bar between."""
        self.answers("squeue", "\n".join(lines))

    def calls(self, command):
        """The arguments of each call so far."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        begin = f"{self.folder / command} "
        return [line.removeprefix(begin) for line in lines if line.startswith(begin)]

    def environment(self, command):
        """Names of the variables that the command ever got."""
        lines = (self.folder / f"{command}.env").read_text().splitlines()
        return {line.partition("=")[0] for line in lines}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    scripted = ScriptedSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{scripted.folder}:{os.environ['PATH']}")
    return scripted
