"""Where runs stand without any scheduler: what the folders alone can tell."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.config.experiment import Resources
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError
from lsa_study.launch.records import Array, LaunchFolder, Life, chosen_runs, one_run
from lsa_study.launch.status import page, status, status_json, watch
from lsa_study.record import Result, Status
from lsa_study.rundir import RunDir

SETTINGS = ["train.epochs=3"]
DONE = {
    "outcome": "done", "acc1": 50.0, "epoch": 3, "epochs": 3, "attempts": 2, "seconds": 7200,
    "device_kind": "cuda",
}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """The folders of Table 1 by variant."""
    folders = {}
    for run in study.load_study("table1", overrides=SETTINGS).runs():
        folders[run.variant] = RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
        folders[run.variant].create(run.settings, variant=run.variant)
    return folders


def states(results, *names):
    return {row.variant: row.state for row in status(results, names)}


def test_each_state_is_told(tmp_path, made):
    made["swin"].write_result(Result(**DONE))
    made["net1"].write_result(Result(outcome="diverged", reason="epoch 1", seconds=1))
    made["net2"].write_status(Status(state="stopped", epoch=1, cause="preempted"))
    made["net3"].write_status(Status(state="failed", cause="bug", message="KeyError: 'rel_pos'"))
    made["net4"].write_status(Status(state="running", epoch=2, epochs=3))
    (made["net5"].root / "status.json").write_bytes(os.urandom(64))
    (made["net6"].root / "result.json").write_text("{")
    assert states(tmp_path) == {
        "swin": "done", "net1": "diverged", "net2": "stopped", "net3": "failed", "net4": "lost",
        "net5": "waiting", "net6": "failed", "net7": "waiting",
    }  # fmt: skip
    rows = {row.variant: row for row in status(tmp_path)}
    assert (rows["swin"].attempts, rows["swin"].acc1, rows["swin"].gpu_hours) == (2, 50.0, 2.0)
    assert (rows["net3"].cause, rows["net3"].message) == ("bug", "KeyError: 'rel_pos'")
    assert "unreadable" in rows["net6"].message


def test_a_writer_is_running_however_silent(tmp_path, made):
    with made["swin"].owned():
        made["swin"].write_status(Status(state="running", epoch=1, eta_seconds=60.0))
        assert states(tmp_path)["swin"] == "running"
        for name in ("owner.json", "status.json"):
            os.utime(made["swin"].root / name, (time.time() - 500,) * 2)
        (row,) = status(tmp_path, ["swin"])
        assert (row.state, row.note) == ("running", "no heartbeat 8 min")
    assert states(tmp_path)["swin"] == "lost"


def test_the_answer_in_json(tmp_path, made):
    made["net2"].write_status(Status(state="stopped", epoch=1, attempt=4, cause="cancelled"))
    told = json.loads(json.dumps(status_json(status(tmp_path))))
    (run,) = [run for run in told["runs"] if run["variant"] == "net2"]
    assert run["name"] == made["net2"].root.name
    assert run["identity"] == run["name"][-10:]
    found = [run[key] for key in ("seed", "state", "cause", "epoch", "attempts")]
    assert found == [0, "stopped", "cancelled", 1, 4]


def test_a_study_lists_what_has_not_begun(tmp_path, made):
    """As it was last asked for; a row that another study made is not listed twice."""
    assert len(status(tmp_path, ["table1"])) == 16, "never asked: the plain runs are missing"
    for name in ("table1", "table2"):
        remember(tmp_path, [study.load_study(name, overrides=SETTINGS)])
    assert len(status(tmp_path, ["table1"])) == 8
    rows = {row.variant: row for row in status(tmp_path, ["table2"])}
    assert rows.keys() == {"net7", "net7_identity", "net7_filter_norm"}
    assert rows["net7"].folder == made["net7"]
    assert not rows["net7_identity"].folder.root.exists()
    assert {row.state for row in rows.values()} == {"waiting"}
    assert {row.state for row in status(tmp_path / "none", ["table1"])} == {"waiting"}


def test_runs_are_found_by_how_they_begin(tmp_path, made):
    identity = made["net3"].root.name[-10:]
    for text in ("net3", "net3-s0", identity[:5], identity):
        assert one_run(tmp_path, text).variant == "net3"
    with pytest.raises(ConfigError, match="7 runs begin so; write more"):
        one_run(tmp_path, "net")
    with pytest.raises(ConfigError, match="no run under"):
        one_run(tmp_path, "table1")
    assert len(chosen_runs(tmp_path, ["net3", "table2"])) == 2
    with pytest.raises(ConfigError, match="no run under"):
        status(tmp_path, ["tabel1"])


def test_lives_are_summed(tmp_path, made):
    identity = made["swin"].root.name[-10:]
    records = LaunchFolder.of(tmp_path, "toy")
    with records.lock():
        for restart, why in enumerate(["preempted", "preempted", "timeout", None]):
            start = time.time() - 3600
            facts = {"job": "812_4", "restart": restart, "start": start, "host": "n1", "gpus": 4}
            records.note_life(identity, facts | {"begun_at": [restart, 0]})
            if why is not None:
                end = {"end": start + 900, "why": why, "ended_at": [restart, 5]}
                records.note_life(identity, {"job": "812_4", "restart": restart} | end)
    lives = records.lives(identity)
    assert [life.why for life in lives] == ["preempted", "preempted", "timeout", None]
    assert isinstance(lives[0], Life)
    assert not records.idle(identity)
    (row,) = status(tmp_path, ["swin"])
    assert row.note == "life 4 (2 preemptions, 1 time limit)"
    assert row.gpu_hours == pytest.approx(3.0)


def test_the_table_says_what_to_do(tmp_path, made):
    made["swin"].write_status(Status(state="failed", cause="bug", message="KeyError: 'rel_pos'"))
    made["net1"].write_status(Status(state="running", epoch=1))
    words = io.StringIO()
    rows = status(tmp_path)
    Console(file=words, width=160).print(page(rows, tmp_path), soft_wrap=True)
    assert "bug: KeyError: 'rel_pos'" in words.getvalue()
    assert "6 waiting  1 failed  1 lost" in words.getvalue()
    assert (
        f"again: lsa retry --cause bug,lost --tier toy --results {tmp_path}\n" in words.getvalue()
    )
    watch(lambda: rows, tmp_path, Console(file=io.StringIO()))


@pytest.mark.parametrize("width", [0, 1, 8, 17])
def test_a_terminal_too_narrow_for_the_table_shows_how_it_stands(tmp_path, made, width):
    words = io.StringIO()
    Console(file=words, width=80).print(page(status(tmp_path), tmp_path, width), soft_wrap=True)
    assert "8 waiting" in words.getvalue()


def test_a_folder_without_runs_says_so(tmp_path):
    (tmp_path / "proxy").mkdir()
    words = io.StringIO()
    Console(file=words, width=80).print(page(status(tmp_path), tmp_path, 80), soft_wrap=True)
    assert words.getvalue().endswith(f"no runs under {tmp_path}\n")


def test_each_run_shows_the_metric_of_its_task(tmp_path, made):
    def shown():
        return page(status(tmp_path), tmp_path).renderables[0].plain.splitlines()

    assert shown()[0].split()[3] == "SCORE"
    made["swin"].write_status(Status(state="running", epoch=1, acc1=45.25))
    assert shown()[0].split()[3] == "TOP-1"
    made["swin"].write_status(Status())
    detects = Status(state="running", epoch=1, metrics={"box_ap": 12.5, "mask_ap": 11.0})
    made["net1"].write_status(detects)
    assert "BOX AP" in shown()[0]
    assert any(line.startswith("net1-s0") and " 12.50 " in line for line in shown())
    made["net2"].write_status(Status(state="running", epoch=1, acc1=45.25))
    made["net3"].write_status(Status(state="running", epoch=1, metrics={"miou": 33.25}))
    assert shown()[0].split()[3] == "SCORE"
    found = {line.split("-s0")[0]: line for line in shown()}
    for name, said in (("net1", "box AP 12.50"), ("net2", "top-1 45.25"), ("net3", "mIoU 33.25")):
        assert said in found[name]
    kept = {run["variant"]: run["metric"] for run in status_json(status(tmp_path))["runs"]}
    assert [kept[name] for name in ("net1", "net2", "net3")] == ["box_ap", "acc1", "miou"]
    assert kept["swin"] is None


def test_ten_thousand_runs_are_told_in_seconds(tmp_path):
    folder, names = rundir.runs_folder(tmp_path / "many", "toy"), []
    beat = {"state": "running", "heartbeat": time.time(), "epoch": 1, "epochs": 3, "attempt": 1}
    for number in range(10_000):
        root = folder / f"swin-s{number}-{number:010x}"
        root.mkdir(parents=True)
        name, facts = [("result.json", DONE), ("status.json", beat)][number % 2]
        (root / name).write_text(json.dumps(facts))
        names.append(root.name)
    records = LaunchFolder.of(tmp_path / "many", "toy")
    with records.lock():
        for key in range(10):
            part = tuple(names[key * 1000 : (key + 1) * 1000])
            array = Array(str(key), part, "table1", Resources(), "root", 0.0)
            records.write(array)
    begun = time.process_time()  # not the clock: the machine may be busy with something else
    rows = status(tmp_path / "many")
    seconds = time.process_time() - begun
    assert len(rows) == 10_000
    assert {row.state for row in rows} == {"done", "lost"}
    assert seconds < 3


def test_no_answer_needs_torch():
    code = (
        "import importlib, sys\n"
        "for name in ('status', 'records', 'cancel', 'retry', 'slurm', 'local', 'plan'):\n"
        "    importlib.import_module(f'lsa_study.launch.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
