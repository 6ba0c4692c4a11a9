"""What happens to jobs, caused for real; every run ends with the weights of the undisturbed one."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from slurm_site import count

from lsa_study.config.study import find_study as study_file
from lsa_study.launch import scheduler
from lsa_study.launch.cancel import LEAVING, TAKEN_OUT, cancel
from lsa_study.launch.status import logs
from lsa_study.rundir import RunDir

pytestmark = pytest.mark.slurm


def printed(trial, **which):
    pieces = []
    logs(trial.results, "swin", pieces.append, **which)
    return "".join(pieces)


def ended_as_if_nothing_had_happened(trial, undisturbed, *ends):
    trial.prove_whole(undisturbed)
    assert trial.ends() == [*ends, "done"]
    assert trial.row.attempts == len(ends) + 1


def leave_half_written_files(trial):
    """As a process does that is killed while submitit saves."""
    (array,) = trial.records.arrays()
    for name in ("submitted.pkl", "0_result.pkl"):
        path = trial.records.root / array.key / f"{array.job}_{name}.save_tmp"
        path.write_text("half")


def test_leaving_and_coming_back(site, trials, undisturbed, monkeypatch, tmp_path):
    """A signal, a requeue, a time limit of one minute, a kill, each to a run of its own."""
    signalled, requeued, limited, killed = trials("signalled", "requeued", "limited", "killed")
    # In its first epoch it sleeps until the limit, so that no life has time for a whole one.
    long = ["train.epochs=1", "data.train_limit=1437", "train.batch_size=8"]
    (limited.run,) = limited.asked(overrides=long, hours=1 / 60)
    limited.launch()
    limited.pause(epochs=0)
    assert limited.folder.metrics() == []
    limited.cause("time limit shorter than an epoch")
    with monkeypatch.context() as patch:  # the job inherits it
        patch.setenv("PATH", f"{late_answers(tmp_path)}:{os.environ['PATH']}")
        signalled.launch()
    for trial in (requeued, killed):
        trial.launch()
    with ThreadPoolExecutor() as pool:  # side by side: they are done in seconds
        list(pool.map(lambda trial: trial.pause(epochs=2), (signalled, requeued, killed)))
    assert (signalled.row.state, signalled.row.attempts) == ("running", 1)
    leave_half_written_files(requeued)
    signalled.cause("USR2 to the job")
    site.run("scancel", "--signal=USR2", signalled.row.job)
    signalled.go_on()
    requeued.cause("SIGTERM by scontrol requeue")
    site.run("scontrol", "requeue", requeued.row.job)  # this wakes the process too
    signalled.wait_state("queued")
    assert signalled.folder.status().state == "stopped"
    kill_and_damage(site, killed, monkeypatch, tmp_path)
    ended_as_if_nothing_had_happened(killed, undisturbed, "lost")
    ended_as_if_nothing_had_happened(signalled, undisturbed, "preempted")
    ended_as_if_nothing_had_happened(requeued, undisturbed, "preempted")
    whole = limited.trained_here(limited.run, tmp_path)
    limited.wait_done()
    limits = limited.ends().count("timeout")  # on a busy machine one minute is short
    assert limits
    ended_as_if_nothing_had_happened(limited, whole, *["timeout"] * limits)
    assert re.search("resumed at epoch 1, step [1-9]", printed(limited, attempt=2))
    assert (signalled.row.state, signalled.row.note) == ("done", "life 2 (1 preemption)")
    assert limited.row.note.startswith(f"life {limits + 1} ({limits} time limit")
    assert signalled.row.gpu_hours > 0
    site.drain()
    (array,) = requeued.records.arrays()
    assert scheduler.ended({array.job: array.comment})[array.job].state == "COMPLETED"
    assert "put back into the queue" in printed(signalled, attempt=1)
    assert "resumed at epoch" in printed(signalled, attempt=2)
    assert "resumed at epoch" not in printed(signalled, attempt=1)
    assert "resumed at epoch" in printed(killed, attempt=2), "the checkpoint before the torn one"


def late_answers(tmp_path):
    """A folder for PATH whose ``scontrol`` answers once SLURM has signalled the job."""
    folder = tmp_path / "late"
    folder.mkdir()
    command = folder / "scontrol"
    command.write_text(f'#!/bin/sh\n{shutil.which("scontrol")} "$@" && sleep 2\n')
    command.chmod(0o755)
    return folder


def kill_and_damage(site, trial, monkeypatch, tmp_path):
    """Kill the process, tear the newest checkpoint, overwrite the status; without ``sacct``."""
    assert trial.folder.previous_checkpoint.exists()
    job = trial.row.job
    (array,) = trial.records.arrays()
    trial.cause("kill -9 of the process")
    os.kill(trial.pid, signal.SIGKILL)
    with monkeypatch.context() as patch:
        trial.cause("sacct absent")
        patch.setenv("PATH", str(without_accounting(tmp_path / "bin")))
        trial.wait_state("lost")
        assert "killed" in trial.row.note
        assert scheduler.ended(dict.fromkeys(["999999", job], array.comment)).keys() == {job}
    trial.cause("newest checkpoint truncated")
    torn = trial.folder.last_checkpoint.read_bytes()
    trial.folder.last_checkpoint.write_bytes(torn[: len(torn) // 2])
    trial.cause("status.json overwritten with noise")
    (trial.folder.root / "status.json").write_bytes(os.urandom(100))
    assert trial.row.state == "lost"
    assert count(trial.retry()) == 1
    assert count(trial.retry()) == 0, "the run is queued already"


def without_accounting(folder):
    """A folder for PATH that holds SLURM's commands but ``sacct`` and ``sacctmgr``."""
    folder.mkdir()
    for command in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo"):
        (folder / command).symlink_to(shutil.which(command))
    return folder


