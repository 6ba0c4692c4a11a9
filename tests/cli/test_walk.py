"""The way of docs/studies.md, from an operator of one's own to the report."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from outsiders import ROOT

import lsa_study

STUDY = """\
study: contrast
title: Contrast to the neighborhood
seeds: [0, 1]
set:
  model.op: {kind: "walked.ops:Walked"}
  train.epochs: 1
  train.batch_size: 32
  data.train_limit: 32
grid:
  model.op.size: [3, 5, 7]
  model.op.gate: [own, "none"]
claims:
  - {id: larger, text: A larger area is better., rows: [size-7_gate-own, size-3_gate-own],
     relation: above}
  - {id: cheaper, text: Without its gate it is smaller., relation: above, metric: params,
     rows: [size-3_gate-own, size-3_gate-none]}
"""
ROWS = [f"size-{size}_gate-{gate}" for size in (3, 5, 7) for gate in ("own", "none")]


@pytest.fixture
def lsa(tmp_path):
    """Runs a command beside the study, where the package is found on PYTHONPATH alone."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "contrast.yaml").write_text(STUDY)
    paths = [str(tmp_path / "walked"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(*words, here=tmp_path / "studies"):
        ended = subprocess.run(
            [sys.executable, "-m", "lsa_study.cli", *words], cwd=here, env=environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    return run


def change_the_formula(package):
    """As by hand: the contrast to the neighborhood's mean instead of the mean."""
    path = package / "walked" / "ops.py"
    before = path.read_text("utf-8")
    after = before.replace("mean = mean.permute(0, 2, 3, 1)", "mean = x - mean.permute(0, 2, 3, 1)")
    assert after != before
    path.write_text(after, "utf-8")


@pytest.mark.slow
def test_from_an_operator_to_a_report(lsa, tmp_path):
    studies = tmp_path / "studies"
    lsa("new", "operator", "walked", here=tmp_path)
    change_the_formula(tmp_path / "walked")
    planned = lsa("plan", "contrast.yaml")
    assert "ok: only model.op.size, model.op.gate differ\n" in planned
    assert "6 variants x 2 seeds = 12 runs" in planned
    assert "6 networks built; no two of them are the same" in planned
    assert not (studies / "results").exists()
    lsa("run", "contrast.yaml", "--jobs", "2")
    assert lsa("status", "contrast").splitlines()[-1].startswith("12 done")
    check_tables(lsa, studies / "results/toy/tables")
    lsa("plots", "contrast")
    assert (studies / "results/toy/plots/contrast-heat.png").stat().st_size > 10_000
    claims = json.loads(lsa("claims", "--study", "contrast", "--json"))["claims"]
    assert [(one["id"], one["n"]) for one in claims] == [("larger", 2), ("cheaper", 1)]
    lsa("report", "contrast")
    page = (studies / "results/toy/report.html").read_text("utf-8")
    assert "Contrast to the neighborhood" in page
    assert 'id="claim-contrast-larger"' in page
    assert "article" not in page.lower()
    check_exploring(lsa, studies / "results")
    for path in ("experiments", "lsa_study"):
        assert "walked" not in {one.stem for one in (ROOT / path).rglob("*")}


def check_tables(lsa, tables):
    """All rows with both seeds; the table by two factors is LaTeX that compiles."""
    printed = lsa("table", "contrast")
    assert all(f"| size {size}, gate own |" in printed for size in (3, 5, 7))
    with (tables / "contrast.csv").open(encoding="utf-8", newline="") as file:
        assert len([*csv.DictReader(file)]) == 6
    data = json.loads((tables / "contrast.json").read_text("utf-8"))
    assert [row["acc1"]["n"] for row in data["rows"]] == [2] * 6
    pivot = (tables / "contrast-pivot.tex").read_text("utf-8")
    assert all(name in pivot for name in ("size", "gate", "own", "none"))
    if shutil.which("pdflatex"):
        (tables / "page.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
            "\\input{contrast-pivot}\\input{contrast}\\end{document}"
        )
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
        ended = subprocess.run(command, cwd=tables, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


def check_exploring(lsa, results):
    """What has run is found by its own arguments, explained, compared and noted."""
    found = json.loads(
        lsa("runs", "--where", 'gate == "own" and size > 3', "--json", "--columns", "name,acc1")
    )["runs"]
    assert len(found) == 4
    by = json.loads(lsa("runs", "--by", "size,gate", "--json"))["groups"]
    assert [group["count"] for group in by] == [2] * 6
    assert "kind" in lsa("explain", "model.op")
    why = lsa("why", "contrast", "size-5_gate-none")
    assert "seed 1 " in why
    assert not [line for line in why.splitlines() if line.endswith(": ")]
    differing = lsa("diff", "contrast/size-3_gate-own", "contrast/size-7_gate-own")
    assert "model.op.size  3 -> 7" in differing
    name = found[0]["name"]
    lsa("note", name, "--tag", "look", "--note", "ends high")
    tagged = json.loads(lsa("runs", "--where", '"look" in tags', "--json", "--columns", "name"))
    assert [run["name"] for run in tagged["runs"]] == [name]
    frame = lsa_study.load_results(results, tier="toy")
    assert sorted(frame["variant"].unique()) == sorted(ROWS)
    assert frame.groupby("model.op.size")["acc1"].count().tolist() == [4, 4, 4]
    assert len(lsa_study.curves(results, tier="toy")) == 12
