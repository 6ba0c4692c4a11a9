"""What a job finds out about itself; the rest of it needs a scheduler (tests/slurm)."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from lsa_study.config import study
from lsa_study.launch.job import JobContext, RunTask
from lsa_study.launch.records import Failure
from lsa_study.launch.scheduler import SlurmJob, plain_words
from lsa_study.launch.status import Job, RunStatus, judge
from lsa_study.rundir import RunDir

TWO_NODES = {
    "SLURM_NTASKS": "16", "SLURM_JOB_ID": "812", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}  # fmt: skip


def test_processes_find_each_other():
    told = JobContext.of(TWO_NODES).variables
    assert told["MASTER_ADDR"] == "10.0.0.7"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [told[name] for name in names] == ["9", "16", "1", "8"]
    assert JobContext.of({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "812"}).variables == {}


def test_the_port_moves_with_every_restart_and_job():
    ports = {
        JobContext.of(TWO_NODES | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": count}).variables[
            "MASTER_PORT"
        ]
        for job in ("812", "813", "814")
        for count in ("0", "1", "2")
    }
    assert len(ports) == 9
    assert all(1024 < int(port) < 32768 for port in ports), "the system hands out those above"


def test_an_element_of_an_array_knows_its_name():
    assert JobContext.of(TWO_NODES).job == "812"
    element = {"SLURM_ARRAY_JOB_ID": "800", "SLURM_ARRAY_TASK_ID": "12"}
    place = JobContext.of(TWO_NODES | element | {"SLURM_RESTART_COUNT": "3"})
    assert (place.job, place.restart, place.rank, place.count) == ("800_12", 3, 9, 16)


def test_the_payload_is_a_path():
    """It survives pickling by reference, and submitit finds what to queue again."""
    task = RunTask("/results/toy/runs/swin-s0-0123456789")
    assert len(pickle.dumps(task)) < 200
    assert pickle.loads(pickle.dumps(task)) == task
    again = DelayedSubmission(task)._checkpoint_function()
    assert again.function == task


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_the_first_signal_counts(number):
    code = (
        "import os, signal, sys; from lsa_study.training import StopOnSignals\n"
        "leave = StopOnSignals().install(); before = leave()\n"
        "for n in (int(sys.argv[1]), signal.SIGTERM): os.kill(os.getpid(), n)\n"
        "sys.exit(0 if not before and leave() and leave.signal == int(sys.argv[1]) else 1)"
    )
    command = [sys.executable, "-c", code, str(int(number))]
    assert subprocess.run(command, check=False).returncode == 0


TRACE = 'Traceback (most recent call last):\n  File "loop.py", line {line}, in _step\n'


def test_equal_errors_have_equal_signatures(tmp_path):
    """The run's own name does not make two errors different; another line of code does."""
    signatures = []
    for run, line in zip(
        study.load_study("table1", only="net1,net2,net3").runs(), (7, 7, 8), strict=True
    ):
        folder = RunDir(tmp_path / run.name)
        folder.create(run.settings, variant=run.variant)
        with folder.owned() as (_, attempt):
            (folder.attempt_folder(attempt) / "log.txt").write_text(TRACE.format(line=line))
        failure = Failure.of(folder, "bug", f"{folder.root}: KeyError 'rel_pos'")
        signatures.append(failure.signature)
    assert signatures[0] == signatures[1] != signatures[2]


@pytest.mark.parametrize(
    ("end", "last", "state", "cause"),
    [
        (("OUT_OF_MEMORY", "0:125"), [], "failed", "oom-host"),
        (("NODE_FAIL", "0:0"), [], "failed", "node"),
        (("TIMEOUT", "0:0"), [], "failed", "timeout"),
        (("CANCELLED", "0:15"), [], "stopped", "cancelled"),
        (("FAILED", "0:9"), [], "lost", "lost"),
        (("FAILED", "137:0"), ["Detected 1 oom-kill event"], "failed", "oom-host"),
        (("FAILED", "28:0"), [], "failed", "disk"),
        (("FAILED", "1:0"), ["No space left on device"], "failed", "disk"),
        (("FAILED", "1:0"), ["ModuleNotFoundError: No module named 'x'"], "failed", "import"),
        (("FAILED", "1:0"), ["Segmentation fault"], "failed", "bug"),
        (("COMPLETED", "0:0"), [], "failed", "bug"),
        (None, ["KeyError"], "lost", "lost"),
    ],
)  # fmt: skip
def test_why_a_run_is_gone(end, last, state, cause):
    known = end and SlurmJob("7", end[0], exit_code=end[1])
    job = Job("7", Path("7_0_log.out"), ended=known, last=last)
    row = RunStatus("swin-s0-0123456789", "0123456789", "swin", 0, "toy", "running")
    verdict = judge(row, False, job, 100.0)
    assert (verdict.state, verdict.cause) == (state, cause)
    assert verdict.note


def test_complaints_lose_the_names_of_programs():
    told = (
        "sbatch: error: invalid partition specified: gpuu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert plain_words(told) == "Batch job submission failed: Invalid partition name specified"
    assert plain_words("allocation failure: Invalid job array specification") == (
        "Invalid job array specification"
    )
    assert plain_words("") == ""
