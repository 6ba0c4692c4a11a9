"""What reaches SLURM, and what is left where it refuses; its commands are scripts here."""

import contextlib
import os
import re

import begun
import pytest

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.launch import cluster as sites
from lsa_study.launch import plan, scheduler
from lsa_study.launch.cluster import Cluster, Here
from lsa_study.launch.records import LaunchFolder
from lsa_study.launch.scheduler import Rejected
from lsa_study.launch.slurm import launch
from lsa_study.rundir import RunDir

PROFILE = {
    "SQUEUE_STATES": "RUNNING", "SQUEUE_FORMAT": "%i", "SBATCH_EXPORT": "NONE",
    "SLURM_JOB_ID": "3", "SLURM_MEM_PER_CPU": "1000", "SRUN_CPUS_PER_TASK": "1",
    "SCANCEL_QOS": "long", "SINFO_FORMAT": "%N", "SACCT_FORMAT": "jobid", "SALLOC_QOS": "long",
    "SBATCH_TIMELIMIT": "5",
}  # fmt: skip
"""What a user's profile, or the session one sits in, may say to SLURM."""
KEPT = {"SLURM_CONF": "/site/slurm.conf", "SLURM_JWT": "secret"}
"""How SLURM is found."""


def asked(**resources):
    (run,) = study.load_study("table1", only="swin").runs()
    given = run.resources.model_copy(update=resources)
    return [run.__class__(**{**vars(run), "resources": given})]


def site(**wishes):
    return Cluster(check_data="job", **wishes)


@pytest.fixture
def profile(monkeypatch):
    for name, value in {**PROFILE, **KEPT}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("code", [0, 1])
def test_a_profile_reaches_no_command(slurm, profile, code):
    slurm.answers("squeue", "refused", code=code)
    before = dict(os.environ)
    with pytest.raises(Rejected, match="refused") if code else contextlib.nullcontext():
        scheduler.queue()
    assert os.environ == before
    assert slurm.environment("squeue") & {*PROFILE, *KEPT} == {*KEPT}


def test_nor_the_jobs(slurm, profile, tmp_path):
    """It is submitit that starts sbatch, and jobs inherit what that got."""
    before = dict(os.environ)
    launch(asked(), tmp_path, site())
    assert os.environ == before
    assert len(slurm.calls("sbatch")) == 1
    assert slurm.environment("sbatch") & {*PROFILE, *KEPT} == {*KEPT}


def test_a_user_s_account_stands_in_the_script(slurm, monkeypatch, tmp_path):
    monkeypatch.setenv("SBATCH_ACCOUNT", "thesis")
    monkeypatch.setenv("SBATCH_PARTITION", "long")
    (script,) = launch(asked(), tmp_path, site(partition="gpu"), dry_run=True).scripts
    assert "#SBATCH --account=thesis\n" in script
    assert "#SBATCH --partition=gpu\n" in script


@pytest.mark.parametrize(
    "words",
    [
        "allocation failure: Requested nodes are busy",
        "allocation failure: Required node not available (down, drained or reserved)",
        "allocation failure: Requested node configuration is not available now",
    ],
)
def test_what_would_wait_is_no_refusal(slurm, words):
    slurm.answers("sbatch", words, code=1)
    scheduler.try_out("#!/bin/sh\n")
    slurm.answers("sbatch", "allocation failure: Invalid account", code=1)
    with pytest.raises(Rejected, match="Invalid account"):
        scheduler.try_out("#!/bin/sh\n")


@pytest.mark.parametrize("state", ["drained", "down*", "idle*", "maint", "reserved", "draining"])
def test_what_only_nodes_out_of_service_could_take_is_no_refusal(slurm, state):
    """A trial answers the same where no node will ever fit."""
    words = "allocation failure: Requested node configuration is not available"
    slurm.answers("sbatch", words, code=1)
    slurm.answers("sinfo", f"idle\nmixed\n{state}")
    scheduler.try_out("#!/bin/sh\n")
    slurm.answers("sinfo", "idle\nmixed\nallocated\nidle~\nplanned")
    with pytest.raises(Rejected, match="node configuration"):
        scheduler.try_out("#!/bin/sh\n")


def test_a_refusal_leaves_nothing(slurm, tmp_path):
    """But what was there before, and the script that was refused."""
    slurm.answers("sbatch", "sbatch: error: Invalid account", code=1)
    launched = launch(asked(), tmp_path, site(account="lab"))
    assert (launched.exit_code, launched.queued) == (3, [])
    assert "SLURM refused array 1 of 1: Invalid account" in launched.refusal
    assert "#SBATCH --account=lab\n" in launched.scripts[0]
    assert list(rundir.runs_folder(tmp_path, "toy").iterdir()) == []
    assert LaunchFolder.of(tmp_path, "toy").arrays() == []
    (run,) = asked()
    before = RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
    before.create(run.settings, variant=run.variant)
    launch(asked(), tmp_path, site())
    assert before.settings() == run.settings
    slurm.answers("sbatch", "Submitted batch job 41")
    (array,) = launch(asked(), tmp_path, site()).queued
    assert LaunchFolder.of(tmp_path, "toy").arrays() == [array]


def test_a_dry_run_shows_the_script_that_would_be_refused(slurm, tmp_path):
    slurm.answers("sbatch", "allocation failure: Invalid account", code=1)
    launched = launch(asked(), tmp_path, site(account="lab"), dry_run=True)
    assert launched.exit_code == 3
    assert "#SBATCH --account=lab\n" in launched.scripts[0]
    assert launched.lines()[-1] == "SLURM would refuse this: Invalid account"


