"""What a job finds out about itself; the rest of it needs a scheduler (tests/slurm)."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from lsa_study.config import study
from lsa_study.launch import process
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.job import RunTask, _Life, rank_variables
from lsa_study.launch.records import LaunchFolder, error_of
from lsa_study.launch.retry import retry
from lsa_study.launch.scheduler import GONE, SlurmJob, plain_words, seconds_left
from lsa_study.launch.status import RunStatus, judge
from lsa_study.rundir import RunDir
from lsa_study.training import StopOnSignals
from lsa_study.training.monitor import Monitor

TWO_NODES = {
    "SLURM_NTASKS": "16", "SLURM_JOB_ID": "812", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}  # fmt: skip


def test_processes_find_each_other():
    told = rank_variables(TWO_NODES)
    assert told["MASTER_ADDR"] == "10.0.0.7"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [told[name] for name in names] == ["9", "16", "1", "8"]
    assert rank_variables({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "812"}) == {}


def test_the_port_moves_with_every_restart_and_job():
    ports = {
        rank_variables({**TWO_NODES, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": n})["MASTER_PORT"]
        for job in ("812", "813", "814")
        for n in ("0", "1", "2")
    }
    assert len(ports) == 9
    assert all(1024 < int(port) < 32768 for port in ports), "the system hands out those above"


def test_an_element_of_an_array_knows_its_name(tmp_path):
    """The user cancelled the run meanwhile, so that it is not trained."""
    run = RunDir(tmp_path / "toy" / "runs" / "net1-s0-abcdef0123")
    mark = LaunchFolder.of_run(run.root).cancelled("abcdef0123")
    mark.parent.mkdir(parents=True)
    mark.touch()
    element = {"SLURM_ARRAY_JOB_ID": "800", "SLURM_ARRAY_TASK_ID": "12", "SLURM_RESTART_COUNT": "3"}
    code = "import sys; from lsa_study.launch.job import RunTask; print(RunTask(sys.argv[1])())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root)], env=os.environ | TWO_NODES | element,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.fullmatch(r"=== life 1: job 800_12 on \S+, process 9\nstopped\n", done.stdout)


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


def test_equal_errors_are_the_same(tmp_path):
    """The run's own name does not make two errors different; another line of code does."""
    errors = []
    for run, line in zip(
        study.load_study("table1", only="net1,net2,net3").runs(), (7, 7, 8), strict=True
    ):
        folder = RunDir(tmp_path / run.name)
        folder.create(run.settings, variant=run.variant)
        with folder.owned() as (_, attempt):
            (folder.attempt_folder(attempt) / "log.txt").write_text(TRACE.format(line=line))
        message = f"{folder.root}: KeyError 'rel_pos'"
        folder.change_state("failed", cause="bug", message=message)
        errors.append(error_of(folder))
    assert errors[0] == errors[1] != errors[2]
    assert error_of(folder, since=time.time() + 1) is None, "it was queued again since"
    folder.change_state("failed", cause="node")
    assert error_of(folder) is None, "the next run may meet a better node"


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
    job = SlurmJob("7", end[0], exit_code=end[1]) if end else SlurmJob("7", GONE)
    folder = RunDir(Path("swin-s0-0123456789"))
    row = RunStatus("toy", "swin", 0, "0123456789", folder, "running")
    verdict = judge(row, False, job, 100.0, last=last)
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


# -- lives that gain nothing --------------------------------------------------------------------


def note(run, *lives):
    """Lives of a run: its job, what was saved at its begin and at its end, and why it ended."""
    records = LaunchFolder.of_run(run.root)
    for number, (job, begun, ended, why) in enumerate(lives):
        facts = {"job": job, "restart": number, "start": 0.0, "host": "n1", "gpus": 1}
        end = {} if why is None else {"end": 1.0, "why": why, "ended_at": ended}
        records.note_life(run.identity, facts | {"begun_at": begun} | end)
    return records


STILL = ("7", [0, 0], [0, 0], "preempted")


