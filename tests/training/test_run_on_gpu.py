"""Whole runs on a GPU; see ``gpu`` in conftest.py."""

import pytest
import torch
from lives import StopAfter
from safetensors.torch import load_file
from test_ranks import together

from lsa_study.training import environment, train

pytestmark = pytest.mark.gpu


@pytest.fixture
def run_there(make_run, gpu):
    device = "auto" if gpu.type == "cpu" else gpu.type  # fp16 is refused on a CPU alone

    def make(name, **changes):
        return make_run(name, runtime__device=device, **changes)

    return make


def same_weights(one, other):
    first, second = load_file(one.weights), load_file(other.weights)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["float32", "amp", "fp16", "bf16"])
@pytest.mark.parametrize("variant", ["swin", "net7"])
def test_a_stopped_run_resumes_bitwise(run_there, monkeypatch, variant, precision, gpu):
    if gpu.type == "cpu" and precision == "bf16":
        monkeypatch.setattr(environment, "need_bfloat16", lambda: None)
    # torch's own convolutions may choose another algorithm at every start.
    whole_deterministic = environment.deterministic
    monkeypatch.setattr(
        environment, "deterministic", lambda device: whole_deterministic(torch.device("cpu"))
    )
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    asked = {"variant": variant, "train__precision": precision}
    whole, pieces = run_there("whole", **asked), run_there("pieces", **asked)
    assert train(whole) == "done"
    assert train(pieces, stop=StopAfter(3)) == "stopped"
    assert train(pieces) == "done"
    assert same_weights(whole, pieces)
    on_gpu = {"amp": "bfloat16", "fp16": "float16"} if gpu.type == "cuda" else {}
    expected = on_gpu | {"bf16": "bfloat16"}
    assert whole.result().precision == expected.get(precision, "float32")


def test_memory_is_counted_and_parts_take_less(run_there, gpu):
    batch = {"train__batch_size": 96, "train__epochs": 1}
    one = run_there("one", **batch)
    parts = run_there("parts", **batch, runtime__accumulate=4)
    assert train(parts) == train(one) == "done"
    used = [folder.result().peak_memory_bytes for folder in (parts, one)]
    assert used[0] > 0
    if gpu.type == "cuda":
        assert used[0] < used[1]


@pytest.mark.parametrize("count", [2])
def test_processes_on_one_device_do_what_one_does_in_parts(run_there, start, count):
    one, two = run_there("one", runtime__accumulate=count), run_there("two")
    assert train(one) == "done"
    assert together(start, two, count) == [0] * count
    first, second = load_file(one.weights), load_file(two.weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=0)


def test_a_compiled_run_learns_as_the_plain_one(run_there, gpu):
    if gpu.type == "cpu":
        pytest.skip("takes minutes on a CPU")
    plain, fast = run_there("plain"), run_there("compiled", runtime__compile=True)
    assert train(plain) == train(fast) == "done"
    for mine, theirs in zip(plain.metrics(), fast.metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)