def test_python_is_started_as_the_site_says(slurm, tmp_path):
    command = "apptainer exec --nv '/images/my lsa.sif' python"
    (script,) = launch(asked(), tmp_path, site(python=command), dry_run=True).scripts
    (line,) = re.findall("^srun .*$", script, re.MULTILINE)
    assert "my lsa.sif" in line
    assert "-u -m submitit.core._submit" in line
    (usual,) = launch(asked(), tmp_path, site(), dry_run=True).scripts
    assert "apptainer" not in usual


def test_a_cluster_without_gpus(slurm, tmp_path):
    wishes = site(resources=Here(gpus=0, cpus=3, memory_gb=4, hours=2.5))
    (script,) = launch(asked(nodes=2, gpus=8), tmp_path, wishes, dry_run=True).scripts
    for line in ("ntasks-per-node=1", "nodes=2", "cpus-per-task=3", "mem=4GB", "time=150"):
        assert f"#SBATCH --{line}\n" in script
    assert not re.search("--gpus|--gres", script)
    assert "export LSA_GPUS=0 " in script


@pytest.mark.parametrize(
    ("asks", "gets", "parts"),
    [
        ({"nodes": 2, "gpus": 8}, {"nodes": 1}, 2),
        ({"nodes": 2, "gpus": 8}, {"nodes": 1, "gpus": 4}, 4),
        ({"gpus": 8}, {"gpus": 0}, 8),
        ({"gpus": 8}, {"cpus": 2}, 1),
        ({"gpus": 4}, {"gpus": 8}, 1),
    ],
)
def test_fewer_devices_take_more_parts(slurm, tmp_path, asks, gets, parts):
    """So that none does more images at once; the identity stays."""
    (run,) = asked(**asks)
    launch([run], tmp_path, site(resources=Here(**gets)), fit=True)
    folder = rundir.existing(tmp_path, "toy")[run.identity]
    assert folder.settings().runtime.accumulate == parts
    assert folder.settings().identity() == run.identity


def test_without_fit_parts_stay(slurm, tmp_path):
    (run,) = asked(gpus=8)
    launch([run], tmp_path, site(resources=Here(gpus=2)))
    folder = rundir.existing(tmp_path, "toy")[run.identity]
    assert folder.settings().runtime.accumulate == 1
    again = launch([run], tmp_path, site(resources=Here(gpus=2)), fit=True)
    (reason,) = again.skipped
    first = f"lsa gc STUDY --tier toy --results {tmp_path} moves them away first"
    assert reason == f"begun with steps in fewer than 4 parts; {first}"


def test_parts_that_devices_cannot_share_are_refused(slurm, tmp_path):
    with pytest.raises(ConfigError, match="8 parts, which 3 devices cannot share evenly"):
        launch(asked(gpus=8), tmp_path, site(resources=Here(gpus=3)), fit=True)
    assert list(tmp_path.iterdir()) == [slurm.folder]


def test_more_devices_than_groups_of_batch_norm_are_refused(slurm, tmp_path, monkeypatch):
    """Before anything is queued, and said by the plan."""
    loaded = study.load_study("table6", tier="paper", only="dwnet")
    many = site(resources=Here(nodes=2, gpus=8))
    why = r"dwnet-s0-\w+: runtime.accumulate=1 on 16 devices: train.batch_size=1024 cannot be cut"
    with pytest.raises(ConfigError, match=f"{why}.*give processes times runtime.accumulate: 1, 2"):
        launch(loaded.runs(), tmp_path, many)
    assert list(tmp_path.iterdir()) == [slurm.folder]
    assert "lsa launch refuses" not in plan.plan_text([loaded], tmp_path)
    monkeypatch.setattr(plan, "read_cluster", lambda: many)
    assert re.search(f"cluster   lsa launch refuses {why}", plan.plan_text([loaded], tmp_path))


def test_the_plan_names_smaller_nodes(tmp_path, monkeypatch):
    loaded = study.load_study("table5", tier="paper")
    assert "--fit" not in plan.plan_text([loaded], tmp_path)
    small = Cluster(resources=Here(nodes=1, gpus=2))
    monkeypatch.setattr(plan, "read_cluster", lambda: small)
    asks = {run.resources.nodes * run.resources.gpus for run in loaded.runs()}
    assert max(asks) > 2
    line = ", ".join(f"2 of {count}" for count in sorted(asks))
    text = plan.plan_text([loaded], tmp_path)
    assert f"cluster   {line} devices a run" in text
    assert f"lsa launch table5 --tier paper --results {tmp_path} --fit" in text
    monkeypatch.setattr(plan, "read_cluster", sites.Cluster)
    assert "--fit" not in plan.plan_text([loaded], tmp_path)


def test_detectors_wait_for_the_classifiers_of_another_study(slurm, tmp_path):
    """Refused without them; of a study that is queued its job is waited for."""
    classifiers, detectors = (study.load_study(path).runs() for path in begun.both(tmp_path))
    with pytest.raises(EnvironmentLacks, match="train that row of classifiers first"):
        launch(detectors, tmp_path / "results", site())
    assert slurm.calls("sbatch") == []
    assert not rundir.runs_folder(tmp_path / "results", "toy").exists()
    (array,) = launch(classifiers, tmp_path / "results", site()).queued
    slurm.queue(*(f"{job}|PENDING|Priority|{array.comment}" for job in array.jobs().values()))
    slurm.answers("sbatch", "Submitted batch job 42")
    launched = launch(detectors, tmp_path / "results", site())
    assert [array.job for array in launched.queued] == ["42"]
    scripts = (path.read_text() for path in (tmp_path / "results").rglob("*.sh"))
    assert any("#SBATCH --dependency=afterany:41_0:41_1\n" in script for script in scripts)
