"""The call that a GPU is wanted for, on a CPU with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def call(*given):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, given)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_step_comes_to_its_end(tmp_path):
    done = call("--device", "cpu", "--minutes", 12, "--out", tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, done.stdout[-4000:]
    assert [one["exit_code"] for one in found] == [0] * 7
    said = {one["step"]: one["output"] for one in found}
    assert "4 passed" in said["tests"]
    assert "net7_swin_tiny_n" in said["networks"]
    # One case of neighborhoods, by all that can compute it.
    assert "flex" in said["choices"]
    assert "wrong" not in said["choices"]
    assert json.loads((tmp_path / "benchmarks" / "choices.json").read_text())["cases"]
    assert "1 done" in said["runs"]
    for name in ("operators", "training"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["machine"]["threads"]


def test_what_was_found_stays_where_a_later_step_has_no_time(tmp_path):
    done = call("--device", "cpu", "--minutes", 0, "--out", tmp_path, "--steps", "environment,runs")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 1
    assert [one["exit_code"] for one in found] == [0, None]
    assert "python" in found[0]["output"]
    assert found[1]["output"] == "no time was left"
    assert "no such step" in call("--out", tmp_path, "--steps", "walk").stderr
