"""Runs of another results folder are taken in once, and nothing of ours is lost."""

import json

import pandas as pd
import pytest
from synthetic import change_result, write_run
from typer.testing import CliRunner

from lsa_study.analysis import formats, html
from lsa_study.analysis.collect import collect
from lsa_study.analysis.merge import merge
from lsa_study.cli import app
from lsa_study.config import remember, study
from lsa_study.errors import ConfigError, Refused
from lsa_study.launch.plan import plan_text
from lsa_study.rundir import RunDir


@pytest.fixture
def two_machines(tmp_path):
    """Seed 0 here, seeds 0 and 1 there; each folder remembers what it was asked for."""
    here, there = tmp_path / "here", tmp_path / "there"
    for results, seeds in ((here, [0]), (there, [0, 1])):
        asked = study.load_study("table4", seeds=seeds)
        remember.remember(results, [asked])
        for run in asked.runs():
            write_run(results, run)
    return here, there


def seeds_of_table(results):
    return study.load_study("table4", recall=results).seeds


def test_new_runs_and_seeds_are_added_and_known_ones_stand(two_machines):
    here, there = two_machines
    before = collect(here, "toy").runs
    assert merge(here, there, "toy") == ["3 runs added, 3 known before; 6 in all"]
    after = collect(here, "toy", folders=False).runs
    assert sorted(after["seed"]) == [0, 0, 0, 1, 1, 1]
    assert after.loc[before.index, before.columns].equals(before)
    assert seeds_of_table(here) == (0, 1)
    (kept,) = set(after.loc[after["seed"] == 1, "correct"].map(type))
    assert kept is bytes
    stamp = (here / "toy" / "runs.parquet").read_bytes()
    assert merge(here, there, "toy") == ["0 runs added, 6 known before; 6 in all"]
    assert (here / "toy" / "runs.parquet").read_bytes() == stamp


def test_into_an_empty_folder(two_machines, tmp_path):
    _, there = two_machines
    assert merge(tmp_path / "new", there, "toy") == ["6 runs added, 0 known before; 6 in all"]
    assert seeds_of_table(tmp_path / "new") == (0, 1)


def test_a_run_trained_twice_with_other_results_is_refused(two_machines):
    here, there = two_machines
    folder = next((there / "toy" / "runs").glob("elsa-s0-*"))
    result = json.loads((folder / "result.json").read_text())
    change_result(RunDir(folder), {"loss": result["loss"] + 0.25})
    collect(here, "toy", update=True)
    stamp = (here / "toy" / "runs.parquet").read_bytes()
    with pytest.raises(Refused, match=f"trained again what is here: {folder.name[-10:]}"):
        merge(here, there, "toy")
    assert (here / "toy" / "runs.parquet").read_bytes() == stamp
    assert seeds_of_table(here) == (0,)


@pytest.mark.parametrize("damage", ["torn", "schema"])
def test_into_a_file_that_cannot_be_read_nothing_is_taken(two_machines, damage):
    here, there = two_machines
    collect(here, "toy", update=True)
    path = here / "toy" / "runs.parquet"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:200])
    else:
        pd.read_parquet(path).assign(schema=0).to_parquet(path, index=False)
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"runs\.parquet: .*; the file is not brought up to date"):
        merge(here, there, "toy")
    assert path.read_bytes() == before
    assert seeds_of_table(here) == (0,)


def test_what_cannot_be_taken_is_named(two_machines, tmp_path):
    here, there = two_machines
    with pytest.raises(ConfigError, match="is the results folder itself"):
        merge(here, here, "toy")
    with pytest.raises(ConfigError, match="has no finished run of tier proxy"):
        merge(here, there, "proxy")
    found = CliRunner().invoke(app, ["collect", "--from", f"{there}", "--results", f"{here}"])
    assert (found.exit_code, found.stdout) == (0, "3 runs added, 3 known before; 6 in all\n")
    damaged = next((there / "toy" / "runs").glob("swin-s1-*")) / "result.json"
    damaged.write_text("{")
    lines = merge(tmp_path / "third", there, "toy")
    assert [line for line in lines if line.startswith("left out") and "swin-s1" in line]
    assert lines[-1] == "5 runs added, 0 known before; 5 in all"


def test_versions_of_the_code_are_counted(two_machines):
    here, there = two_machines
    for run in study.load_study("table4", seeds=[2]).runs():
        write_run(there, run, changes={"code": "f" * 64})
    assert merge(here, there, "toy")[-1].endswith("9 in all, of 2 versions of the code")


def test_a_run_that_goes_on_there_is_left_for_the_next_time(two_machines):
    """As where a grid is collected while it is trained; what was collected is not trained here."""
    here, there = two_machines
    ended = next((there / "toy" / "runs").glob("elsa-s1-*")) / "result.json"
    result = ended.read_text()
    ended.unlink()
    assert merge(here, there, "toy") == ["2 runs added, 3 known before; 5 in all"]
    asked = study.load_study("table4", recall=here)
    assert "6 runs" in (before := plan_text([asked], here))
    assert "5 done, of which 2 known from runs.parquet, 0 running, 1 to do" in before
    ended.write_text(result)
    assert merge(here, there, "toy") == ["1 run added, 5 known before; 6 in all"]
    assert "6 done, of which 3 known from runs.parquet" in plan_text([asked], here)


def test_what_is_made_from_the_runs_follows_once_it_is_written_anew(two_machines):
    here, there = two_machines
    merge(here, there, "toy")
    asked = [study.load_study("table4", recall=here)]
    written = [*formats.write_tables(asked, here), *html.write_report(asked, here)]
    assert formats.check_tables(asked, here) == []
    texts = [path.read_text("utf-8") for path in written]
    merge(here, there, "toy")
    again = [*formats.write_tables(asked, here), *html.write_report(asked, here)]
    assert [path.read_text("utf-8") for path in again] == texts


def test_another_grid_under_the_same_name_is_left_out(two_machines):
    here, there = two_machines
    for results, sizes in ((here, "3,5"), (there, "3,7")):
        asked = study.load_study("table4", grid=[f"model.op.kernel_size={sizes}"], only="elsa")
        remember.remember(results, [remember.named(asked, results, "sizes")])
    assert "left out: study sizes was asked for otherwise there: []" in merge(here, there, "toy")
    assert study.load_study("sizes", recall=here).flags == ("model.op.kernel_size=3,5",)
