"""``lsa bench``: real networks timed in turns, and Table 7 made of what it wrote."""

import dataclasses
import json

import pytest
import torch

import lsa_kernels
from lsa_study.analysis.article import rates_of
from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.models import throughput


def test_networks_are_timed_beside_window_attention(tmp_path):
    found = throughput.bench(
        ["dwconv_swin_tiny"], size=32, batch=2, device="cpu", seconds=0.0, results=tmp_path
    )
    assert list(found["networks"]) == [throughput.LSA, "dwconv_swin_tiny"]
    for one in found["networks"].values():
        for mode in throughput.MODES:
            assert one[mode]["rounds"] >= 3
            assert one[mode]["low"] <= one[mode]["median"] <= one[mode]["high"]
            assert one[mode]["images_per_second"] == pytest.approx(2 / one[mode]["median"])
            assert one[mode]["peak_bytes"] > 1e5
    # A training step holds activations for the backward pass.
    lsa = found["networks"][throughput.LSA]
    assert lsa["training"]["peak_bytes"] > lsa["inference"]["peak_bytes"]
    assert 28e6 < lsa["params"] < 28.3e6
    assert json.loads((tmp_path / "benchmarks" / "networks.json").read_text()) == found
    assert "x LSA" in throughput.bench_text(found)


def test_the_kernels_named_are_those_of_the_device(monkeypatch):
    assert throughput.machine(torch.device("cpu"))["kernels"].endswith("C++ kernels")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(lsa_kernels.gpu, "why_no_tensor_cores", lambda area: "untested")
    on_card = throughput.machine(torch.device("cuda"))["kernels"]
    assert on_card.endswith("Triton kernels, no tensor cores: untested")


def test_an_unknown_network_is_refused_before_anything_is_timed(tmp_path):
    with pytest.raises(ConfigError, match=r"no such network; did you mean elsa_swin_tiny"):
        throughput.bench(
            ["elsa_swin_tny"], size=32, batch=1, device="cpu", seconds=0, results=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_advice_is_an_option_that_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentLacks, match="do without a GPU: --device cpu, or an empty"):
        throughput.place_of("cuda", None)


def written(tmp_path, networks):
    """Table 7 with a benchmark of these training and inference rates."""
    timed = {
        name: {"inference": {"images_per_second": a}, "training": {"images_per_second": b}}
        for name, (a, b) in networks.items()
    }
    machine = {"device": "A card", "threads": 2, "torch": "2.9"}
    answer = {"machine": machine, "batch": 8, "size": 224, "precision": "float32"}
    (tmp_path / "networks.json").write_text(json.dumps(answer | {"networks": timed}))
    return table7(tmp_path / "networks.json")


def table7(benchmark):
    loaded = study.load_study("table7", tier="paper")
    file = loaded.file.model_copy(update={"benchmark": str(benchmark)})
    return dataclasses.replace(loaded, file=file)


def empty(tmp_path) -> Collected:
    return collect(tmp_path, "paper")


def test_table_7_shows_rates_and_ratios_beside_the_article_s(tmp_path):
    loaded = written(tmp_path, {"lsa_swin_tiny": (100, 40), "net7_swin_tiny_n": (150, 30)})
    table = build(loaded, empty(tmp_path))
    rows = {row.variant: row.columns for row in table.rows}
    assert rows["swin"]["Training (images/s)"] == "40 (1.00)"
    assert rows["net7_n"]["Inference (images/s)"] == "150 (1.50)"
    assert rows["net7_n"]["Training (images/s)"] == "30 (0.75)"
    assert rows["net7_n"]["Images/s (article)"] == "167 (0.23)"
    assert "Training (images/s)" not in rows["elsa"]
    assert any("A card, 2 threads, torch 2.9" in note.text for note in table.notes)


def test_without_a_benchmark_the_table_has_the_article_s_rates_alone(tmp_path):
    loaded = table7(tmp_path / "none.json")
    assert rates_of(loaded) == ({}, "")
    assert "Training (images/s)" not in build(loaded, empty(tmp_path)).header()


@pytest.mark.parametrize("text", ["{", "[]", '{"networks": {}, "machine": {}}'])
def test_a_broken_benchmark_is_named(tmp_path, text):
    loaded = written(tmp_path, {"lsa_swin_tiny": (1, 1)})
    (tmp_path / "networks.json").write_text(text)
    with pytest.raises(ConfigError, match=r"networks\.json: no figures of these rows"):
        rates_of(loaded)
