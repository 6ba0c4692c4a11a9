"""Claims of costs: networks counted and timed without a run, time and memory of training."""

import json
import re

import pytest
import yaml
from synthetic import write_run, write_study

from lsa_study.analysis import claims
from lsa_study.analysis.inference import more_seeds, of_values
from lsa_study.config import shipped
from lsa_study.config.ledger import Claims
from lsa_study.errors import ConfigError

CLAIMS = {claim.id: claim for claim in Claims.read()}


def judged(results, name, tier="proxy", path=None):
    found = {one.claim.id: one for one in claims.judge_tier(results, tier, path=path)}
    return found[name]


def test_parameters_and_operations_are_counted_without_a_run(tmp_path):
    """By the article's own tier's networks, whatever is asked; exact, so they have no p value."""
    found = [one for one in claims.judge_tier(tmp_path, "proxy") if one.claim.metric == "params"]
    found += [one for one in claims.judge_tier(tmp_path, "paper") if one.claim.metric == "macs"]
    assert len(found) >= 10
    for one in found:
        assert (one.word, one.p, one.adjusted) == ("supported", None, None), one.claim.id
        assert one.method == "counted, results/benchmarks/costs.json, without a run"
        printed = one.article is not None
        assert printed or one.claim.id.startswith("ddf-"), one.claim.id
        assert not printed or one.estimate.mean == pytest.approx(one.article, abs=2), one.claim.id
    toy = [one for one in claims.judge_tier(tmp_path, "toy") if one.claim.metric == "params"]
    assert {one.word for one in toy} == {"no verdict"}


def own(folder, **networks):
    """A folder to work in, with a benchmark of these networks: quartiles and rounds."""
    shipped.copy_to(folder)
    path = folder / "results" / "benchmarks" / "networks.json"
    document = json.loads(path.read_text("utf-8"))
    for name, (low, median, high, rounds) in networks.items():
        timed = {"low": low, "median": median, "high": high, "rounds": rounds}
        document["networks"][name]["inference"] = timed
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.mark.parametrize(
    ("elsa", "word"),
    [
        ((0.99, 1.0, 1.01, 25), "supported"),
        ((2.99, 3.0, 3.01, 25), "contradicted"),
        ((1.0, 1.99, 2.9, 25), "unresolved"),
        ((0.5, 1.0, 3.0, 3), "unresolved"),
    ],
)
def test_inference_is_judged_by_the_committed_benchmark(tmp_path, monkeypatch, elsa, word):
    own(tmp_path, elsa_swin_tiny=elsa, net7_swin_tiny_n=(1.99, 2.0, 2.01, 25))
    monkeypatch.chdir(tmp_path)
    got = judged(tmp_path, "table7-elsa-faster-than-net7n")
    assert got.word == word
    assert got.estimate.mean == pytest.approx(100 * (2.0 / elsa[1] - 1))
    assert (got.p < 0.05) == (word != "unresolved")
    assert got.article == pytest.approx(100 * (531 / 167 - 1))
    for part in ("networks.json", "elsa_swin_tiny against net7_swin_tiny_n", "rounds"):
        assert part in got.method
    assert "C++ kernels" in got.comparable
    assert "the article's on one V100" in got.comparable


def test_the_interval_of_a_ratio_follows_from_quartiles_and_rounds(tmp_path, monkeypatch):
    """Of normal times: the median's error is 1.2533 deviations over the root of the rounds."""
    half = 0.6744897501960817 * 0.01
    rounds = 10_000
    slow, fast = (1 - half, 1.0, 1 + half, rounds), (1 - half, 1.0, 1 + half, rounds)
    own(tmp_path, elsa_swin_tiny=slow, net7_swin_tiny_n=fast)
    monkeypatch.chdir(tmp_path)
    got = judged(tmp_path, "table7-elsa-faster-than-net7n").estimate
    assert got.high == pytest.approx(100 * 1.96 * 1.2533 * 0.01 * 2**0.5 / 100, rel=0.01)


def test_a_network_that_was_not_timed_or_counted_is_not_run(tmp_path, monkeypatch):
    path = own(tmp_path)
    document = json.loads(path.read_text("utf-8"))
    del document["networks"]["net7_swin_tiny_n"]
    path.write_text(json.dumps(document), "utf-8")
    (path.parent / "costs.json").write_text('{"networks": {}}')
    monkeypatch.chdir(tmp_path)
    got = judged(tmp_path, "table7-elsa-faster-than-net7n")
    assert (got.verdict, got.reason) == ("not run", "net7_swin_tiny_n: not timed; run lsa bench")
    got = judged(tmp_path, "table4-few-parameters")
    assert got.verdict == "not run"
    assert got.reason == "table6/elsa: not counted; run python benchmarks/costs.py"
    path.unlink()
    got = judged(tmp_path, "table7-elsa-faster-than-net7n")
    assert got.reason == "networks.json: no benchmark of both rows; run lsa bench"
    path.write_text('{"networks": {}}')
    with pytest.raises(ConfigError, match=r"networks.json: no figures .* run lsa bench"):
        judged(tmp_path, "table7-elsa-faster-than-net7n")


def test_inference_needs_rows_that_name_networks(tmp_path):
    claim = CLAIMS["table7-elsa-faster-than-net7n"].model_dump()
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [claim | {"rows": ["table4/elsa", "table4/swin"]}]}))
    got = judged(tmp_path, claim["id"], path=path)
    assert got.reason == "table4/elsa: names no network of a benchmark"


