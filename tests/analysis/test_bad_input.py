"""Bad input on the way from runs to pages: named, left out, counted, and never fatal."""

import csv
import io
import json
import re
import shutil
from unittest import mock

import pandas as pd
import pytest
import yaml
from synthetic import change_result, write_run, write_study
from typer.testing import CliRunner

from lsa_study import rundir
from lsa_study.analysis import claims
from lsa_study.analysis.collect import collect
from lsa_study.analysis.formats import check_tables, write_tables
from lsa_study.analysis.html import write_report
from lsa_study.analysis.plots import style, write_plots
from lsa_study.analysis.table import build
from lsa_study.cli import app
from lsa_study.config import shipped, study
from lsa_study.config.asked import parquet_path
from lsa_study.errors import ConfigError, Refused

SIGNS = "_ & % # < >"


def everything(results, loaded):
    """All that is made of runs; JSON is read as strictly as other languages do."""
    with mock.patch.object(style, "png", return_value=b""):  # of the same figures as SVG
        paths = [*write_tables(loaded, results), *write_plots(loaded, results)]
    paths += write_report(loaded, results)
    found = claims.claims_json(claims.judge_tier(results, "toy"), "toy")
    for text in [json.dumps(found), *(p.read_text() for p in paths if p.suffix == ".json")]:
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    # What could not be read stands under a table, and in no collection.
    assert bool(check_tables(loaded, results)) == bool(collect(results, "toy").broken)
    return found["claims"]


def notes(results, name="table4"):
    table = build(study.load_study(name), collect(results, "toy"))
    return " ".join(note.text for note in table.notes)


def test_numbers_that_are_none_pass_through_everything(tmp_path):
    loaded = [write_study(tmp_path, "table4", seeds=[0, 1])]
    nan = float("nan")
    run = next(run for run in loaded[0].runs() if run.variant == "elsa")
    folder = write_run(tmp_path, run, changes={"loss": nan, "acc5": nan, "seconds_per_epoch": nan})
    folder.log_metrics({"epoch": 3, "attempt": 1, "acc1": nan, "loss": nan, "train_loss": nan})
    folder.log_metrics({"epoch": 4, "attempt": 1})
    everything(tmp_path, loaded)
    collected = collect(tmp_path, "toy")
    assert collected.runs.loc[run.identity, "acc1"] > 0
    assert collected.broken == ()


def test_an_accuracy_that_is_no_number_leaves_its_run_out_by_name(tmp_path):
    loaded = [write_study(tmp_path, "table4", seeds=[0, 1])]
    folder = rundir.RunDir(tmp_path / "toy" / "runs" / loaded[0].runs()[0].name)
    change_result(folder, {"acc1": float("nan")})
    everything(tmp_path, loaded)
    (line,) = collect(tmp_path, "toy").broken
    assert loaded[0].runs()[0].name in line
    assert "acc1 = nan" in line
    assert "1 file could not be read and is left out" in notes(tmp_path)


def test_runs_of_another_tier_are_left_out_by_name(tmp_path):
    loaded = [write_study(tmp_path, "table4", seeds=[0])]
    write_study(tmp_path, "table4", tier="proxy", seeds=[0], only="swin")
    (other,) = rundir.existing(tmp_path, "proxy").values()
    shutil.copytree(other.root, tmp_path / "toy" / "runs" / other.root.name)
    collected = collect(tmp_path, "toy", update=True)
    assert set(collected.runs["settings.tier"]) == {"toy"}
    (line,) = collected.broken
    assert other.root.name in line
    assert "is of tier proxy, this is toy" in line
    everything(tmp_path, loaded)
    assert "1 file could not be read" in notes(tmp_path)


@pytest.mark.parametrize("damage", ["torn", "schema"])
def test_pages_are_not_written_over_without_runs_that_cannot_be_read(tmp_path, damage):
    loaded = [write_study(tmp_path, "table4", seeds=[0])]
    everything(tmp_path, loaded)
    path = parquet_path(tmp_path, "toy")
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        runs = pd.read_parquet(path)
        runs.loc[runs["variant"] == "elsa", "schema"] = 99
        runs.to_parquet(path, index=False)
    everything(tmp_path, loaded)  # the folders hold all
    shutil.rmtree(tmp_path / "toy" / "runs")
    pages = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    for write in (write_tables, write_plots, write_report):
        with pytest.raises(Refused, match=r"runs\.parquet: .* put back one that is whole, or move"):
            write(loaded, tmp_path)
    assert pages == {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}


def test_a_collection_of_another_tier_or_schema_is_left_out_by_name(tmp_path):
    write_study(tmp_path, "table4", seeds=[0])
    write_study(tmp_path, "table4", tier="proxy", seeds=[0])
    collect(tmp_path, "toy", update=True)
    collect(tmp_path, "proxy", update=True)
    mixed = pd.concat(pd.read_parquet(parquet_path(tmp_path, tier)) for tier in ("toy", "proxy"))
    mixed.loc[mixed["variant"] == "elsa", "schema"] = 99
    mixed.to_parquet(parquet_path(tmp_path, "toy"), index=False)
    shutil.rmtree(tmp_path / "toy" / "runs")
    collected = collect(tmp_path, "toy")
    assert sorted(collected.runs["variant"]) == ["elsa_noghost", "swin"]
    assert set(collected.runs["settings.tier"]) == {"toy"}
    assert "2 runs of another schema are left out" in collected.broken[0]
    assert "3 runs of another tier are left out" in collected.broken[1]


