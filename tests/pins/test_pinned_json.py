"""The keys of every ``--json`` answer and of every file of a run, with the types found there."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import yaml
from pinned import OLD, ROOT, check, copy_committed, has_runs, lsa, shape


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with one run of 64 images and one epoch."""
    results = tmp_path_factory.mktemp("trained")
    ended = subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", "run", "table1", "--only", "swin",
         "--results", str(results), "--set", "data.train_limit=64", "--set", "train.epochs=1"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return results


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The committed runs of the toy and the proxy tier."""
    results = tmp_path_factory.mktemp("committed")
    for tier in ("toy", "proxy"):
        copy_committed(results, tier)
    return results


def test_plan():
    plans = [
        lsa("plan", study, "--tier", tier, "--json").json()
        for study in ("table1", "table4", "table5", "fig2")
        for tier in ("toy", "proxy")
    ]
    check("json", "plan", shape(*plans))


def test_several_studies_are_a_list_of_plans():
    check("json", "plan of several", shape(lsa("plan", "table1", "table2", "--json").json()))


@pytest.mark.slow
def test_status(trained):
    rows = lsa("status", "--json", "--results", trained).json()
    check("json", "status of a finished run", shape(rows))
    rows = lsa("status", "table1", "--tier", "toy", "--json", "--results", OLD).json()
    check("json", "status of waiting runs", shape(rows))


@pytest.mark.slow
def test_files_of_a_run(trained):
    """What a run leaves, so that older and newer results stay comparable."""
    (run,) = (trained / "toy" / "runs").iterdir()
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    attempt = run / "attempts" / "001"
    found = {
        "config": shape(yaml.safe_load((run / "config.yaml").read_text("utf-8"))),
        "metrics": shape(*map(json.loads, lines)),
        "environment": shape(
            json.loads((attempt / "environment.json").read_text("utf-8")), free=["packages"]
        ),
        **{
            name: shape(json.loads((run / f"{name}.json").read_text("utf-8")))
            for name in ("result", "status")
        },
    }
    check("json", "files of a run", found)
    files = [path for path in run.rglob("[!.]*") if path.is_file()]
    check("json", "names in a run's folder", sorted(str(path.relative_to(run)) for path in files))


def test_tables():
    paths = sorted((ROOT / "results").glob("*/tables/*.json"))
    check("json", "tables", shape(*(json.loads(path.read_text("utf-8")) for path in paths)))


def test_claims(committed):
    answers = [
        lsa("claims", "--tier", tier, "--json", "--results", committed).json()
        for tier in ("toy", "proxy", "paper")
    ]
    check("json", "claims", shape(*answers, free=["counts"]))


def test_why(committed):
    answers = [
        lsa("why", *row, "--tier", tier, "--json", "--results", committed).json()
        for row in (["table1", "swin"], ["table3", "net6_n"], ["table2", "net7_identity"])
        for tier in filter(has_runs, ("toy", "proxy"))
    ]
    check("json", "why", shape(*answers))


def test_diff(committed):
    plan = lsa("plan", "table1", "--json").json()["runs"]
    pairs = itertools.pairwise(plan)
    answers = [
        lsa("diff", one["identity"], other["identity"], "--json", "--results", committed).json()
        for one, other in itertools.islice(pairs, 2)
    ]
    check("json", "diff", shape(*answers, free=["config", "code", "environment", "metrics"]))


@pytest.mark.slow
def test_bench(tmp_path):
    told = lsa("bench", "lsa_swin_tiny", "--size", "32", "--batch", "1", "--device", "cpu",
               "--seconds", "0", "--json", "--results", tmp_path).json()  # fmt: skip
    check("json", "bench", shape(told, free=["networks"]))
    written = json.loads((tmp_path / "benchmarks" / "networks.json").read_text("utf-8"))
    assert written == told