def test_a_higher_partition_preempts(site, trial, undisturbed):
    trial.launch()
    trial.pause()
    trial.cause("preemption by a higher partition")
    site.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
    ended_as_if_nothing_had_happened(trial, undisturbed, "preempted")


def test_a_lost_node_is_replaced_once_its_processes_are_gone(site, trial, undisturbed):
    """SLURM gives the node up while the run lives on: the next life waits for its end."""
    trial.launch()
    trial.pause()
    (node,) = site.run("squeue", "--noheader", "-o", "%N").split()
    pid = trial.pid
    trial.cause("slurmd killed, its node set down")
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
    trial.cause("controller restarted")
    site.stop_controller()
    assert trial.row.state == "running", "the heartbeat is enough"
    os.kill(trial.pid, signal.SIGUSR2)
    trial.go_on()
    site.wait_for(lambda: trial.folder.status().state == "stopped", what=trial.log)
    time.sleep(3)
    site.start_controller()
    ended_as_if_nothing_had_happened(trial, undisturbed, "preempted")


def test_two_nodes_train_one_run_together(site, trial, undisturbed, tmp_path):
    """A process on each of two nodes, through ``lsa launch``.

    One process is killed, later both are told to leave; they end with bitwise the weights of two
    processes that nothing happened to, started here without SLURM, and with the metrics of one
    process that takes the same batches in two parts.
    """
    launch_on_two_nodes(trial, tmp_path)
    trial.pause()
    assert site.run("squeue", "--noheader", "-o", "%N").split() == ["n[1-2]"]
    trial.cause("kill -9 of one of two nodes' processes")
    os.kill(trial.process_of(rank=1), signal.SIGKILL)
    trial.go_on()
    site.drain()
    (died,) = trial.ends()
    assert count(trial.retry()) == 1
    trial.pause(life=2)
    trial.cause("USR2 to a job on two nodes")
    site.run("scancel", "--signal=USR2", trial.row.job)
    trial.go_on()
    (run,) = trial.asked()
    others = RunDir(tmp_path / run.name)
    others.create(run.settings, variant=run.variant)
    trial.train_together(others, processes=2)
    ended_as_if_nothing_had_happened(trial, others, died, "preempted")
    assert "=== life 3: job" in printed(trial, attempt=3, rank=1)
    assert "process 1" in printed(trial, rank=1)
    one_process_agrees(trial, tmp_path)


def launch_on_two_nodes(trial, tmp_path):
    study = yaml.safe_load(study_file("table1").read_text("utf-8"))
    asked = tmp_path / "table1.yaml"
    asked.write_text(yaml.safe_dump({**study, "resources": {"nodes": 2}}))
    site_file = tmp_path / "cluster.yaml"
    site_file.write_text("check_data: job")
    sets = [word for setting in trial.settings for word in ("--set", setting)]
    command = ["launch", str(asked), "--only", "swin", *sets, "--cluster", "slurm"]
    where = ["--site", str(site_file), "--results", str(trial.results)]
    subprocess.run([sys.executable, "-m", "lsa_study.cli", *command, *where], check=True)


def one_process_agrees(trial, tmp_path):
    """Stochastic depth is drawn for each part of a batch, so one process takes two parts too."""
    together = trial.folder
    settings = together.settings()
    runtime = settings.runtime.model_copy(update={"accumulate": 2})
    alone = RunDir(tmp_path / "alone")
    alone.create(settings.model_copy(update={"runtime": runtime}), variant="swin")
    assert alone.settings().identity() == settings.identity()
    trial.train_together(alone, processes=1)
    assert alone.result().effective_batch == together.result().effective_batch == 32
    for mine, theirs in zip(alone.metrics(), together.metrics(), strict=True):
        for key in ("train_loss", "loss"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4)
        assert mine["acc1"] == pytest.approx(theirs["acc1"], abs=0.5)


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
    trial.cause("results disk full")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        all(file.write(bytes(4096)) for _ in itertools.count())
    trial.go_on()
    site.drain()
    assert (trial.row.state, trial.row.cause) == ("failed", "disk")
    assert count(trial.retry()) == 0, "a full disk does not mend itself"
    filler.unlink()
    assert count(trial.retry("disk")) == 1
    trial.prove_whole(undisturbed)


def test_cancelling_saves_what_runs_and_drops_what_waits(site, trial, undisturbed):
    trial.wishes(throttle=1, sbatch={"hold": True})
    trial.launch()
    trial.cause("cancelled while pending")
    assert len(cancel(trial.results, ["table1"])[TAKEN_OUT]) == 1
    site.drain()
    trial.wishes(sbatch={})
    trial.launch(trial.asked(only="swin,net1"))
    trial.pause()
    trial.cause("cancelled while running")
    assert trial.status()["net1", 0].state == "queued"
    done = cancel(trial.results, ["table1"])
    assert [len(done[TAKEN_OUT]), len(done[LEAVING])] == [1, 1]
    trial.go_on()
    site.drain()
    rows = trial.status().values()
    assert {(row.state, row.cause) for row in rows} == {("stopped", "cancelled")}
    assert trial.folder.last_checkpoint.exists()
    assert count(trial.retry()) == 0, "what the user cancelled is not queued by itself"
    assert count(trial.launch()) == 1
    ended_as_if_nothing_had_happened(trial, undisturbed, "cancelled")
