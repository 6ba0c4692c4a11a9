"""What happens to jobs, caused for real; each run ends with the weights of the undisturbed one."""

import pytest
from conftest import wait_for

pytestmark = pytest.mark.slurm


def job_of(site):
    (job,) = site.jobs()
    return job


def test_usr2_saves_and_requeues(site, trial, undisturbed):
    trial.launch()
    trial.wait_mid_run()
    site.run("scancel", "--signal=USR2", job_of(site))
    wait_for(lambda: trial.folder.status()["state"] == "stopped", 30, trial.log())
    trial.wait_done()
    assert trial.folder.weights.read_bytes() == undisturbed
    assert [life.why for life in trial.lives()] == ["preempted", "done"]
