"""The benchmarks: what they make of times, the table of goals, and a run with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def goals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import goals

    return goals


def test_a_ratio_is_taken_within_rounds_and_its_interval_by_ranks(goals):
    from rounds import speed

    # A machine that is ten times slower in some rounds moves times, not ratios.
    slow = [1.0, 10.0] * 8
    assert speed(slow, [time / 2 for time in slow]) == [2.0, 2.0, 2.0]
    # Of 15 ratios the 4th and the 12th hold the true median in 96.5 % of cases.
    assert speed([float(n) for n in range(1, 16)], [1.0] * 15) == [8.0, 4.0, 12.0]
    assert speed([1.0, 2.0, 3.0], [1.0] * 3) == [2.0, 1.0, 3.0]


def test_every_median_rests_on_the_rounds_that_are_asked_for(goals):
    from rounds import LEAST, Effort, timed

    calls = []
    pair = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = timed(pair, "a", Effort(), torch.device("cpu"), beside=("b",))
    assert [one["rounds"] for one in found.values()] == [LEAST, LEAST]
    assert calls[4 : 4 + 2 * LEAST] == ["a", "b"] * LEAST  # behind two calls of each, apart
    assert found["b"]["beside"]["b"] == [1.0, 1.0, 1.0]


def test_goals_stand_beside_what_was_measured_and_what_failed(goals, tmp_path):
    machine = {
        "device": "A processor", "threads": 2, "torch": "2.9", "built": "C++ kernels",
        "commit": "0123456789abcdef", "changed_since": False,
    }  # fmt: skip
    times = {"timm": {"speed": [1, 1, 1]}, "ours": {"speed": [1.2, 1.1, 1.3]}}
    times["ours, bf16"] = {"speed": [2.0, 1.9, 2.1], "beside": {"ours": [1.9, 1.8, 2.1]}}
    (tmp_path / "trainer-avx2.json").write_text(
        json.dumps({"machine": machine, "pairs": [{"times": times}]})
    )
    # Ended before its training was timed.
    (tmp_path / "networks-avx2.json").write_text(
        json.dumps({"machine": machine, "networks": {"LSA": {"macs": 1}}})
    )
    rows, text = goals.table(tmp_path, "avx2", {"networks": "ended after 6 minutes", "ddf": ""})
    found = {row["goal"]: (row["measured"], row["met"]) for row in rows}
    assert found["our trainer's step, x timm's script"] == ([1.2, 1.1, 1.3], True)
    in_bf16 = "our trainer's step in bf16, x its own in float32"
    assert found[in_bf16] == ([1.9, 1.8, 2.1], False)
    assert found["training step of Swin-T with LSA, x timm's"] == (None, None)
    assert f"| {in_bf16} | 2.00 | 1.90 [1.80, 2.10] | no |" in text
    assert "- trainer: A processor, 2 threads, torch 2.9, C++ kernels, commit 0123456789\n" in text
    assert "- networks: ended after 6 minutes" in text
    assert len(rows) == 9 + 9 + 3


def test_what_a_process_of_its_own_computes_and_how_it_ends(goals):
    from rounds import Apart

    with pytest.raises(RuntimeError, match=r"its contenders: TypeError: make\(\) missing 5"):
        Apart(goals.network_steps.make, {"timm": "resnet50"}, keep=False)


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    """Without a compiler the operators have no kernels to be timed; a network has its plain way."""
    command = [
        sys.executable, str(BENCHMARKS / "goals.py"), "--tiny", "--rounds", "3", "--seconds", "0",
        "--only", "operators", "--only", "ddf", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {
        "CXX": str(tmp_path / "none"), "LSA_KERNELS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-4000:]
    (kind,) = (path.stem.removeprefix("goals-") for path in tmp_path.glob("goals-*.md"))
    said = json.loads((tmp_path / f"goals-{kind}.json").read_text())["failed"]
    assert "no C++ compiler" in said["operators"]
    assert said["ddf"] == ""
    networks = json.loads((tmp_path / f"ddf-{kind}.json").read_text())["networks"]
    assert networks["DDF"]["macs"] < networks["timm"]["macs"]
    for mode in ("inference", "training"):
        assert networks["DDF"][mode]["rounds"] == 3
        assert networks["timm"][mode]["speed"] == [1.0, 1.0, 1.0]