TRAINING = "table7-elsa-trains-faster-than-net7n"


def test_time_of_training_is_compared_on_one_device_and_names_what_computed(tmp_path):
    for name in ("table4", "table5"):
        loaded = write_study(tmp_path, name, tier="proxy", seeds=[0, 1])
    unfold = [run for run in loaded.runs() if run.variant == "net7_n_unfold"]
    changes = {"implementation": "Layer: unfold"}
    for run in unfold:
        write_run(
            tmp_path, run, changes=changes | {"processor_seconds_per_epoch": 100.0 + run.seed}
        )
    got = judged(tmp_path, TRAINING)
    assert got.estimate.n == 2
    assert got.estimate.mean > 500
    assert "net7_n_unfold by Layer: unfold" in got.method
    assert "elsa by reference" in got.method
    assert "on Processor 9000" in got.numbers
    write_run(tmp_path, unfold[0], changes=changes | {"device": "Other chip"})
    got = judged(tmp_path, TRAINING)
    assert got.verdict == "unresolved (the rows ran on different devices)"


@pytest.mark.parametrize(("kind", "word"), [("cpu", "not run"), ("cuda", "supported")])
def test_seconds_by_the_clock_say_nothing_of_runs_on_a_processor(tmp_path, kind, word):
    """Other work beside a run lengthens them; on a GPU a run is alone."""
    for run in write_study(tmp_path, "table3", tier="proxy", seeds=range(5)).runs():
        slow = {"net7_n_unfold": 3.0}.get(run.variant, 1.0)
        clock = {"seconds_per_epoch": slow * (10 + 0.1 * run.seed**slow)}
        none = {"processor_seconds_per_epoch": None, "device_kind": kind}
        write_run(tmp_path, run, changes=clock | none)
    got = judged(tmp_path, "table3-neighboring-slower")
    assert got.word == word, got.reason
    if kind == "cpu":
        assert got.reason == "no processor time of an epoch recorded of both rows at one seed"
    else:
        assert got.method.startswith("time of an epoch in training on Processor 9000")


def test_a_claim_of_time_that_is_open_says_how_many_seeds_it_would_take(tmp_path):
    """By the same test, at the level that is left after Holm."""
    seconds = {"net7": (10.0, 10.4, 9.7), "net7_n_unfold": (10.2, 10.3, 10.1)}
    for run in write_study(tmp_path, "table3", tier="proxy", seeds=[0, 1, 2]).runs():
        if run.variant in seconds:
            changes = {"processor_seconds_per_epoch": seconds[run.variant][run.seed]}
            write_run(tmp_path, run, changes=changes)
    got = judged(tmp_path, "table3-neighboring-slower")
    needs = re.fullmatch(r"unresolved \(about (\d+) more seeds, (\d+) to any number\)", got.verdict)
    assert int(needs[1]) == got.wanted > int(needs[2]) > 3
    noise = of_values(got.estimate)
    assert got.more(0.05)[0] == more_seeds(noise, got.estimate.mean, 0.05)[0] < got.wanted


def test_times_of_some_of_the_declared_seeds_are_always_valid(tmp_path):
    """Whoever looks after every seed must not find what five seeds do not hold."""
    for run in write_study(tmp_path, "table3", tier="proxy", seeds=[0, 1]).runs():
        slow = {"net7_n_unfold": 12.0}.get(run.variant, 10.0) + 0.001 * run.seed
        write_run(tmp_path, run, changes={"processor_seconds_per_epoch": slow})
    got = judged(tmp_path, "table3-neighboring-slower")
    assert (got.word, got.sequential) == ("unresolved", True)
    assert got.method.endswith("; paired, always valid")
    assert got.wanted == 3, "the declared ones have the narrow interval"


def test_equal_times_at_every_seed_decide_nothing(tmp_path):
    for name in ("table4", "table5"):
        for run in write_study(tmp_path, name, tier="proxy", seeds=[0, 1]).runs():
            write_run(tmp_path, run, changes={"processor_seconds_per_epoch": 5.0})
    got = judged(tmp_path, TRAINING)
    assert got.verdict == "unresolved (equal at all seeds: no noise known)"


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    [
        ({}, "no device memory recorded of both rows at one seed", "not run"),
        ({"device_kind": "cuda", "peak_memory_bytes": None}, "no device memory", "not run"),
        ({"device_kind": "cuda"}, "", "supported"),
    ],
)
def test_memory_is_that_of_a_device_alone(tmp_path, change, reason, word):
    """On a CPU the record holds the whole process's, which says nothing of an operator.

    Where none is recorded, that is the reason, whatever devices there were.
    """
    for run in write_study(tmp_path, "table3", tier="proxy", seeds=range(5)).runs():
        more = {"net7_n_unfold": 2.0}.get(run.variant, 1.0)
        peak = {"peak_memory_bytes": round(1e9 * more) + run.seed}
        of = {"device": f"chip of {run.variant}"} if reason else {}
        write_run(tmp_path, run, changes=peak | change | of)
    got = judged(tmp_path, "table3-unfold-memory")
    assert got.reason.startswith(reason)
    assert got.word == word
    if word == "supported":
        assert got.estimate.mean == pytest.approx(100, abs=0.01)
        assert "peak device memory" in got.method
