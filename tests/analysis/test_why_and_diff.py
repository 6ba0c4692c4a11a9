"""Where a number comes from, and what two runs have apart."""

from pathlib import Path

import pytest
from synthetic import COMMIT, write_run, write_study

from lsa_study import rundir
from lsa_study.analysis import provenance
from lsa_study.analysis.collect import collect
from lsa_study.config import study
from lsa_study.config.asked import parquet_path
from lsa_study.errors import ConfigError


@pytest.fixture
def results(tmp_path):
    write_study(tmp_path, "table2", seeds=[0, 1])
    return tmp_path


def asked(results, row, seeds=(0, 1)):
    loaded = study.load_study("table2", seeds=seeds)
    return provenance.why(loaded, row, collect(results, "toy"), results)


def test_a_cell_names_its_runs_seeds_commits_and_files(results):
    found = asked(results, "net7_filter_norm")
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    for run in found["runs"]:
        folder = rundir.RunDir(results / "toy" / "runs" / run["files"].rsplit("/", 1)[1])
        assert folder.result().identity == run["identity"]
        assert folder.result().acc1 == run["acc1"]
        assert run["commit"] == COMMIT
    assert found["mean"] == pytest.approx(sum(run["acc1"] for run in found["runs"]) / 2)
    assert found["difference"]["seeds"] == [0, 1]
    text = provenance.why_text(found)
    for words in (*(run["identity"] for run in found["runs"]), COMMIT, "table2.yaml:", "against"):
        assert words in text


def test_ends_and_absent_seeds_are_told(results):
    found = asked(results, "net7_identity", seeds=[0, 5])
    assert [run["outcome"] for run in found["runs"]] == ["diverged", "diverged", "not run"]
    text = provenance.why_text(found)
    assert "the loss is nan" in text
    assert "not run" in text


def test_a_clone_points_at_the_committed_file(results, tmp_path):
    collect(results, "toy", update=True)
    clone = tmp_path / "clone"
    (clone / "toy").mkdir(parents=True)
    parquet_path(results, "toy").rename(parquet_path(clone, "toy"))
    assert asked(clone, "net7")["runs"][0]["files"] == str(parquet_path(clone, "toy"))


def test_rows_are_found_by_name_or_unique_label(results):
    assert asked(results, "net7 (filter norm)")["row"] == "net7_filter_norm"
    with pytest.raises(ConfigError, match=r"Net7: is 3 rows of table2; known: net7_identity, "):
        asked(results, "Net7")
    with pytest.raises(ConfigError, match="net9: is no row of table2"):
        asked(results, "net9")


def test_two_runs_differ_in_what_they_differ(results):
    found = provenance.diff(results, "net7-s0", "net7_filter_norm-s0")
    assert found["config"] == {"model.op.norm": ("softmax", "filter_norm")}
    assert found["code"] == found["environment"] == {}
    assert found["metrics"]["acc1"][0] > found["metrics"]["acc1"][1]
    text = provenance.diff_text(found)
    assert "code: equal" in text
    assert "model.op.norm  softmax -> filter_norm" in text


def test_code_and_environment_are_their_own_sections(results):
    loaded = study.load_study("table2", seeds=[0, 1])
    run = next(run for run in loaded.runs() if (run.variant, run.seed) == ("net7", 1))
    write_run(results, run, changes={"commit": None, "device": "B", "precision": "bfloat16"})
    found = provenance.diff(results, "net7-s0", run.identity)
    assert found["config"] == {"seed": (0, 1)}
    assert found["code"] == {"commit": (COMMIT, None)}
    assert found["environment"] == {
        "device": ("Processor 9000", "B"),
        "precision": ("float32", "bfloat16"),
    }


def test_names_that_fit_none_or_many_are_refused(results):
    with pytest.raises(ConfigError, match=r"net7-: is the start of 2 runs \(net7-s0-"):
        provenance.diff(results, "net7-", "net7-s0")
    with pytest.raises(ConfigError, match="nothing: no run under"):
        provenance.diff(results, "net7-s0", "nothing")
    folder = next(iter(rundir.existing(results, "toy").values()))
    (folder.root / "result.json").unlink()
    with pytest.raises(ConfigError, match="has not finished"):
        provenance.diff(results, folder.root.name, "net7-s1")


def test_runs_of_two_tiers_can_be_compared(results):
    write_study(results, "table4", tier="proxy", seeds=[0], only="swin")
    found = provenance.diff(results, "swin", "net7-s0")
    assert found["config"]["tier"] == ("proxy", "toy")


def test_a_name_that_two_tiers_hold_needs_the_tier():
    committed = Path(__file__).resolve().parents[2] / "results"
    with pytest.raises(ConfigError) as found:
        provenance.diff(committed, "swin-s0", "net1-s0")
    assert "of tier toy, swin-s0-" in str(found.value)
    assert "give --tier toy or proxy, or write more" in str(found.value)
    for tier in ("toy", "proxy"):
        found = provenance.diff(committed, "swin-s0", "net1-s0", tier)
        assert "model.op.terms" in found["config"]
