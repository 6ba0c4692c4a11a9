"""Submitting: arrays, limits, two launchers, refusals. The jobs are held, so that none starts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from slurm_site import count, wait_for
from slurm_summary import prove
from tuned import written

from lsa_study.config import study
from lsa_study.errors import ConfigError, EnvironmentLacks, Refused
from lsa_study.launch import scheduler
from lsa_study.launch.cancel import TAKEN_OUT, cancel
from lsa_study.rundir import RunDir, identity_of, runs_folder

pytestmark = pytest.mark.slurm


@pytest.fixture
def held(trial):
    trial.wishes(sbatch={"hold": True})
    return trial


def queued(site):
    return sorted(site.jobs())


def seeds_of(array):
    return [int(re.search(r"-s(\d+)-", name)[1]) for name in array.runs]


def test_arrays_stay_under_the_index_limit(site, held):
    """MaxArraySize is 6 here: 16 runs are arrays of 6, 6 and 4, seed 0 of every row first."""
    launched = held.launch(held.asked(only="*", seeds=(0, 1)))
    assert [len(array.runs) for array in launched.queued] == [6, 6, 4]
    assert [seeds_of(array) for array in launched.queued] == [[0] * 6, [0, 0, 1, 1, 1, 1], [1] * 4]
    jobs = {job for array in launched.queued for job in array.jobs().values()}
    assert jobs == set(queued(site))
    assert count(held.launch(held.asked(only="*", seeds=(0, 1)))) == 0
    assert len(queued(site)) == 16
    assert {row.state for row in held.status().values()} == {"queued"}


def test_a_second_launch_submits_only_the_rest(site, held):
    runs = held.asked(only="*")
    held.wishes(submit_limit=5)
    first = held.launch(runs)
    assert (count(first), len(first.left), first.exit_code) == (5, 3, 1)
    assert "no more than 5 jobs" in first.lines()[-1]
    none = held.launch(runs)
    assert (none.exit_code, none.queued) == (3, [])
    assert "no more than 5 jobs" in none.lines()[-1]
    held.wishes(submit_limit=None)
    second = held.launch(runs)
    assert (count(second), second.exit_code) == (3, 0)
    assert sorted(first.left) == sorted(second.queued[0].runs)
    assert len(queued(site)) == 8


def test_what_slurm_refuses_midway_is_left(site, held):
    """The second array asks for more memory than any node has; of held jobs SLURM takes all."""
    held.wishes(sbatch={"begin": "now+1hour"})
    good, huge = held.asked(only="net1"), held.asked(only="net2", memory_gb=999)
    launched = held.launch([*good, *huge])
    assert (count(launched), launched.exit_code) == (1, 1)
    assert launched.left == [huge[0].name]
    assert "refused array 2 of 2: " in launched.refusal
    assert "Requested node configuration is not available" in launched.refusal
    assert f"job {launched.queued[0].job} is queued" in launched.refusal
    assert not (held.results / "toy" / "runs" / huge[0].name).exists()


def test_a_partition_that_is_not_there(site, held, faults):
    entry = faults.cause("partition refused by sbatch")
    held.wishes(partition="gpuu")
    for dry_run in (True, False):
        refused = held.launch(dry_run=dry_run)
        assert (refused.exit_code, len(refused.scripts)) == (3, 1)
        assert re.search("artition.*known partitions: gpu, urgent", refused.refusal)
    assert held.status() == {}
    assert site.jobs() == {}
    held.wishes(partition="gpu")
    held.launch()
    prove(entry, lost=1 - len(queued(site)))
    assert len(queued(site)) == 1


def test_a_dry_run_writes_nothing(site, held):
    held.wishes(
        partition="urgent", account="lab", qos="long", constraint=None, nice=7, throttle=2,
        gpus="gres", gpu_type=None, setup=["module load cuda"], sbatch={"mail-type": "FAIL"},
    )  # fmt: skip
    (run,) = held.asked(cpus=2, gpus=2, memory_gb=5, hours=1.5)
    launched = held.launch([run, replace(run, identity="0" * 10)], dry_run=True)
    (script,) = launched.scripts
    for line in (
        "--partition=urgent", "--account=lab", "--qos=long", "--nice=7", "--array=0-1%2",
        "--gres=gpu:2", "--ntasks-per-node=2", "--cpus-per-task=2", "--mem=5GB", "--time=90",
        "--signal=USR2@120", "--mail-type=FAIL", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda" in script
    assert re.search(r"^srun .*--cpus-per-task=2 ", script, re.MULTILINE)
    assert not held.results.exists()
    assert site.jobs() == {}


def test_ten_thousand_runs_are_planned_in_seconds(held):
    begun = time.process_time()  # not the clock: the machine may be busy with something else
    launched = held.launch(held.asked(only="*", seeds=range(1250)), dry_run=True)
    assert count(launched) == 10_000
    assert time.process_time() - begun < 10


def after(site, job):
    """What a job waits for, as SLURM tells it."""
    told = site.run("scontrol", "show", "job", job)
    return set(re.findall(r"afterany:([\d_]+)", re.search(r"Dependency=(\S+)", told)[1]))


def test_runs_wait_for_those_they_begin_from(site, held, tmp_path):
    """Queued with them, after them, or not without them."""
    path = written(tmp_path)
    later, first = study.load_study(path).runs()
    with pytest.raises(EnvironmentLacks, match=r"begins from whole .* ask for that row too"):
        held.launch([later])
    assert site.jobs() == {}
    together = held.launch(study.load_study(path, seeds=(1, 2)).runs())
    wholes, tuned = together.queued
    rows = [name.partition("-")[0] for name in (*wholes.runs, *tuned.runs)]
    assert rows == ["whole", "whole", "tuned", "tuned"]
    for job in tuned.jobs().values():
        assert after(site, job) == {*wholes.jobs().values()}
    for job in wholes.jobs().values():
        assert after(site, job) == set()
    alone = held.launch([first]).queued[0].job
    assert after(site, held.launch([later]).queued[0].job) == {alone}


def test_a_run_begins_from_another_s_weights(site, trial, tmp_path):
    runs = study.load_study(written(tmp_path), overrides=["runtime.device=cpu"]).runs()
    trial.launch(runs)
    folders = [RunDir(runs_folder(trial.results, "toy") / run.name) for run in runs]
    wait_for(lambda: all(f.result() for f in folders), 240, lambda: f"two results: {trial.log()}")
    later, first = (folder.result() for folder in folders)
    assert later.start == runs[1].name
    assert later.acc1 == first.acc1


LAUNCH = """
import json, sys
from pathlib import Path
from lsa_study.config import study
from lsa_study.launch import cluster, slurm
runs = study.load_study("table1", seeds=(0, 1)).runs()
wishes = cluster.read_cluster(flags={"check_data": "job", "sbatch": {"hold": True}})
launched = slurm.launch(runs, Path(sys.argv[1]), wishes)
print(json.dumps([name for array in launched.queued for name in array.runs]))
"""


def test_a_row_of_each_work_is_trained(site, trial):
    small = [one for one in trial.settings if not one.startswith("train.epochs")]
    rows = [
        run
        for name, row in (("ddf_table3", "ddf"), ("stem", "conv_bn_relu_05_short"))
        for run in study.load_study(
            name, only=row, seeds=[0], overrides=[*small, "train.epochs=1", "data.test_limit=64"]
        ).runs()
    ]
    assert count(trial.launch(rows)) == 2
    done = {("ddf", 0): "done", ("conv_bn_relu_05_short", 0): "done"}
    wait_for(lambda: {key: row.state for key, row in trial.status().items()} == done, 120)


def test_two_launchers_at_once_queue_each_run_once(site, trial, faults):
    entry = faults.cause("two launchers at once", runs=16)
    command = [sys.executable, "-c", LAUNCH, str(trial.results)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    names = [name for names in told for name in names]
    prove(entry, lost=16 - len(set(names)), twice=len(queued(site)) - len(set(names)))
    assert len(names) == len(set(names)) == 16
    assert len(queued(site)) == 16


def test_a_launcher_that_dies_loses_no_job(site, held, faults, tmp_path):
    """Killed after SLURM took the array and before the array's job could be noted."""
    entry = faults.cause("launcher killed while it submits", runs=16)
    real = shutil.which("sbatch")
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{real} "$@" || exit\n[ "$1" = --test-only ] || kill -9 $PPID\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(held.results)],
        env={**os.environ, "PATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    before = queued(site)
    assert len(before) == 6
    (array,) = held.records.arrays()
    assert array.job is None
    again = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(held.results)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert len(json.loads(again.stdout)) == 10
    names = {name for array in held.records.arrays() for name in array.runs}
    prove(entry, lost=16 - len(names), twice=len(queued(site)) - len(names))
    assert len(queued(site)) == 16
    assert held.records.arrays()[0].job == scheduler.array_of(before[0])


def test_the_throttle_spans_arrays(site, trial):
    """Each array waits for the end of the one before, also for that of an earlier launch."""
    trial.wishes(throttle=2, sbatch={"hold": True})
    first, second = trial.launch(trial.asked(only="*")).queued
    (third,) = trial.launch(trial.asked(seeds=(1,))).queued
    for array, before in ((second, first), (third, second)):
        told = site.run("squeue", "--noheader", "--job", array.job, "--format", "%E")
        assert f"afterany:{before.job}" in told
    script = trial.records.root / first.key / f"{first.job}_submission.sh"
    assert "--array=0-5%2" in script.read_text()


def test_many_are_cancelled_only_when_asked(site, held):
    held.launch(held.asked(only="*", seeds=(0, 1)))
    with pytest.raises(Refused, match="16 runs were left"):
        cancel(held.results, ["table1"])
    assert len(queued(site)) == 16
    with pytest.raises(ConfigError):
        cancel(held.results, [])
    done = cancel(held.results, ["table1"], confirm=lambda question: "16" in question)
    assert len(done[TAKEN_OUT]) == 16
    site.drain(10)
    rows = held.status().values()
    assert {(row.state, row.cause) for row in rows} == {("stopped", "cancelled")}


def test_missing_data_is_told_before_anything_is_queued(site, trial, tmp_path):
    trial.wishes(check_data="here")
    runs = trial.asked()
    data = runs[0].settings.data.model_copy(update={"name": "cifar10", "root": str(tmp_path)})
    settings = runs[0].settings.model_copy(update={"data": data})
    with pytest.raises(EnvironmentLacks, match="cifar10"):
        trial.launch([replace(runs[0], settings=settings, identity=settings.identity())])
    assert site.jobs() == {}


def failing(trial, tmp_path, count):
    """Runs whose data are not there; the nodes find out."""
    found = []
    for run in trial.asked(seeds=range(count)):
        data = run.settings.data.model_copy(update={"name": "cifar10", "root": str(tmp_path)})
        settings = run.settings.model_copy(update={"data": data})
        found.append(replace(run, settings=settings, identity=settings.identity()))
    return found


def test_equal_errors_hold_the_rest(site, trial, tmp_path):
    trial.wishes(throttle=1)
    trial.launch(failing(trial, tmp_path, 5))
    site.wait_for(lambda: trial.records.held(), what=trial.log)
    site.wait_for(lambda: len(site.jobs()) == 2, what=lambda: "two held jobs")
    time.sleep(2)
    assert {reason for _, reason in site.jobs().values()} <= {"JobHeldAdmin", "JobHeldUser"}
    rows = list(trial.status().values())
    assert [(row.state, row.cause) for row in rows[:3]] == [("failed", "data")] * 3
    assert [(row.state, row.note) for row in rows[3:]] == [("queued", "held")] * 2
    assert "cifar10" in rows[0].message
    assert count(trial.launch(failing(trial, tmp_path, 5))) == 0
    assert count(trial.retry()) == 0, "missing data do not come by themselves"
    trial.wishes(sbatch={"hold": True})
    assert count(trial.retry("data")) == 3
    assert trial.records.held() is None
    assert {identity_of(row.name) for row in trial.status().values()} == {
        run.identity for run in failing(trial, tmp_path, 5)
    }
