"""float16 with a loss scale: steps that overflow are skipped, counted and resumed exactly."""

import pytest
import torch
from lives import StopAfter
from safetensors.torch import load_file

from lsa_study.config import study
from lsa_study.errors import ConfigError
from lsa_study.training import environment, train
from lsa_study.training.step import Stepper

FP16 = {"train__precision": "fp16"}


@pytest.fixture
def overflowing(monkeypatch):
    """float16 on this machine's processor, and losses that overflow at some (epoch, step)."""
    monkeypatch.setattr(environment, "precision", lambda train, device: torch.float16)
    loss_of, places = Stepper._loss_of, set()

    def loss(self, batch, epoch, part):
        found = loss_of(self, batch, epoch, part)
        return found * (1e30 if (epoch, batch.step) in places else 1.0)

    monkeypatch.setattr(Stepper, "_loss_of", loss)
    return places


def updates(monkeypatch):
    """Note after every step whether a weight moved."""
    moved, step = [], Stepper.train_step

    def watched(self, epoch, number, batches):
        before = [p.detach().clone() for p in self.model.parameters()]
        loss = step(self, epoch, number, batches)
        after = self.model.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        return loss

    monkeypatch.setattr(Stepper, "train_step", watched)
    return moved


def test_a_step_that_overflows_is_skipped_and_counted(make_run, overflowing, monkeypatch):
    plain = make_run("plain", **FP16, train__epochs=2)
    assert train(plain) == "done"
    usual = [record["skipped_steps"] for record in plain.metrics()]
    overflowing.add((0, 1))
    moved = updates(monkeypatch)
    folder = make_run("overflow", **FP16, train__epochs=2)
    assert train(folder) == "done"
    records = folder.metrics()
    assert [record["skipped_steps"] for record in records] == [count + 1 for count in usual]
    assert records[0]["loss_scale"] == plain.metrics()[0]["loss_scale"] / 2
    assert moved.count(False) == records[-1]["skipped_steps"]
    assert not moved[1]
    assert all(record["train_loss"] < 10 for record in plain.metrics())


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean(make_run, overflowing, monkeypatch):
    known = Stepper._loss_of

    def infinite(self, batch, epoch, part):
        return known(self, batch, epoch, part) * (torch.inf if batch.step == 1 else 1.0)

    monkeypatch.setattr(Stepper, "_loss_of", infinite)
    folder = make_run("infinite", **FP16, train__epochs=1)
    assert train(folder) == "done"
    assert folder.metrics()[0]["train_loss"] < 10


def test_scale_and_count_are_resumed_exactly(make_run, overflowing):
    overflowing.update({(0, 1), (1, 0)})
    whole, pieces = make_run("whole", **FP16), make_run("pieces", **FP16)
    assert train(whole) == "done"
    for calls in (2, 3, 1):
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
    assert train(pieces) == "done"
    first, second = load_file(whole.weights), load_file(pieces.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for mine, theirs in zip(whole.metrics(), pieces.metrics(), strict=True):
        for key in ("train_loss", "acc1", "skipped_steps", "loss_scale"):
            assert mine[key] == theirs[key], key


def test_a_run_begun_on_a_processor_goes_on_with_a_scale_of_its_own(make_run, monkeypatch):
    """Without a GPU it is float32 and has no loss scale; a GPU that goes on begins with one."""
    folder = make_run("moved", **FP16, train__epochs=2)
    assert train(folder, stop=StopAfter(2)) == "stopped"
    monkeypatch.setattr(environment, "precision", lambda train, device: torch.float16)
    assert train(folder) == "done"
    assert folder.metrics()[-1]["loss_scale"] > 0


def test_a_run_that_no_scale_saves_has_diverged(make_run, overflowing):
    overflowing.update((epoch, step) for epoch in range(40) for step in range(40))
    folder = make_run("lost", **FP16, train__epochs=40)
    assert train(folder) == "diverged"
    assert "gradients overflow at a loss scale of 0.5 at lr" in folder.result().reason


def test_fp16_on_a_processor_is_refused_where_it_is_asked_for():
    overrides = ["train.precision=fp16", "runtime.device=cpu"]
    with pytest.raises(ConfigError, match=r"float16 needs a GPU; give train.precision: float32"):
        study.load_study("table1", overrides=overrides)


def test_the_paper_tier_trains_in_fp16_on_a_gpu_and_says_what_it_did(make_run):
    (row,) = study.load_study("table1", tier="paper", only="swin").variants.values()
    assert row.train.precision == "fp16"
    gpu, processor = torch.device("cuda"), torch.device("cpu")
    assert environment.precision(row.train, gpu) == torch.float16
    assert environment.precision(row.train, processor) == torch.float32
    folder = make_run("here", **FP16, train__epochs=1)
    assert train(folder) == "done"
    assert "skipped_steps" not in folder.metrics()[0]
    if not torch.cuda.is_available():
        assert folder.result().precision == "float32"
