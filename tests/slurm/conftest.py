"""One cluster for all tests of SLURM, and what they do with it."""

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_site import missing, running, wait_for
from slurm_summary import Faults, prove

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.launch import slurm
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import LaunchFolder
from lsa_study.launch.retry import retry
from lsa_study.launch.status import status
from lsa_study.rundir import RunDir, identity_of


@pytest.fixture(scope="session")
def running_site():
    if lacks := missing():
        pytest.skip(f"no SLURM here: {', '.join(lacks)} missing (apt install slurm-wlm munge)")
    with running() as site:
        yield site


@pytest.fixture
def site(running_site):
    """The cluster with an empty queue, before and after."""
    running_site.drain(1)
    yield running_site
    if running_site.jobs():
        running_site.run("scancel", "--quiet", "--user", getpass.getuser())
        running_site.drain()


SETTINGS = (
    "train.epochs=8", "data.train_limit=128", "train.batch_size=32",
    "runtime.checkpoint_seconds=1", "runtime.device=cpu",
)  # fmt: skip
"""One run for all faults, so that one undisturbed run is their common reference."""


def asked(*, only="swin", seeds=(0,), overrides=(), **resources):
    """Runs of Table 1 with the settings that all share here."""
    overrides = [*SETTINGS, *overrides]
    loaded = study.load_study("table1", only=only, seeds=seeds, overrides=overrides)
    return [
        replace(run, resources=run.resources.model_copy(update=resources)) for run in loaded.runs()
    ]


def trained_here(run, results, processes=1):
    """The run as it ends where nothing happens to it."""
    folder = RunDir(results / run.name)
    folder.create(run.settings, variant=run.variant)
    train_together(folder, processes=processes)
    return folder


def train_together(folder, *, processes):
    """Train a run by so many processes, without SLURM."""
    # One thread, as the jobs: the order of a sum depends on their number.
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        common["MASTER_PORT"] = str(free.getsockname()[1])
    command = [sys.executable, "-m", "lsa_study.training", str(folder.root)]
    started = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    assert [process.wait(120) for process in started] == [0] * processes


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run that nothing happened to."""
    return trained_here(*asked(), tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def faults(request):
    """Notes what is done to runs; the table at the end of the tests' output counts it."""
    return Faults(request.node.user_properties)


class Trial:
    """A results folder, and what is done with it."""

    def __init__(self, results: Path, faults: Faults) -> None:
        self.results, self.faults = results, faults
        self.caused = []
        (self.run,) = asked()
        self.cluster = Cluster(check_data="job")

    settings = SETTINGS
    asked = staticmethod(asked)
    trained_here = staticmethod(trained_here)
    train_together = staticmethod(train_together)
    wait_for = staticmethod(wait_for)

    def cause(self, fault):
        """Note what is about to happen to the run."""
        self.caused.append(self.faults.cause(fault))

    def prove_whole(self, reference: RunDir):
        """The run has ended, once, with the weights of the reference."""
        self.wait_done()
        differ = self.folder.weights.read_bytes() != reference.weights.read_bytes()
        twice = self.ends().count("done") - 1
        for entry in self.caused:
            prove(entry, lost=int(differ), twice=twice)
        assert not differ
        assert twice == 0

    def wishes(self, **wishes):
        self.cluster = self.cluster.model_copy(update=wishes)

    def launch(self, runs=None, **how):
        return slurm.launch(runs or [self.run], self.results, self.cluster, **how)

    def retry(self, *causes, **how):
        return retry(self.results, (), self.cluster, causes=causes, **how)

    def status(self):
        """Variant and seed -> status."""
        return {(row.variant, row.seed): row for row in status(self.results)}

    @property
    def row(self):
        return self.status()[self.run.variant, self.run.seed]

    @property
    def folder(self) -> RunDir:
        return RunDir(rundir.runs_folder(self.results, "toy") / self.run.name)

    @property
    def records(self) -> LaunchFolder:
        return LaunchFolder.of(self.results, "toy")

    def ends(self):
        """Why each life of the run ended."""
        return [life.why for life in self.records.lives(identity_of(self.folder.root.name))]

    @property
    def pid(self):
        return int(self.folder.status().pid)

    def process_of(self, rank):
        """The process id of one rank of the running job."""
        wanted = {f"SLURM_JOB_ID={self.row.job}", f"SLURM_PROCID={rank}"}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                told = {*(path / "environ").read_text("utf-8", "replace").split("\0")}
                command = (path / "cmdline").read_text()
                if wanted <= told and str(self.results) in command:
                    found.append(int(path.name))
        return min(found)

    def pause(self, life=1, epochs=1):
        """Let the run's process sleep once it has done an epoch or more, well before its last.

        An epoch is done once its checkpoint is written, which is after its metrics: from the
        second on the checkpoint before it is kept too. After 0 epochs: within the first one.
        """
        kept = [self.folder.last_checkpoint, self.folder.previous_checkpoint][: max(epochs, 1)]

        def done():
            records = [record for record in self.folder.metrics() if record["attempt"] == life]
            return len(records) >= epochs and all(path.exists() for path in kept)

        wait_for(done, 180, lambda: f"{epochs} epochs: {self.log()}")
        os.kill(self.pid, signal.SIGSTOP)
        assert self.folder.status().state == "running", self.log()

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def wait_state(self, state):
        wait_for(lambda: self.row.state == state, 120, lambda: f"{state}: {self.row} {self.log()}")

    def wait_done(self):
        wait_for(self.folder.result, 240, lambda: f"a result: {self.row} {self.log()}")
        assert self.folder.result().outcome == "done"
        wait_for(lambda: self.ends()[-1:] != [None], 30, lambda: "the end of its life")

    def log(self):
        logs = sorted(self.records.root.glob("*/*_log.out"))
        return "\n".join(log.read_text("utf-8", "replace")[-3000:] for log in logs)


@pytest.fixture
def trial(site, tmp_path, faults):
    return Trial(tmp_path / "results", faults)


@pytest.fixture
def trials(site, tmp_path, faults):
    """As many as are asked for, each with results of its own."""
    return lambda *names: [Trial(tmp_path / name, faults) for name in names]
