"""Finished runs as one table: from folders, from the committed file, with what people say."""

import subprocess
import sys

import pandas as pd
import pytest
from synthetic import change_result, write_run, write_study

import lsa_study
from lsa_study.analysis.frame import Finished
from lsa_study.analysis.tags import read_remarks, remark
from lsa_study.config import study
from lsa_study.config.asked import parquet_path
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError
from lsa_study.rundir import RunDir, runs_folder


@pytest.fixture
def results(tmp_path):
    loaded = write_study(tmp_path, "table1", seeds=(0, 1))
    remember(tmp_path, [loaded])
    return tmp_path


def test_one_row_a_run_and_every_setting_a_column(results):
    found = lsa_study.load_results(results, tier="toy")
    assert len(found) == 16
    assert list(found.columns[:8]) == [
        "name", "study", "tier", "variant", "seed", "identity", "outcome", "acc1",
    ]  # fmt: skip
    assert {"model.op.norm", "train.lr", "params", "seconds_per_epoch", "tags"} <= {*found.columns}
    assert not {"correct", "curve", "settings.train.lr"} & {*found.columns}
    row = found.set_index("name").loc[found.name[0]]
    assert (row.study, row.tier, row["model.op.kind"]) == ("table1", "toy", "unified")
    assert found["acc1"].between(0, 100).all()
    assert found.groupby("variant")["acc1"].mean().notna().all()
    assert pd.api.types.is_integer_dtype(found["params"])


def test_the_committed_file_alone_gives_the_same(results, tmp_path_factory):
    before = lsa_study.load_results(results)
    clone = tmp_path_factory.mktemp("clone")
    parquet_path(clone, "toy").parent.mkdir()
    parquet_path(clone, "toy").write_bytes(parquet_path(results, "toy").read_bytes())
    after = lsa_study.load_results(clone)
    pd.testing.assert_frame_equal(after.drop(columns="study"), before.drop(columns="study"))
    assert after["study"].isna().all(), "who asked for them is not known there"
    assert [path.name for path in (clone / "toy").iterdir()] == ["runs.parquet"], "nothing written"


def test_what_ended_since_is_there(results):
    assert len(lsa_study.load_results(results)) == 16
    (run,) = study.load_study("table1", only="swin", seeds=[7]).runs()
    write_run(results, run)
    assert len(lsa_study.load_results(results)) == 17
    change_result(RunDir(runs_folder(results, "toy") / run.name), {"loss": 0.125})
    assert 0.125 in [*lsa_study.load_results(results)["loss"]]


def test_what_cannot_be_read_is_named(results):
    lsa_study.load_results(results)
    (folder,) = (results / "toy/runs").glob("swin-s0-*")
    (folder / "result.json").write_text("{")
    parquet_path(results, "toy").unlink()
    with pytest.warns(UserWarning, match="left out: .*swin-s0"):
        assert len(lsa_study.load_results(results)) == 15
    parquet_path(results, "toy").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="left out"):
        assert len(lsa_study.load_results(results)) == 15


def test_curves_have_one_row_an_epoch(results):
    found = lsa_study.curves(results, tier="toy")
    one = found[found.variant == "swin"].query("seed == 1")
    assert list(one.epoch) == list(range(1, 13))
    assert {"acc1", "train_loss", "lr", "identity", "name", "tier"} <= {*found.columns}


def test_no_runs_and_no_folder(tmp_path):
    assert lsa_study.load_results(tmp_path).empty
    assert lsa_study.curves(tmp_path).empty
    with pytest.raises(ConfigError, match="no such folder"):
        lsa_study.load_results(tmp_path / "none")
    with pytest.raises(ConfigError, match="did you mean toy"):
        lsa_study.load_results(tmp_path, tier="toi")


def test_only_what_is_asked_for_is_read(results):
    rows = Finished(results, "toy").rows(["acc1", "model.op.norm"], ["table1"])
    assert len(rows) == 16
    assert {*rows[0]} == {"acc1", "model.op.norm", "identity"}
    with pytest.raises(ConfigError, match="no such study"):
        Finished(results, "toy").rows(["acc1"], ["tabel1"])


def test_what_people_say_of_runs_stands_beside_them(results):
    before = lsa_study.load_results(results)
    one, other = before.identity[:2]
    remark(results, "toy", [one, other], tags=["good", "paper"], note=" two\nlines ")
    remark(results, "toy", [other], untag=["good", "paper"], note="")
    found = lsa_study.load_results(results).set_index("identity")
    assert (found.tags[one], found.note[one]) == ("good paper", "two lines")
    assert (found.tags[other], found.note[other]) == ("", "")
    after = found.reset_index()[before.columns].drop(columns=["tags", "note"])
    pd.testing.assert_frame_equal(after, before.drop(columns=["tags", "note"]))
    assert list(read_remarks(results, "toy")) == [one]


@pytest.mark.parametrize(
    "given", [{"tags": ["a b"]}, {"tags": ["../x"]}, {"tags": ["x" * 41]}, {"note": "\x1b[2J"},
              {"note": "x" * 501}, {"untag": [""]}]
)  # fmt: skip
def test_what_cannot_be_said(tmp_path, given):
    (tmp_path / "toy").mkdir()
    with pytest.raises(ConfigError, match="give up to"):
        remark(tmp_path, "toy", ["0123456789"], **given)
    assert not [*(tmp_path / "toy").iterdir()]


def test_damaged_remarks_are_named_and_stand(results):
    path = results / "toy" / "notes.json"
    path.write_text('{"0123456789": {"tags": ["a b"]}}')
    with pytest.warns(UserWarning, match="notes.json: is damaged"):
        assert len(lsa_study.load_results(results)) == 16
    with pytest.raises(ConfigError, match="is damaged"):
        remark(results, "toy", ["0123456789"], tags=["x"])
    assert "a b" in path.read_text()


def test_importing_the_package_stays_light():
    code = "import sys, lsa_study; print({'pandas', 'torch', 'numpy', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = lsa_study.load
