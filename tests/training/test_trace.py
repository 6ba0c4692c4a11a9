"""The profiler switch: a trace of real steps, and a run that is no different for it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lsa_study.training import train
from lsa_study.training.trainer import TRACE_WARM_UP


def trace_of(folder):
    (life,) = folder.attempts()
    return life / "trace.json"


@pytest.mark.parametrize(("asked", "recorded"), [(4, 4), (1000, 4 * 3 - TRACE_WARM_UP)])
def test_a_trace_holds_the_steps_after_the_warm_up(make_run, asked, recorded):
    changes = {"train__epochs": 4, "data__train_limit": 96, "train__batch_size": 32}
    folder = make_run(runtime__trace_steps=asked, **changes)
    assert train(folder) == "done"
    events = json.loads(trace_of(folder).read_text())["traceEvents"]
    names = [str(event.get("name")) for event in events]
    assert sum(name == "Optimizer.step#AdamW.step" for name in names) == recorded
    assert any("lsa_kernels::window" in name for name in names)
    assert not list(trace_of(folder).parent.glob("*.part"))


def test_without_the_switch_there_is_none_and_weights_are_the_same(make_run):
    traced, plain = make_run("traced", runtime__trace_steps=2), make_run("plain")
    assert train(traced) == train(plain) == "done"
    assert not trace_of(plain).exists()
    one, other = load_file(traced.weights), load_file(plain.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
