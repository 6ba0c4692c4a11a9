"""Runs with operators, networks, data and metrics of other packages, from their start to tables."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from outsiders import SWIN, write_package, write_study
from safetensors.torch import load_file

from lsa_study import measure, models
from lsa_study.analysis.collect import collect
from lsa_study.analysis.formats import check_tables, write_tables
from lsa_study.analysis.provenance import why, why_text
from lsa_study.analysis.table import build
from lsa_study.config.study import load_study
from lsa_study.rundir import RunDir, runs_folder
from lsa_study.training import train
from lsa_study.training.outside import measured

METRICS = ', evaluation.metrics: {mm: "LAB.metrics:margin", late: "LAB.metrics:late"}'


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=os.pathsep)
    return write_package(tmp_path / "path")


def study_of(folder, lab, *, every=METRICS, what="Gated"):
    rows = {"swin": SWIN, "own": f'model.op: {{kind: "{lab}.ops:{what}"}}'}
    return load_study(write_study(folder, rows, every=every.replace("LAB", lab)))


def trained(results, study, stop=lambda: False):
    """Train the runs of a study; gives their folders by variant."""
    folders = {}
    for run in study.runs():
        folder = folders[run.variant] = RunDir(runs_folder(results, study.tier) / run.name)
        folder.create(run.settings, variant=run.variant)
        train(folder, stop=stop)
    return folders


def test_metrics_stand_in_every_output_and_never_cost_a_run(lab, tmp_path):
    every = f'{METRICS}, data.name: "{lab}.data:Spots"'
    study = study_of(tmp_path, lab, every=every)
    folders = trained(tmp_path, study)
    results = {name: folder.result() for name, folder in folders.items()}
    for name, folder in folders.items():
        assert results[name].outcome == "done", folder.status().message
        assert results[name].data_fingerprint.startswith("spots-1-")
        assert results[name].test_images == 30
        assert results[name].metrics["late"] is None
        assert results[name].metrics_missing == "late raised KeyError: 'only on the test set'"
        assert folder.metrics()[-1]["metrics.mm"] == results[name].metrics["mm"] > 0
        assert "no late raised KeyError" in folder.status().message
    collected = collect(tmp_path, "toy", update=True)
    stored = pd.read_parquet(tmp_path / "toy/runs.parquet")
    own = stored.set_index("variant").loc["own"]
    assert own["metrics.mm"] == pytest.approx(results["own"].metrics["mm"])
    assert "only on the test set" in own["metrics_missing"]
    write_tables([study], tmp_path)
    table = json.loads((tmp_path / "toy/tables/own.json").read_text())
    assert table["columns"][-2:] == ["metrics.mm", "metrics.late"]
    assert table["rows"][1]["metrics.mm"] == pytest.approx(results["own"].metrics["mm"], abs=1e-6)
    assert table["rows"][1]["metrics.late"] is None
    assert any("only on the test set" in note["text"] for note in table["notes"])
    frame = pd.read_csv(tmp_path / "toy/tables/own.csv")
    assert frame["metrics.mm"].notna().all()
    header = (tmp_path / "toy/tables/own.md").read_text().splitlines()[2]
    assert "| Article | mm | late |" in header
    assert check_tables([study], tmp_path) == []
    assert "mm: " in why_text(why(study, "own", collected, tmp_path))
    again = collect(tmp_path, "toy", folders=False)
    assert build(study, again).rows[1].metrics == build(study, collected).rows[1].metrics


def test_the_network_of_another_package_is_trained_and_counted(lab, tmp_path):
    every = f', model.backbone: "{lab}.nets:Tiny", model.drop_path: 0.0'
    folders = trained(tmp_path, study_of(tmp_path, lab, every=every))
    swin, own = (folders[name].result() for name in ("swin", "own"))
    assert (swin.outcome, own.outcome) == ("done", "done")
    # The stem, two linear maps of the operator on one pixel each, and the head.
    assert own.macs == 49 * 16 * 48 + 2 * 49 * 16**2 + 16 * 10
    assert own.params == 16 * 49 + 2 * 16 * 17 + 10 * 17


@pytest.mark.parametrize("what", ["Gated", "Said"])
def test_operators_are_counted_by_torch_or_by_themselves(lab, tmp_path, what):
    settings = study_of(tmp_path, lab, what=what, every="").variants["own"]
    with torch.device("cpu"):
        network = models.from_settings(settings.model, image_size=28, num_classes=10)
    operators = [part.attn for part in network.modules() if hasattr(part, "attn")]
    pixels = [(14 * 14, 16), (14 * 14, 16), (7 * 7, 32), (7 * 7, 32)][: len(operators)]
    found = [measure.count(op, (1, 14, 14, op.out.in_features)).macs for op in operators]
    wanted = [12_345 if what == "Said" else 2 * 14 * 14 * dim**2 for _, dim in pixels]
    assert found[:2] == wanted[:2]
    assert measure.count(network, (3, 28, 28)).macs > sum(found[:1])


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(lab, tmp_path):
    study = study_of(tmp_path, lab, what="Said")
    whole = trained(tmp_path / "whole", study)["own"]
    cut = trained(tmp_path / "cut", study, stop=lambda: True)["own"]
    assert cut.status().state == "stopped"
    assert train(cut, stop=lambda: False) == "done"
    one, other = load_file(whole.weights), load_file(cut.weights)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert whole.result().metrics == cut.result().metrics


def test_a_run_whose_sources_changed_is_not_gone_on_with(lab, tmp_path):
    study = study_of(tmp_path, lab, every="")
    cut = trained(tmp_path, study, stop=lambda: True)["own"]
    source = tmp_path / "path" / lab / "ops.py"
    before = source.read_text()
    source.write_text(before + "# another\n")
    assert train(cut, stop=lambda: False) == "failed"
    status = cut.status()
    assert status.cause == "import"
    assert "its sources have changed since the run was asked for" in status.message
    source.write_text(before)
    assert train(cut, stop=lambda: False) == "done"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "gave nan"),
        ("vector", "gave a Tensor (10,)"),
        ("raises", "raised ValueError: cannot"),
        ("gone", "raised ImportFails: LAB.metrics:gone: LAB.metrics has no gone"),
    ],
)
def test_what_is_no_number_is_a_reason(lab, name, said):
    path = f"{lab}.metrics:{name}"
    found = measured({"m": path, "n": f"{lab}.metrics:images"}, torch.randn(4, 10), torch.ones(4))
    assert found["m"].startswith(said.replace("LAB", lab))
    assert found["n"] == 4.0


@pytest.mark.slow
def test_commands_find_the_package_from_any_folder(lab, tmp_path):
    """Plan, rehearse, run and table, each from another folder; Python alone knows the package."""
    rows = {"own": f'model.op: {{kind: "{lab}.ops:Gated", gate: "none"}}'}
    path = write_study(tmp_path, rows, every=METRICS.replace("LAB", lab))
    for number, command in enumerate(("plan", "rehearse", "run", "table")):
        (folder := tmp_path / str(number)).mkdir()
        words = [command, str(path), "--results", str(tmp_path / "results")]
        ended = subprocess.run(
            [sys.executable, "-m", "lsa_study.cli", *words], cwd=folder, capture_output=True,
            text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
    assert "| mm | late |" in ended.stdout
