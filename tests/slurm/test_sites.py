"""Clusters as they are: what happens to them, and how they differ from the one at home."""

import sys
import time

import pytest
from slurm_site import count, missing, running
from slurm_summary import prove

from lsa_study.launch import scheduler
from lsa_study.launch.cancel import IDLE, TAKEN_OUT, cancel
from lsa_study.launch.cluster import Here

pytestmark = pytest.mark.slurm


@pytest.fixture
def other_site():
    """A cluster that kills two seconds after it has asked to leave, and has long arrays."""
    if missing():
        pytest.skip("no SLURM here")
    with running(max_array_size=1001, kill_wait=2) as site:
        yield site


@pytest.fixture
def elsewhere(other_site, trials):
    (trial,) = trials("elsewhere")
    return trial


def test_numbers_begin_anew_and_nodes_are_drained(site, trial, undisturbed):
    """A stranger's job has the number that is on record; the run is queued beside it, and waits."""
    trial.wishes(sbatch={"hold": True})
    (array,) = trial.launch().queued
    trial.cause("state lost, job numbers begin anew")
    site.lose_state()
    number = 0
    while number < int(array.job):
        number = int(site.run("sbatch", "--parsable", "--hold", "-o/dev/null", "--wrap=true"))
    strangers = site.jobs()
    assert array.job in strangers
    assert (trial.row.state, trial.row.note) == ("lost", "job not in the queue")
    assert [*cancel(trial.results, ["swin"])] == [IDLE]
    trial.cause("all nodes drained at launch")
    trial.wishes(sbatch={})
    site.set_nodes("DRAIN")
    try:
        assert trial.launch(dry_run=True).exit_code == 0
        assert count(trial.launch()) == 1
        assert trial.row.state == "queued"
    finally:
        site.set_nodes("RESUME")
    trial.prove_whole(undisturbed)
    assert site.jobs().keys() >= strangers.keys(), "nobody else's job was touched"


def test_a_wrapper_starts_python_on_nodes_without_gpus(site, trial, undisturbed, tmp_path):
    """Its shell stays beside Python, as those of conda and containers do, and gets signals too."""
    wrapper = tmp_path / "in container"
    wrapper.write_text(f'#!/bin/sh\necho "wrapped: $*"\n{sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    trial.wishes(python=f"'{wrapper}'", resources=Here(gpus=0))
    trial.launch()
    trial.pause()
    assert "gres/gpu" not in site.run("scontrol", "show", "job", trial.row.job)
    assert "wrapped: -u -m submitit" in trial.log()
    trial.cause("USR2 to a job with a wrapper around Python")
    site.run("scancel", "--signal=USR2", trial.row.job)
    trial.go_on()
    trial.prove_whole(undisturbed)
    assert trial.ends() == ["preempted", "done"]
    assert trial.row.gpu_hours == 0


def test_a_run_that_is_always_preempted_is_given_up(other_site, elsewhere, undisturbed, tmp_path):
    """Importing takes longer than it is left after a signal, so that no life saves anything."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "torch.py").write_text("import time\ntime.sleep(600)\n")
    elsewhere.wishes(setup=[f"export PYTHONPATH={slow}:$PYTHONPATH"])
    elsewhere.launch()
    elsewhere.cause("preempted before every checkpoint")
    urgent = ("sbatch", "-purgent", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 1")
    for life in (1, 2, 3):
        elsewhere.wait_for(lambda n=life: len(elsewhere.ends()) == n, 60, elsewhere.log)
        other_site.run(*urgent)
    elsewhere.wait_state("failed")
    other_site.drain()
    assert elsewhere.row.cause == "lost"
    assert "3 lives in a row ended (node, node, node) with nothing saved" in elsewhere.row.message
    assert len(elsewhere.ends()) == 3
    assert count(elsewhere.retry()) == 0
    elsewhere.wishes(setup=[])
    assert count(elsewhere.retry("lost")) == 1
    elsewhere.prove_whole(undisturbed)


def test_a_thousand_runs_are_cancelled_at_once(other_site, elsewhere):
    runs = 1000
    entry = elsewhere.faults.cause("cancelled while pending", runs=runs)
    elsewhere.wishes(sbatch={"hold": True})
    (array,) = elsewhere.launch(elsewhere.asked(only="*", seeds=range(runs // 8))).queued
    assert len(scheduler.queue()) == len(array.runs) == runs
    begun = time.monotonic()
    done = cancel(elsewhere.results, ["table1"], confirm=lambda question: True)
    seconds = time.monotonic() - begun
    assert len(done[TAKEN_OUT]) == runs
    other_site.drain(10)
    rows = elsewhere.status().values()
    stopped = [row for row in rows if (row.state, row.cause) == ("stopped", "cancelled")]
    prove(entry, lost=runs - len(stopped))
    assert len(stopped) == runs
    assert seconds < 30