@pytest.mark.parametrize(
    ("lives", "of_run", "of_job"),
    [
        ([STILL] * 3, True, True),
        ([STILL] * 2, False, False),
        ([("7", [0, 0], [0, 9], "timeout"), *[STILL] * 3], True, True),
        ([*[STILL] * 3, ("7", [0, 0], [0, 1], "timeout")], False, False),
        ([*[STILL] * 2, ("8", [0, 0], [0, 0], "lost")], True, False),
        ([*[STILL] * 2, ("7", [0, 0], None, None)], False, False),
        ([*[STILL] * 3, ("7", [0, 0], None, None)], True, True),
        ([("7", [2, 5], [3, 0], "preempted"), *[("7", [3, 0], [3, 0], "timeout")] * 3], True, True),
        ([("7", [2, 5], [2, 6], "preempted")] * 3, False, False),
    ],
)
def test_three_lives_that_saved_nothing_are_idle(make_run, lives, of_run, of_job):
    run = make_run()
    records = note(run, *lives)
    assert records.idle(run.identity) == of_run
    assert records.idle(run.identity, "7") == of_job


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("3:04", 184), ("UNLIMITED", None), ("", None)],
)
def test_the_time_that_is_left(slurm, printed, seconds):
    slurm.answers("squeue", printed)
    assert seconds_left("7") == seconds


class Job:
    """A life of a run in job 7, without training."""

    def __init__(self, run, monkeypatch, slurm):
        self.run, self.slurm, self.trained = run, slurm, 0
        monkeypatch.setenv("LSA_JOB", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
        monkeypatch.setattr(process, "train", self.train)
        self.stop = StopOnSignals()
        self.saves = (0, 0)

    def train(self, *_):
        self.trained += 1
        self.stop.signal = signal.SIGUSR2
        self.run.write_status(self.run.status().model_copy(update={"saved": self.saves}))
        return "stopped"

    def live(self):
        with self.stop:  # who leaves ignores SIGTERM from then on
            return _Life(self.run, self.stop).carry_out()

    @property
    def requeued(self):
        return "requeue 7" in self.slurm.calls("scontrol")


@pytest.fixture
def job(make_run, monkeypatch, slurm):
    return Job(make_run(), monkeypatch, slurm)


@pytest.mark.parametrize(
    ("last", "cause"), [("preempted", "preempted"), ("timeout", "timeout"), (None, "lost")]
)
def test_a_job_that_never_saves_is_given_up(job, last, cause, tmp_path):
    """None: killed before it could note its end, and started again by SLURM."""
    note(job.run, STILL, STILL, ("7", [0, 0], [0, 0], last))
    with pytest.raises(SystemExit) as ended:
        job.live()
    assert (ended.value.code, job.trained, job.requeued) == (1, 0, False)
    status = job.run.status()
    assert (status.state, status.cause) == ("failed", cause)
    ends = f"preempted, preempted, {last or 'node'}"
    assert f"3 lives in a row ended ({ends}) with nothing saved; give it more" in status.message
    assert f"lsa retry --cause {cause}" in status.message
    assert (
        "its last 3 lives gained nothing" in retry(tmp_path / "results", (), Cluster()).lines()[0]
    )
    asked = retry(tmp_path / "results", (), Cluster(), causes=[cause])
    assert [run.identity for run in asked.local] == [job.run.identity]


@pytest.mark.parametrize(("saved", "goes_on"), [((0, 0), False), ((0, 1), True)])
def test_it_goes_back_into_the_queue_only_for_something(job, saved, goes_on):
    """The third life ends by a signal that asks it to come back."""
    note(job.run, STILL, STILL)
    job.saves = saved
    if goes_on:
        assert job.live() == "stopped"
    else:
        with pytest.raises(SystemExit):
            job.live()
        assert job.run.status().state == "failed"
    assert (job.trained, job.requeued) == (1, goes_on)


def test_other_jobs_of_the_run_do_not_count(job):
    """It was asked for again, perhaps with more hours."""
    note(job.run, *[("6", [0, 0], [0, 0], "timeout")] * 3)
    assert job.live() == "stopped"
    assert job.requeued


def test_records_that_cannot_be_written_keep_no_run_from_training(job):
    """As after ``chmod -R g+w``, for a group."""
    records = LaunchFolder.of_run(job.run.root)
    records.folder("lives")
    records.root.chmod(0o770)
    assert job.live() == "stopped"
    assert job.trained == 1


def test_what_is_saved_outlives_attempts_that_die_early(make_run):
    run = make_run()
    for life in range(2):
        with run.owned() as (mine, attempt), Monitor(mine, run.settings(), attempt, None) as seen:
            if life == 0:
                seen.saved(1.5, 1, 5)
    status = run.status()
    assert (status.attempt, status.epoch, status.saved) == (2, 0, (1, 5))
