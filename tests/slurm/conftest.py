"""A real SLURM cluster of two nodes on this machine, in a scratch folder, for these tests only."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lsa_study import rundir, study
from lsa_study.launch import slurm
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import LaunchFolder, identity_of
from lsa_study.launch.retry import retry
from lsa_study.launch.status import status
from lsa_study.rundir import RunDir

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")

# cred_expire is also how long a requeued job waits before it may start again: 120 s by default.
CONF = """
ClusterName=study
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=6
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=15
SlurmdTimeout=5
MaxArraySize=6
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/controller.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/controller.log
SlurmdLogFile={root}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
"""

GRES = "NodeName=n[1-2] Name=gpu File=/dev/null\nNodeName=n[1-2] Name=gpu File=/dev/zero\n"


def wait_for(condition, seconds=120.0, what=lambda: "it"):
    """Poll until a condition holds; returns what it gave. ``what`` tells what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what()}")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def gone(pid):
    """Whether a process has ended; its parent may not have noticed yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class Site:
    """The cluster: its daemons and what an operator does to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.chmod(0o755)
        controller_port, port1, port2 = free_ports(3)
        text = CONF.format(
            root=root, user=getpass.getuser(), host=socket.gethostname(), port1=port1, port2=port2,
            controller_port=controller_port,
        )  # fmt: skip
        (root / "slurm.conf").write_text(text)
        (root / "gres.conf").write_text(GRES)
        for name in ("state", "spool-n1", "spool-n2", "munge"):
            (root / name).mkdir(mode=0o755)
        self.munge = root / "munge"

    def start(self):
        key = self.munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        files["seed-file"] = "seed"
        self.run("munged", *(f"--{name}={self.munge / file}" for name, file in files.items()))
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.idle_nodes() == 2, 60, lambda: "two idle nodes")

    def stop(self):
        with contextlib.suppress(AssertionError):
            self.run("scancel", "--quiet", "--user", getpass.getuser())
            self.drain(20)
        pids = [self.root / "n1.pid", self.root / "n2.pid", self.root / "controller.pid"]
        for path in [*pids, self.munge / "pid"]:
            self.kill(path, signal.SIGKILL)

    def run(self, *words):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    @staticmethod
    def kill(pid_file, number):
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            os.kill(pid, number)
            wait_for(lambda: gone(pid), 30, lambda: f"{pid_file.name} to end")

    def start_controller(self):
        self.run("slurmctld")

    def stop_controller(self):
        self.kill(self.root / "controller.pid", signal.SIGTERM)

    def start_node(self, node):
        self.run("slurmd", "-N", node)

    def kill_node(self, node):
        """Kill a node's daemon at once; the processes of its jobs live on."""
        self.kill(self.root / f"{node}.pid", signal.SIGKILL)

    def idle_nodes(self):
        return self.run("sinfo", "--noheader", "-N", "-o", "%N|%t").count("|idle") // 2

    def jobs(self):
        """Job id -> (state, reason) of all that has not ended."""
        told = self.run("squeue", "--noheader", "--array", "--format", "%i|%T|%r").splitlines()
        return {job: (state, reason) for job, state, reason in (row.split("|") for row in told)}

    wait_for = staticmethod(wait_for)

    def drain(self, seconds=90.0):
        """Wait until the queue is empty."""
        wait_for(lambda: not self.jobs(), seconds, lambda: f"an empty queue: {self.jobs()}")


@pytest.fixture(scope="session")
def running_site():
    missing = [command for command in NEEDED if shutil.which(command) is None]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} missing (apt install slurm-wlm munge)")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    site = Site(root)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    try:
        site.start()
        yield site
    finally:
        site.stop()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(root, ignore_errors=True)


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


def asked(*, only="swin", seeds=(0,), **resources):
    """Runs of Table 1 with the settings that all share here."""
    loaded = study.load("table1", only=only, seeds=seeds, overrides=SETTINGS)
    return [
        replace(run, resources=run.resources.model_copy(update=resources)) for run in loaded.runs()
    ]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The final weights of the run that nothing happened to."""
    (run,) = asked()
    folder = RunDir(tmp_path_factory.mktemp("undisturbed") / run.name)
    folder.create(run.settings, variant=run.variant)
    command = [sys.executable, "-m", "lsa_study.training", str(folder.root)]
    # One thread, as the jobs: the order of a sum depends on their number.
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder.weights.read_bytes()


class Trial:
    """A results folder, and what is done with it."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.cluster = Cluster(check_data="job")

    asked = staticmethod(asked)
    wait_for = staticmethod(wait_for)

    def wishes(self, **wishes):
        self.cluster = self.cluster.model_copy(update=wishes)

    def launch(self, runs=None, **how):
        return slurm.launch(runs or asked(), self.results, self.cluster, **how)

    def retry(self, *causes, **how):
        return retry(self.results, (), self.cluster, causes=causes, **how)

    def status(self):
        """Variant and seed -> status."""
        return {(row.variant, row.seed): row for row in status(self.results)}

    @property
    def row(self):
        return self.status()["swin", 0]

    @property
    def folder(self) -> RunDir:
        (run,) = asked()
        return RunDir(rundir.runs_folder(self.results, "toy") / run.name)

    @property
    def records(self) -> LaunchFolder:
        return LaunchFolder.of(self.results, "toy")

    def ends(self):
        """Why each life of the run ended."""
        return [life.why for life in self.records.lives(identity_of(self.folder.root.name))]

    @property
    def pid(self):
        return int(self.folder.status()["pid"])

    def pause(self):
        """Let the run's process sleep once it has done an epoch, well before its last."""
        wait_for(self.folder.metrics, 180, lambda: f"an epoch: {self.log()}")
        os.kill(self.pid, signal.SIGSTOP)
        assert self.folder.status()["state"] == "running", self.log()

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def wait_state(self, state):
        wait_for(lambda: self.row.state == state, 120, lambda: f"{state}: {self.row} {self.log()}")

    def wait_done(self):
        wait_for(self.folder.result, 240, lambda: f"a result: {self.row} {self.log()}")
        assert self.folder.result()["outcome"] == "done"

    def log(self):
        logs = sorted(self.records.root.glob("*/*_log.out"))
        return "\n".join(log.read_text("utf-8", "replace")[-3000:] for log in logs)


@pytest.fixture
def trial(site, tmp_path):
    return Trial(tmp_path / "results")


@pytest.fixture
def trials(site, tmp_path):
    """As many as are asked for, each with results of its own."""
    return lambda *names: [Trial(tmp_path / name) for name in names]
