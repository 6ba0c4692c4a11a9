"""Retries, logs and the trash for runs that no cluster ever had."""

import pytest
from tuned import written

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.config.experiment import Resources
from lsa_study.errors import ConfigError, Refused
from lsa_study.launch.cancel import discard, gc
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.records import Array, LaunchFolder
from lsa_study.launch.retry import retry
from lsa_study.launch.status import logs
from lsa_study.record import Result, Status
from lsa_study.rundir import RunDir, runs_folder


@pytest.fixture
def made(tmp_path):
    folders = {}
    for run in study.load_study("table1", only="swin,net1,net2,net3").runs():
        folders[run.variant] = RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
        folders[run.variant].create(run.settings, variant=run.variant)
    return folders


def test_the_cause_decides(tmp_path, made):
    made["swin"].write_status(
        Status(state="failed", cause="node", message="torch can use no GPU here")
    )
    made["net1"].write_status(Status(state="failed", cause="bug", message="KeyError: 'rel_pos'"))
    made["net2"].write_status(Status(state="stopped", cause="cancelled"))
    made["net3"].write_result(Result(outcome="diverged", seconds=1.0))
    by_itself = retry(tmp_path, (), Cluster())
    assert [run.variant for run in by_itself.local] == ["swin"]
    reasons = {reason.split(";")[0].split(": ")[1] for reason in by_itself.skipped}
    assert reasons == {"bug", "cancelled"}
    where = f"--tier toy --results {tmp_path}"
    assert any(one.endswith(f"lsa retry --cause bug {where}") for one in by_itself.skipped)
    asked = retry(tmp_path, (), Cluster(), causes=["bug", "cancelled"])
    assert [run.variant for run in asked.local] == ["net1", "net2"]
    assert asked.local[0].settings == made["net1"].settings()
    assert asked.local[0].identity == made["net1"].root.name[-10:]
    with pytest.raises(ConfigError, match=r"--cause bugs: no such cause; did you mean bug\?"):
        retry(tmp_path, (), Cluster(), causes=["bugs"])


def test_out_of_memory_keeps_the_effective_batch(tmp_path, made):
    made["swin"].write_result(Result(outcome="oom", reason="epoch 1, step 1", seconds=1.0))
    before = made["swin"].settings()
    offered = retry(tmp_path, (), Cluster(), causes=["oom"])
    assert offered.local == []
    hint = f"lsa retry --cause oom --accumulate 2 --tier toy --results {tmp_path}"
    assert hint in offered.lines()[0]
    (run,) = retry(tmp_path, (), Cluster(), causes=["oom"], accumulate=2).local
    assert run.identity == before.identity()
    after = made["swin"].settings()
    assert after.runtime.accumulate == 2
    assert after.science() == before.science()
    assert made["swin"].result() is None
    (old,) = (tmp_path / "toy" / ".trash").iterdir()
    assert RunDir(old).result().outcome == "oom"


def test_more_parts_than_groups_of_batch_norm_allow_are_not_tried(tmp_path):
    """Offered is what is accepted; what is not leaves the old folder where it is."""
    (run,) = study.load_study("table6", tier="paper", only="dwnet").runs()
    folder = RunDir(runs_folder(tmp_path, "paper") / run.name)
    folder.create(run.settings, variant=run.variant)
    folder.write_result(Result(outcome="oom"))
    offered = retry(tmp_path, (), Cluster(), causes=["oom"])
    assert "lsa retry --cause oom --accumulate 8" in offered.lines()[0]
    refused = retry(tmp_path, (), Cluster(), causes=["oom"], accumulate=16)
    assert refused.local == []
    assert "cannot be cut into 16 parts of a multiple of 128 images" in refused.lines()[0]
    assert "give runtime.accumulate: 1, 2, 4 or 8" in refused.lines()[0]
    assert folder.result().outcome == "oom"
    (again,) = retry(tmp_path, (), Cluster(), causes=["oom"], accumulate=8).local
    assert again.settings.runtime.accumulate == 8
    folder.write_result(Result(outcome="oom"))
    (line,) = retry(tmp_path, (), Cluster(), causes=["oom"]).lines()
    assert "train.norm_batch=64 and runtime.accumulate=16 (batch norm then takes other" in line


