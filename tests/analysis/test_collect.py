"""Collecting: what is on disk comes back; what is broken is named and skipped, never fatal."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from synthetic import change_result, write_run, write_study

from lsa_study import rundir
from lsa_study.analysis.collect import COLUMNS, collect
from lsa_study.config import study
from lsa_study.config.asked import parquet_path
from lsa_study.errors import Refused
from lsa_study.rundir import existing


@pytest.fixture
def results(tmp_path):
    write_study(tmp_path, "table2", seeds=[0, 1])
    return tmp_path


def folders(results):
    return {run.config()["variant"]: run for run in rundir.existing(results, "toy").values()}


def test_every_fact_of_a_run_comes_back(results):
    loaded = study.load_study("table2", tier="toy", seeds=[0, 1])
    collected = collect(results, "toy")
    assert collected.broken == ()
    assert sorted(collected.runs.index) == sorted(run.identity for run in loaded.runs())
    run = next(run for run in loaded.runs() if run.variant == "net7" and run.seed == 1)
    row = collected.runs.loc[run.identity]
    written = rundir.RunDir(results / "toy" / "runs" / run.name)
    result = written.result().as_json()
    assert result.pop("start") is None
    read = {name: None if pd.isna(row[name]) else row[name] for name in result}
    assert read == pytest.approx(result)
    assert row["settings.model.op.norm"] == "softmax"
    assert json.loads(row["settings.model.op.terms"]) == ["qk", "q_rk", "rq_k", "bias"]
    assert row["settings.seed"] == 1
    assert json.loads(row["curve"]) == written.metrics()
    bits = np.unpackbits(np.frombuffer(row["correct"], np.uint8), count=row["correct_count"])
    assert 100 * bits.mean() == pytest.approx(row["acc1"])


def test_settings_are_each_run_s_own(results):
    """Settings parsed once for many runs must not leak from one run into another."""
    write_study(results, "table1", seeds=[0, 3])
    runs = collect(results, "toy").runs
    for run in rundir.existing(results, "toy").values():
        settings = run.settings()
        row = runs.loc[settings.identity()]
        assert row["settings.seed"] == settings.seed
        assert tuple(json.loads(row["settings.model.op.terms"])) == settings.model.op.terms
        assert row["settings.model.op.norm"] == settings.model.op.norm


def test_a_clone_without_run_folders_reads_the_committed_file(results, tmp_path):
    first = collect(results, "toy", update=True)
    clone = tmp_path / "clone"
    (clone / "toy").mkdir(parents=True)
    parquet_path(results, "toy").rename(parquet_path(clone, "toy"))
    pd.testing.assert_frame_equal(collect(clone, "toy").runs, first.runs)


def test_folders_win_and_rows_merge_by_identity(results):
    collect(results, "toy", update=True)
    run = study.load_study("table2", tier="toy", seeds=[1], only="net7").runs()[0]
    folder = rundir.RunDir(results / "toy" / "runs" / run.name)
    write_run(results, run, changes={"acc1": 12.5})
    write_study(results, "table1", seeds=[0], only="swin")
    runs = collect(results, "toy").runs
    assert runs.loc[run.identity, "acc1"] == 12.5 == folder.result().acc1
    assert len(runs) == 7
    assert runs.index.is_unique


def test_refresh_twice_leaves_the_file_alone(results):
    collect(results, "toy", update=True)
    path = parquet_path(results, "toy")
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    again = collect(results, "toy", update=True)
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert collect(results, "toy", update=True).runs.equals(again.runs)
    assert path.read_bytes() == content, "the same runs give the same bytes"
    assert list(path.parent.glob("*.part")) == []


def test_nothing_there_is_an_empty_collection(tmp_path):
    collected = collect(tmp_path, "toy", update=True)
    assert len(collected.runs) == 0
    assert set(COLUMNS) <= set(collected.runs)
    assert not parquet_path(tmp_path, "toy").exists()


def test_runs_that_go_on_are_left_out_without_a_word(results):
    (folders(results)["net7"].root / "result.json").unlink()
    collected = collect(results, "toy")
    assert len(collected.runs) == 5
    assert collected.broken == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is unreadable"),
        ("{", "is unreadable"),
        ("[]", "is unreadable"),
        ("{}", "is unreadable"),
        ('{"outcome": "fine"}', "is unreadable"),
        ('{"outcome": "done"}', "its result is of run None"),
        ("\x00\xff", "is unreadable"),
    ],
)
def test_a_broken_result_is_named_and_skipped(results, content, words):
    folder = folders(results)["net7"]
    (folder.root / "result.json").write_text(content, "latin-1")
    collected = collect(results, "toy")
    assert len(collected.runs) == 5
    (line,) = collected.broken
    assert str(folder.root) in line
    assert words in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acc1": "high"}, "acc1 = 'high'"),
        ({"acc1": None}, "acc1 = None"),
        ({"acc1": float("nan")}, "acc1 = nan"),
        ({"acc1": 101.0}, "acc1 = 101.0"),
        ({"seed": True}, "seed = True"),
        ({"params": [1], "dirty": "no"}, "dirty = 'no', params = [1]"),
        ({"schema": 99}, "schema 99"),
    ],
)
def test_a_result_with_impossible_facts_is_named_and_skipped(results, change, words):
    folder = folders(results)["net7"]
    change_result(folder, change)
    collected = collect(results, "toy")
    assert len(collected.runs) == 5
    (line,) = collected.broken
    assert words in line


def test_a_copied_folder_is_not_counted_twice(results):
    folder = folders(results)["net7"]
    other = folder.root.with_name("net7-s0-0000000000")
    other.mkdir()
    for file in folder.root.glob("*.*"):
        (other / file.name).write_bytes(file.read_bytes())
    collected = collect(results, "toy")
    assert len(collected.runs) == 6
    assert "give the folder its own name back" in collected.broken[0]


@pytest.mark.parametrize("content", [None, "", "a: [", "- 1", "schema: 1\nsettings: 3", "\xff\xfe"])
def test_a_lost_configuration_is_named(results, content):
    folder = folders(results)["net7"]
    config = folder.root / "config.yaml"
    config.unlink() if content is None else config.write_text(content, "latin-1")
    collected = collect(results, "toy")
    assert len(collected.runs) == 5
    assert str(folder.root) in collected.broken[0]
    assert "is not a run's configuration" in collected.broken[0]


@pytest.mark.parametrize(
    ("line", "edited", "reason"),
    [
        ("  tier: toy", "  tier: proxy", "is of tier proxy"),
        ("    norm: softmax", "    norm: filter_norm", "its settings are those of run"),
        ("  seed: 1", "  seed: 4", "its result is of seed 1, its config.yaml of 4"),
    ],
)
def test_a_configuration_that_was_edited_is_named(results, line, edited, reason):
    folder = folders(results)["net7"]
    path = folder.root / "config.yaml"
    before = path.read_text()
    assert line in before
    path.write_text(before.replace(line, edited))
    collected = collect(results, "toy")
    assert len(collected.runs) == 5
    assert str(folder.root) in collected.broken[0]
    assert reason in collected.broken[0]


def test_of_two_folders_of_one_run_none_is_taken(results):
    folder = folders(results)["net7"]
    for name in ("a", "z"):
        copy = folder.root.with_name(f"{name}-{folder.root.name}")
        shutil.copytree(folder.root, copy)
        collected = collect(results, "toy")
        assert folder.identity not in collected.runs.index
        assert f"{copy}" in collected.broken[0]
        assert "2 folders hold the same run" in collected.broken[0]
        with pytest.raises(Refused, match="2 folders hold the same run"):
            existing(results, "toy")
        shutil.rmtree(copy)


def test_torn_metrics_cost_their_line_only(results):
    folder = folders(results)["net7"]
    epochs = len(folder.metrics())
    with (folder.root / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99, "att')
    row = collect(results, "toy").runs.loc[folder.settings().identity()]
    assert len(json.loads(row["curve"])) == epochs
    (folder.root / "metrics.jsonl").unlink()
    row = collect(results, "toy").runs.loc[folder.settings().identity()]
    assert row["curve"] == "[]"


@pytest.mark.parametrize("damage", ["missing", "torn", "short", "others"])
def test_lost_bits_keep_the_run_and_say_so(results, damage):
    folder = folders(results)["net7"]
    if damage == "missing":
        folder.correct_bits.unlink()
    elif damage == "torn":
        folder.correct_bits.write_bytes(folder.correct_bits.read_bytes()[:40])
    elif damage == "short":
        np.savez(folder.correct_bits, bits=np.packbits(np.ones(8, np.uint8)), count=8)
    else:
        folder.write_correct(np.zeros(folder.result().test_images, np.uint8))
    collected = collect(results, "toy")
    assert len(collected.runs) == 6
    assert collected.runs.loc[folder.settings().identity(), "correct"] is None
    assert "comparisons by image leave this run out" in collected.broken[0]


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", "other"])
def test_a_broken_parquet_is_named_and_folders_stand_in(results, content):
    path = parquet_path(results, "toy")
    if content == "other":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    collected = collect(results, "toy", update=True)
    assert len(collected.runs) == 6
    assert "run folders alone count; the file is not brought up to date" in collected.broken[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("schema", 0, "2 runs of another schema"), ("settings.tier", "proxy", "2 runs of another"),
     ("outcome", "begun", "holds outcome = 'begun'")],
)  # fmt: skip
def test_what_is_left_out_of_the_file_is_never_written_over(results, column, value, said):
    collect(results, "toy", update=True)
    path = parquet_path(results, "toy")
    runs = pd.read_parquet(path)
    runs.loc[runs.variant == "net7", column] = value
    runs.to_parquet(path, index=False)
    before = path.read_bytes()
    for folder in (results / "toy" / "runs").glob("net7-*"):
        shutil.rmtree(folder)
    write_study(results, "table1", seeds=[0], only="swin")
    collected = collect(results, "toy", update=True)
    assert sorted({*collected.runs.variant}) == ["net7_filter_norm", "net7_identity", "swin"]
    assert said in collected.broken[0]
    assert collected.broken[-1].endswith("put back one that is whole, or move it away")
    assert path.read_bytes() == before
    path.rename(path.with_name("away"))
    assert collect(results, "toy", update=True).broken == ()
    assert path.is_file()


def test_a_collection_of_before_a_fact_was_recorded_is_read(results):
    written = collect(results, "toy", update=True).runs
    path = parquet_path(results, "toy")
    pd.read_parquet(path).drop(columns=["macs", "finished"]).to_parquet(path, index=False)
    runs = rundir.runs_folder(results, "toy")
    runs.rename(runs.with_name("away"))
    collected = collect(results, "toy")
    assert collected.broken == ()
    assert list(collected.runs["params"]) == list(written["params"])
    assert {run.macs for run in collected.of(collected.runs.index).values()} == {None}
    runs.with_name("away").rename(runs)
    pd.testing.assert_frame_equal(collect(results, "toy").runs, written)


def test_a_collection_with_values_of_another_type_is_named(results):
    written = collect(results, "toy", update=True).runs
    path = parquet_path(results, "toy")
    pd.read_parquet(path).assign(acc1="high").to_parquet(path, index=False)
    collected = collect(results, "toy")
    assert "run folders alone count" in collected.broken[0]
    pd.testing.assert_frame_equal(collected.runs, written)


def test_collecting_needs_no_torch():
    code = "import sys, lsa_study.analysis.collect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
