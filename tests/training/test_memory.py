"""Costs: memory that runs out (of a GPU, a machine, what processes share); processor time."""

import re

import pytest
import torch
from lives import StopAfter

from lsa_study.training import checkpoint, run, train
from lsa_study.training.step import Stepper


def fail_in_second_step(monkeypatch, fail):
    original = Stepper._loss_of
    calls = []

    def loss(self, *given):
        calls.append(1)
        if len(calls) == 2:
            fail()
        return original(self, *given)

    monkeypatch.setattr(Stepper, "_loss_of", loss)


def full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def test_out_of_memory_on_a_gpu_is_a_result(make_run, monkeypatch):
    fail_in_second_step(monkeypatch, full)
    folder = make_run()
    assert train(folder) == "oom"
    reason = folder.result().reason
    assert reason.startswith("epoch 1, step 2: out of memory at a batch of 32 in 1 part")
    assert reason.endswith("runtime.accumulate=2")


def test_what_is_advised_where_batch_norm_bounds_the_parts_is_accepted(make_run, monkeypatch):
    """As many parts as there can be, then smaller groups; each is trained to its end."""
    bounded = {"model__op": "{kind: ddwconv}", "train__norm_batch": 8, "train__epochs": 1}
    original = Stepper._loss_of
    for number, (given, advised) in enumerate(
        (
            ({}, {"runtime.accumulate": "4"}),
            ({"runtime.accumulate": "4"}, {"train.norm_batch": "4", "runtime.accumulate": "8"}),
        )
    ):
        monkeypatch.setattr(Stepper, "_loss_of", original)
        options = {name.replace(".", "__"): value for name, value in given.items()}
        folder = make_run(f"full{number}", **bounded, **options)
        fail_in_second_step(monkeypatch, full)
        assert train(folder) == "oom"
        reason = folder.result().reason.partition("in less memory: ")[2]
        assert dict(re.findall(r"([a-z_.]+)=(\d+)", reason)) == advised
        assert ("numbers change" in reason) == ("train.norm_batch" in advised)
        monkeypatch.setattr(Stepper, "_loss_of", original)
        options = {name.replace(".", "__"): value for name, value in advised.items()}
        assert train(make_run(f"again{number}", **{**bounded, **options})) == "done"


def python_asks_for_too_much():
    raise MemoryError


def torch_asks_for_too_much():
    torch.empty(10**16)


@pytest.mark.parametrize("ask", [python_asks_for_too_much, torch_asks_for_too_much])
def test_a_machine_whose_memory_runs_out_fails_the_run_which_can_go_on(make_run, monkeypatch, ask):
    fail_in_second_step(monkeypatch, ask)
    folder = make_run()
    assert train(folder) == "failed"
    assert folder.status().cause == "oom-host"
    assert folder.status().message.startswith("memory: this machine's ran out")
    assert folder.result() is None
    assert ask.__name__ in (folder.attempts()[-1] / "log.txt").read_text()
    assert train(folder) == "done"


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "a loading process was killed"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "a loading process was killed"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
         "dataloader's workers are out of shared memory.", "/dev/shm: loading processes cannot"),
        ("unable to open shared memory object </torch_7>: Too many open files (24)", "ulimit -n"),
        ("unable to mmap 8 bytes from file </torch_7>: Cannot allocate memory (12)", "memory: "),
    ],
)  # fmt: skip
def test_trouble_of_loading_processes_comes_with_its_cure(make_run, monkeypatch, raised, shown):
    """Torch raises it wherever the main process is then."""
    error = RuntimeError(raised)
    monkeypatch.setattr(run.Trainer, "_save", lambda self: (_ for _ in ()).throw(error))
    folder = make_run()
    assert train(folder) == "failed"
    assert folder.status().cause == "oom-host"
    assert shown in folder.status().message
    assert raised.strip() in folder.status().message
    assert re.search("; (raise|give) ", folder.status().message)


def test_processor_time_is_counted_over_all_attempts(make_run):
    """Where each of them counted it, as code of before did not."""
    folder = make_run(train__epochs=4)
    assert train(folder, stop=StopAfter(3)) == "stopped"
    saved = checkpoint.load(folder)
    begun = saved["progress"]["processor_seconds"]
    assert 0 < begun < 60
    assert train(folder) == "done"
    found = folder.result()
    assert found.processor_seconds_per_epoch > begun / 4

    old = make_run("old", train__epochs=4)
    assert train(old, stop=StopAfter(3)) == "stopped"
    state = checkpoint.load(old)
    del state["progress"]["processor_seconds"]
    checkpoint.save(old, state)
    assert train(old) == "done"
    assert old.result().processor_seconds_per_epoch is None
    assert old.result().seconds_per_epoch > 0
