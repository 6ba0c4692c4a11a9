"""A real SLURM cluster of two nodes on this machine, in a scratch folder, for tests and figures."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

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
KillWait={kill_wait}
SlurmdTimeout=5
MaxArraySize={most}
MaxJobCount=20000
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/controller.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/controller.log
SlurmdLogFile={root}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=4 RealMemory=20000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=4 RealMemory=20000 Gres=gpu:2
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


def count(launched):
    """How many runs a launch or a retry queued."""
    return sum(len(array.runs) for array in launched.queued)


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

    def __init__(self, root: Path, max_array_size: int = 6, kill_wait: int = 15) -> None:
        self.root = root
        self.root.chmod(0o755)
        controller_port, port1, port2 = free_ports(3)
        text = CONF.format(
            root=root, user=getpass.getuser(), host=socket.gethostname(), port1=port1, port2=port2,
            controller_port=controller_port, most=max_array_size, kill_wait=kill_wait,
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
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
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

    def lose_state(self):
        """Kill the controller and start one that has forgotten all; job numbers begin anew."""
        self.kill(self.root / "controller.pid", signal.SIGKILL)
        shutil.rmtree(self.root / "state")
        (self.root / "state").mkdir(mode=0o755)
        self.run("slurmctld", "-c")
        wait_for(lambda: self.idle_nodes() == 2, 60, lambda: "two idle nodes")

    def set_nodes(self, state):
        """Say of all nodes what an administrator says of them."""
        self.run("scontrol", "update", "NodeName=n1,n2", f"State={state}", "Reason=maintenance")

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


def missing():
    """SLURM's commands that are not on PATH."""
    return [command for command in NEEDED if shutil.which(command) is None]


@contextlib.contextmanager
def running(**how):
    """The started cluster, which SLURM's commands find while the block runs."""
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    site = Site(root, **how)
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