def test_a_finer_run_still_begins_from_its_row(tmp_path):
    later, first = study.load_study(written(tmp_path)).runs()
    folder = RunDir(runs_folder(tmp_path, "toy") / later.name)
    folder.create(later.settings, variant=later.variant, start=later.start)
    folder.write_result(Result(outcome="oom"))
    (run,) = retry(tmp_path, (), Cluster(), causes=["oom"], accumulate=2).local
    assert (run.identity, run.start) == (later.identity, first.identity)
    assert folder.config()["start"] == first.identity


def test_lives_that_gain_nothing_end_the_retries(tmp_path, made):
    made["swin"].write_status(Status(state="running", epoch=1, step=3))
    identity = made["swin"].root.name[-10:]
    records = LaunchFolder.of(tmp_path, "toy")
    with records.lock():
        for job in ("1", "2", "3"):
            facts = {"job": job, "restart": 0, "start": 0.0, "host": "n1", "gpus": 1}
            end = {"end": 1.0, "why": "lost", "ended_at": [1, 3]}
            records.note_life(identity, facts | {"begun_at": [1, 3]} | end)
    refused = retry(tmp_path, ["swin"], Cluster())
    assert refused.local == []
    assert "its last 3 lives gained nothing" in refused.lines()[0]
    assert len(retry(tmp_path, ["swin"], Cluster(), causes=["lost"]).local) == 1


def test_logs_of_each_attempt(tmp_path, made):
    for word in ("first", "second"):
        with made["swin"].owned() as (_, attempt):
            (made["swin"].attempt_folder(attempt) / "log.txt").write_text(f"{word} life\n")
    pieces = []
    logs(tmp_path, "swin", pieces.append)
    logs(tmp_path, "swin", pieces.append, attempt=2)
    assert pieces == ["first life\nsecond life\n", "second life\n"]
    with pytest.raises(ConfigError, match="has printed nothing in life 3"):
        logs(tmp_path, "swin", pieces.append, attempt=3)
    with pytest.raises(ConfigError, match="process 1 has printed nothing yet"):
        logs(tmp_path, "swin", pieces.append, rank=1)
    with pytest.raises(ConfigError, match="has printed nothing yet"):
        logs(tmp_path, "net1", pieces.append)


def test_lives_are_told_apart_in_one_output(tmp_path, made):
    """A job that SLURM restarts appends to the file of its earlier lives."""
    run = made["swin"].root.name
    records = LaunchFolder.of(tmp_path, "toy")
    array = Array("key", (made["net1"].root.name, run), "table1", Resources(), "me", 0.0, "7")
    with records.lock():
        records.write(array)
    path = records.output_of(array, "7_1")
    assert path.name == "7_1_0_log.out"
    path.write_text("submitit\n=== life 1: job 7_1\nlost\n=== life 2: job 7_1\nsaved\n")
    pieces = []
    logs(tmp_path, run, pieces.append, attempt=2)
    made["swin"].write_result(Result(outcome="done", seconds=1.0))
    logs(tmp_path, run, pieces.append, follow=True)
    assert pieces == ["=== life 2: job 7_1\nsaved\n", path.read_text()]


def test_nothing_is_deleted(tmp_path, made):
    made["swin"].write_result(Result(outcome="done", seconds=1.0))
    made["net1"].write_status(Status(state="failed", cause="bug"))
    records = LaunchFolder.of(tmp_path, "toy")
    with records.lock():
        names = (made["swin"].root.name,)
        records.write(Array("old", names, "table1", Resources(), "me", 0.0, "7"))
        names = (made["net1"].root.name, made["net2"].root.name)
        records.write(Array("new", names, "table1", Resources(), "me", 0.0, "8"))
    would = gc(tmp_path, ["table1"], confirm=lambda question: False)
    assert {path.name for path in would} >= {"old", made["net1"].root.name}
    assert made["net1"].root.exists()
    (gone,) = gc(tmp_path, confirm=lambda question: "1 folders" in question)
    assert gone.name == "old"
    assert [array.key for array in records.arrays()] == ["new"]
    (kept,) = (tmp_path / "toy" / ".trash").iterdir()
    assert (kept / "array.json").exists()
    with pytest.raises(Refused, match="does not lie in"):
        discard(tmp_path, tmp_path / "toy")