def test_a_missing_seed_is_named_and_its_row_stands(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0, 1, 2])
    gone = next(run for run in loaded.runs() if (run.variant, run.seed) == ("elsa", 1))
    shutil.rmtree(tmp_path / "toy" / "runs" / gone.name)
    table = build(loaded, collect(tmp_path, "toy"))
    row = next(row for row in table.rows if row.variant == "elsa")
    assert row.accuracy.n == 2
    assert row.contrast.seeds == (0, 2)
    assert any("Not finished: elsa (seed 1)" in note.text for note in table.notes)


def test_one_broken_result_costs_its_run_and_is_counted(tmp_path):
    loaded = [write_study(tmp_path, "table4", seeds=[0, 1])]
    (tmp_path / "toy" / "runs" / loaded[0].runs()[0].name / "result.json").write_text("{")
    paths = write_tables(loaded, tmp_path)
    for path in paths:
        if path.suffix != ".csv":
            assert "1 file could not be read and is left out" in path.read_text(), path
    (page,) = write_report(loaded, tmp_path)
    assert f"{loaded[0].runs()[0].name}/result.json: is unreadable" in page.read_text()


def test_no_run_at_all_is_a_table_a_page_and_open_claims(tmp_path):
    loaded = [study.load_study("table4")]
    judged = everything(tmp_path, loaded)
    costs = ("params", "macs", "inference")
    assert {one["verdict"] for one in judged if one["metric"] not in costs} == {"not run"}
    assert "not run" in (tmp_path / "toy" / "tables" / "table4.md").read_text()


def own_study(folder, **changes):
    source = shipped.find("experiments")
    shutil.copytree(source / "base", folder / "experiments" / "base")
    shutil.copytree(source.parent / "results" / "paper", folder / "results" / "paper")
    document = yaml.safe_load((source / "table4.yaml").read_text("utf-8")) | changes
    path = folder / "experiments" / "table4.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def test_a_study_without_rows_is_refused_in_words(tmp_path):
    with pytest.raises(ConfigError, match="variants"):
        study.load_study(own_study(tmp_path, variants={}))


def test_names_with_signs_stand_in_every_format_as_written(tmp_path):
    document = yaml.safe_load(shipped.find("experiments/table4.yaml").read_text())
    for variant in document["variants"].values():
        variant["label"] = f"{variant['label']} {SIGNS}"
    loaded = study.load_study(
        own_study(tmp_path, variants=document["variants"], title=SIGNS), seeds=[0]
    )
    for run in loaded.runs():
        write_run(tmp_path, run, changes={"device": SIGNS})
    everything(tmp_path, [loaded])
    folder = tmp_path / "toy" / "tables"
    rows = list(csv.DictReader(io.StringIO((folder / "table4.csv").read_text())))
    assert all(row["model"].endswith(SIGNS) for row in rows)
    found = json.loads((folder / "table4.json").read_text())
    assert all(row["model"].endswith(SIGNS) for row in found["rows"])
    assert r"\_ \& \% \# \textless{} \textgreater{}" in (folder / "table4.tex").read_text()
    assert "_ &amp; % # &lt; &gt;" in (tmp_path / "toy" / "report.html").read_text()


PLANTED = {
    "learning rate": ("train.lr", "train: {lr: 5.0e-4}"),
    "drop path": ("model.drop_path", "model: {drop_path: 0.3}"),
    "averaged weights": ("evaluation.weights", "evaluation: {weights: ema}"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_setting_is_refused_by_plan_and_table(tmp_path, capsys, fault):
    key, text = PLANTED[fault]
    document = yaml.safe_load(shipped.find("experiments/table4.yaml").read_text())
    section, value = next(iter(yaml.safe_load(text).items()))
    name, setting = next(iter(value.items()))
    document["variants"]["elsa"]["set"][f"{section}.{name}"] = setting
    if setting == "ema":
        document["variants"]["elsa"]["set"]["train.ema_decay"] = 0.99
    path = own_study(tmp_path, variants=document["variants"])
    for command in (["plan", str(path)], ["table", str(path), "--results", str(tmp_path)]):
        told = CliRunner().invoke(app, command).exception
        assert isinstance(told, Refused)
        assert told.exit_code == 4
        assert re.search(rf"elsa also changes .*{re.escape(key)} \(", str(told))
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"device_kind": "cuda", "device": "H"}, "device kind"), ({"code": "f" * 64}, "code")],
)
def test_a_planted_environment_is_a_dagger_in_the_table(tmp_path, change, words):
    loaded = write_study(tmp_path, "table4", seeds=[0])
    write_run(tmp_path, next(r for r in loaded.runs() if r.variant == "elsa"), changes=change)
    write_tables([loaded], tmp_path)
    text = (tmp_path / "toy" / "tables" / "table4.md").read_text()
    (line,) = [line for line in text.splitlines() if "Not made as the row" in line]
    assert words in line
    assert "†" in text
