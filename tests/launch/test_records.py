"""Launch records: who may have written them, and which jobs are theirs."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.config.experiment import Resources
from lsa_study.errors import Refused
from lsa_study.launch.cancel import TAKEN_OUT, cancel
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import Array, LaunchFolder
from lsa_study.launch.slurm import launch
from lsa_study.launch.status import status
from lsa_study.rundir import RunDir

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def made(tmp_path):
    """A run folder, the launch folder beside it, and a record of its job 7."""
    (run,) = study.load_study("table1", only="swin").runs()
    folder = RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
    folder.create(run.settings, variant=run.variant)
    records = LaunchFolder.of(tmp_path, "toy")
    array = Array("key", (run.name,), "table1", Resources(), str(os.getuid()), 0.0, "7", "study")
    records.write(array)
    return run, records, array


def writes(records, array):
    return [
        lambda: records.write(array),
        lambda: records.note_life("0123456789", {}),
        lambda: records.lock().__enter__(),
    ]


def test_nobody_else_can_look_into_records(made):
    _, records, _ = made
    for folder in (records.root, records.root / "key"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_records_that_others_can_write_are_refused(made, mode):
    _, records, array = made
    records.root.chmod(mode)
    for use in (records.arrays, records.in_hand, *writes(records, array)):
        with pytest.raises(Refused, match=r"others can write here, .* chmod go-w "):
            use()
    records.root.chmod(0o700)
    assert records.arrays() == [array]


def test_a_link_in_place_of_the_folder_is_refused(made, tmp_path):
    """It may lead to a folder that is private, and made by somebody for us."""
    _, records, array = made
    records.root.rename(tmp_path / "elsewhere")
    records.root.symlink_to(tmp_path / "elsewhere")
    for use in (records.arrays, *writes(records, array)):
        with pytest.raises(Refused, match="or it is a link"):
            use()
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    with pytest.raises(Refused, match="or it is a link"):
        records.folder("key")
    assert not (tmp_path / "elsewhere").exists()


@as_root
@pytest.mark.parametrize("link", [False, True])
def test_another_user_s_records_are_neither_read_nor_written(made, tmp_path, link):
    _, records, array = made
    if link:
        records.root.rename(tmp_path / "elsewhere")
        records.root.symlink_to(tmp_path / "elsewhere")
    os.chown(records.root, STRANGER, -1, follow_symlinks=False)
    assert records.arrays() == []
    for use in writes(records, array):
        with pytest.raises(Refused, match="made by another user, who alone can launch there"):
            use()


@contextlib.contextmanager
def acting_as(user):
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@as_root
def test_a_colleague_can_ask_for_the_status():
    """Without the records: what runs is known by its heartbeat."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        results = Path(folder)
        results.chmod(0o755)
        (run,) = study.load_study("table1", only="swin").runs()
        RunDir(rundir.runs_folder(results, "toy") / run.name).create(run.settings, variant="swin")
        records = LaunchFolder.of(results, "toy")
        records.folder("cancelled").joinpath(run.identity).touch()
        records.note_life(run.identity, {})
        assert records.is_cancelled(run.identity)
        with acting_as(STRANGER):
            (row,) = status(results)
            assert row.state == "waiting"
            with pytest.raises(Refused, match="made by another user"):
                records.folder("")


def test_a_number_alone_makes_no_job_ours(slurm, made, tmp_path):
    """Numbers begin anew where a controller has lost its state."""
    run, records, array = made
    for comment in ("", "somebody's thesis", "lsa-study:other", f"{array.comment}x"):
        slurm.queue(f"7|RUNNING|None|{comment}")
        assert records.in_hand() == ([array], {})
        (row,) = status(tmp_path)
        assert (row.state, row.cause) == ("lost", "lost")
        assert cancel(tmp_path, ["table1"]) == {"neither queued nor running": [run.name]}
    assert slurm.calls("scancel") == []
    slurm.queue(f"7|PENDING|Priority|{array.comment}")
    assert status(tmp_path)[0].state == "queued"
    assert cancel(tmp_path, ["table1"]) == {TAKEN_OUT: [run.name]}
    assert slurm.calls("scancel") == ["7"]


def test_a_stranger_s_end_is_not_that_of_the_run(slurm, made, tmp_path):
    _, _, array = made
    end = "ClusterName = study\nJobId=7 JobState={} ExitCode=0:125"
    slurm.answers("sacct", "7|OUT_OF_MEMORY|0:125|")
    for words, cause in (
        (end.format("OUT_OF_MEMORY"), "lost"),
        (end.format("PENDING"), "lost"),
        (end.format("OUT_OF_MEMORY") + " Comment=thesis", "lost"),
        (end.format("OUT_OF_MEMORY") + f" Comment={array.comment}", "oom-host"),
        ("ClusterName = study", "oom-host"),  # only accounting remembers, and no comments
    ):
        slurm.answers("scontrol", words)
        (row,) = status(tmp_path)
        assert row.cause == cause
    slurm.answers("sacct", "7|OUT_OF_MEMORY|0:125|thesis")
    assert status(tmp_path)[0].cause == "lost"


def test_a_job_whose_launcher_died_is_found_by_its_key(slurm, made):
    _, records, array = made
    records.write(Array(**{**vars(array), "job": None, "cluster": ""}))
    slurm.queue(f"12|PENDING|Priority|{array.comment}", "7|RUNNING|None|thesis")
    (found,), queue = records.in_hand()
    assert (found.job, found.cluster, [*queue]) == ("12", "study", ["12"])
    assert records.arrays() == [found]


def test_jobs_of_another_cluster(slurm, made, tmp_path):
    """They are not asked for here; who cancels the run may queue it here."""
    run, _, _ = made
    slurm.cluster("west")
    slurm.queue("7|RUNNING|None|thesis")
    (row,) = status(tmp_path)
    assert (row.state, row.note) == ("queued", "on cluster study")
    site = Cluster(check_data="job")
    refused = launch([run], tmp_path, site)
    assert refused.skipped == {"queued or running already": [run.name]}
    assert cancel(tmp_path, ["table1"]) == {TAKEN_OUT: [run.name]}
    assert slurm.calls("scancel") == []
    (queued,) = launch([run], tmp_path, site).queued
    assert (queued.job, queued.cluster) == ("41", "west")
