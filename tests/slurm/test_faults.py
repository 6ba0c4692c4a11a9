"""What happens to jobs, caused for real; every run ends with the weights of the undisturbed one."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lsa_study.launch import scheduler
from lsa_study.launch.cancel import cancel
from lsa_study.launch.logs import logs
from lsa_study.rundir import RunDir

pytestmark = pytest.mark.slurm


def printed(trial, **which):
    pieces = []
    logs(trial.results, "swin", pieces.append, **which)
    return "".join(pieces)


def ended_as_if_nothing_had_happened(trial, undisturbed, *ends):
    trial.wait_done()
    assert trial.folder.weights.read_bytes() == undisturbed
    assert trial.ends() == [*ends, "done"]
    assert trial.row.attempts == len(ends) + 1


def leave_half_written_files(trial):
    """As a process does that is killed while submitit saves."""
    (array,) = trial.records.arrays()
    for name in ("submitted.pkl", "0_result.pkl"):
        path = trial.records.folder_of(array) / f"{array.job}_{name}.save_tmp"
        path.write_text("half")


def test_leaving_and_coming_back(site, trials, undisturbed):
    """A signal, a plain requeue, and a time limit of one minute, each to a run of its own."""
    signalled, requeued, limited = trials("signalled", "requeued", "limited")
    limited.launch(limited.asked(hours=1 / 60))
    signalled.launch()
    requeued.launch()
    for trial in (limited, signalled, requeued):
        trial.pause()
    assert (signalled.row.state, signalled.row.attempts) == ("running", 1)
    leave_half_written_files(requeued)
    site.run("scancel", "--signal=USR2", signalled.row.job)
    signalled.go_on()
    site.run("scontrol", "requeue", requeued.row.job)  # this wakes the process too
    signalled.wait_state("queued")
    assert signalled.folder.status()["state"] == "stopped"
    ended_as_if_nothing_had_happened(signalled, undisturbed, "preempted")
    ended_as_if_nothing_had_happened(requeued, undisturbed, "preempted")
    ended_as_if_nothing_had_happened(limited, undisturbed, "timeout")
    assert (signalled.row.state, signalled.row.note) == ("done", "life 2 (1 preemption)")
    assert limited.row.note == "life 2 (1 time limit)"
    assert signalled.row.gpu_hours > 0
    site.drain()
    assert scheduler.ended([requeued.row.job])[requeued.row.job].state == "COMPLETED"
    assert "put back into the queue" in printed(signalled, attempt=1)
    assert "resumed at epoch" in printed(signalled, attempt=2)
    assert "resumed at epoch" not in printed(signalled, attempt=1)


def test_a_higher_partition_preempts(site, trial, undisturbed):
    trial.launch()
    trial.pause()
    site.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
    ended_as_if_nothing_had_happened(trial, undisturbed, "preempted")


def test_kill_and_damage_lose_nothing(site, trial, undisturbed):
    """Killed; the newest checkpoint torn; the status overwritten. Accounting does not answer."""
    trial.launch()
    site.wait_for(lambda: trial.folder.previous_checkpoint.exists(), what=lambda: "two checkpoints")
    trial.pause()
    job = trial.row.job
    os.kill(trial.pid, signal.SIGKILL)
    trial.wait_state("lost")
    assert "killed" in trial.row.note
    assert scheduler.ended(["999999", job]).keys() == {job}
    torn = trial.folder.last_checkpoint.read_bytes()
    trial.folder.last_checkpoint.write_bytes(torn[: len(torn) // 2])
    (trial.folder.root / "status.json").write_bytes(os.urandom(100))
    assert trial.row.state == "lost"
    assert trial.retry().launched.count == 1
    assert trial.retry().launched is None, "the run is queued already"
    ended_as_if_nothing_had_happened(trial, undisturbed, "lost")


def test_a_lost_node_is_replaced_once_its_processes_are_gone(site, trial, undisturbed):
    """SLURM gives the node up while the run lives on: the next life waits for its end."""
    trial.launch()
    trial.pause()
    (node,) = site.run("squeue", "--noheader", "-o", "%N").split()
    pid = trial.pid
    site.kill_node(node)
    site.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    try:
        site.wait_for(lambda: f"waiting for process {pid}" in trial.log(), what=trial.log)
        assert len(trial.folder.attempts()) == 1, "two processes train one run"
        os.kill(pid, signal.SIGKILL)
        ended_as_if_nothing_had_happened(trial, undisturbed, "node")
    finally:
        site.start_node(node)
        site.wait_for(lambda: site.idle_nodes() == 2, what=lambda: "the node to come back")
    assert trial.row.note == "life 2 (1 lost node)"


def test_the_controller_may_restart(site, trial, undisturbed):
    trial.launch()
    trial.pause()
    site.stop_controller()
    assert trial.row.state == "running", "the heartbeat is enough"
    os.kill(trial.pid, signal.SIGUSR2)
    trial.go_on()
    site.wait_for(lambda: trial.folder.status()["state"] == "stopped", what=trial.log)
    time.sleep(3)
    site.start_controller()
    ended_as_if_nothing_had_happened(trial, undisturbed, "preempted")


def test_two_nodes_train_one_run_together(site, trial, tmp_path):
    """A process on each of two nodes; told to leave and back again, they end where two others did.

    The others are started here, without SLURM and undisturbed.
    """
    (run,) = trial.asked(nodes=2)
    trial.launch([run])
    trial.pause()
    assert site.run("squeue", "--noheader", "-o", "%N").split() == ["n[1-2]"]
    site.run("scancel", "--signal=USR2", trial.row.job)
    trial.go_on()
    others = RunDir(tmp_path / run.name)
    others.create(run.settings, variant=run.variant)
    train_together(others, processes=2)
    ended_as_if_nothing_had_happened(trial, others.weights.read_bytes(), "preempted")
    assert "=== life 2: job" in printed(trial, attempt=2, rank=1)
    assert "process 1" in printed(trial, rank=1)


def train_together(folder, *, processes):
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        common["MASTER_PORT"] = str(free.getsockname()[1])
    command = [sys.executable, "-m", "lsa_study.training", str(folder.root)]
    started = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    assert [process.wait(120) for process in started] == [0] * processes


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "results"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_costs_nothing_but_time(site, trial, small_disk, undisturbed):
    trial.launch()
    trial.pause()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        all(file.write(bytes(4096)) for _ in itertools.count())
    trial.go_on()
    site.drain()
    assert (trial.row.state, trial.row.cause) == ("failed", "disk")
    assert trial.retry().launched is None, "a full disk does not mend itself"
    filler.unlink()
    assert trial.retry("disk").launched.count == 1
    trial.wait_done()
    assert trial.folder.weights.read_bytes() == undisturbed


def test_cancelling_saves_what_runs_and_drops_what_waits(site, trial, undisturbed):
    trial.wishes(throttle=1)
    trial.launch(trial.asked(only="swin,net1"))
    trial.pause()
    assert trial.status()["net1", 0].state == "queued"
    done = cancel(trial.results, ["table1"])
    assert [len(done.pending), len(done.running)] == [1, 1]
    trial.go_on()
    site.drain()
    rows = trial.status().values()
    assert {(row.state, row.cause) for row in rows} == {("stopped", "cancelled")}
    assert trial.folder.last_checkpoint.exists()
    assert trial.retry().launched is None, "what the user cancelled is not queued by itself"
    assert trial.launch().count == 1
    ended_as_if_nothing_had_happened(trial, undisturbed, "cancelled")
