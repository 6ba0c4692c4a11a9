"""One run by several real processes that talk to each other."""

import itertools
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsa_study import data
from lsa_study.data.paths import DataLacks
from lsa_study.models import volo
from lsa_study.rundir import RunDir
from lsa_study.training import train, trainer

STATES = {"done": 0, "stopped": 10, "failed": 11, "diverged": 12, "oom": 13}


def live(root, prepare=None) -> int:
    stop = prepare() if prepare is not None else None
    return STATES[train(RunDir(root), stop=stop or (lambda: False))]


def together(start, folder: RunDir, count=2, prepare=(None, None)) -> list[int]:
    """Run ``count`` processes on one folder; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        start(live, folder.root, prepare[rank], RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(count)
    ]
    for process in processes:
        process.join(90)
    return [process.exitcode for process in processes]


HARD = {
    "model__drop_path": 0.3, "augment__mixup": 0.8, "augment__cutmix": 1.0, "augment__hflip": 0.5,
    "augment__erasing": 0.3, "train__ema_decay": 0.9, "evaluation__batch_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_processes_do_what_one_does_in_as_many_parts(make_run, start, count, accumulate):
    one = make_run("one", runtime__accumulate=count * accumulate, **HARD)
    two = make_run("two", runtime__accumulate=accumulate, **HARD)
    assert train(one) == "done"
    assert together(start, two, count, (None,) * count) == [0] * count
    first, second = load_file(one.weights), load_file(two.weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)
    for mine, theirs in zip(one.metrics(), two.metrics(), strict=True):
        for key in ("train_loss", "loss"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4)
        for key in ("acc1", "acc5", "ema_acc1"):
            assert mine[key] == pytest.approx(theirs[key], abs=0.5)
    assert len(two.attempts()) == 1
    assert two.result().effective_batch == 32


def small_volo():
    volo.SIZES["volo_d1"] = volo.VoloSize((1, 1, 1, 1), (16, 32), (2, 4), stem_dim=8)


def test_processes_mix_tokens_as_one_does_in_as_many_parts(make_run, start, monkeypatch):
    """Boxes belong to parts; the statistics of batch norm are the mean over parts."""
    monkeypatch.setitem(volo.SIZES, "volo_d1", None)  # put back at the end
    small_volo()
    asked = {
        "model__backbone": "volo_d1", "data__image_size": 32, "train__epochs": 1,
        "model__drop_path": 0.3, "train__tokens": "{labels: plain}",
    }  # fmt: skip
    one, two = make_run("one", runtime__accumulate=2, **asked), make_run("two", **asked)
    assert train(one) == "done"
    assert together(start, two, prepare=(small_volo, small_volo)) == [0, 0]
    first, second = load_file(one.weights), load_file(two.weights)
    assert any("running" in name for name in first)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)
    losses = [folder.metrics()[0]["train_loss"] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def vote_at_every_step():
    trainer.VOTE_SECONDS = 0.0


def stop_at_the_second_question():
    vote_at_every_step()
    questions = itertools.count()
    return lambda: next(questions) == 1


def test_if_one_is_asked_to_stop_all_do_and_another_number_goes_on(make_run, start):
    """Steps are whole, so two processes can begin what one ends."""
    whole, cut = make_run("whole", model__drop_path=0.0), make_run("cut", model__drop_path=0.0)
    prepare = (vote_at_every_step, stop_at_the_second_question)
    assert together(start, cut, prepare=prepare) == [10, 10]
    assert (cut.status().state, cut.status().step) == ("stopped", 2)
    assert [train(cut), train(whole)] == ["done", "done"]
    first, second = load_file(whole.weights), load_file(cut.weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=0)


def lack_data():
    def lacking(*_, **__):
        raise DataLacks("n01/x.JPEG: cannot be decoded")

    data.load = lacking


def fail_in_the_second_step():
    from lsa_study.training.step import Stepper

    original = Stepper._gradients

    def failing(self, epoch, step, batches):
        if step == 1:
            raise KeyError("rel_pos")
        return original(self, epoch, step, batches)

    Stepper._gradients = failing


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [(lack_data, "data", "n01/x.JPEG: cannot"), (fail_in_the_second_step, "bug", "KeyError")],
)
def test_if_one_fails_all_end_and_its_words_are_kept(make_run, start, fault, cause, words):
    folder = make_run()
    assert together(start, folder, prepare=(None, fault)) == [11, 11]
    assert folder.status().cause == cause
    assert words in folder.status().message
    assert not Path(folder.root / "owner.json").exists()


def begin_otherwise():
    """With weights that another seed gave."""
    from lsa_study import models

    original = models.from_settings

    def other(*arguments, **options):
        torch.manual_seed(99)
        return original(*arguments, **options)

    models.from_settings = other


def test_all_begin_with_the_first_one_s_weights(make_run, start):
    one, two = make_run("one", runtime__accumulate=2), make_run("two")
    assert train(one) == "done"
    assert together(start, two, prepare=(None, begin_otherwise)) == [0, 0]
    first, second = load_file(one.weights), load_file(two.weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)


def drift_in_the_second_step():
    from lsa_study.training.step import Stepper

    original = Stepper.train_step

    def drifting(self, epoch, step, batches):
        loss = original(self, epoch, step, batches)
        if step == 1:
            next(self.model.parameters()).data.view(-1)[0] += 1e-3
        return loss

    Stepper.train_step = drifting


def test_weights_that_are_no_longer_equal_end_the_run(make_run, start):
    folder = make_run()
    assert together(start, folder, prepare=(None, drift_in_the_second_step)) == [11, 11]
    assert "epoch 1: the weights of the processes are no longer equal" in folder.status().message


def die_in_the_second_step():
    import os

    from lsa_study.training.step import Stepper

    original = Stepper._gradients

    def dying(self, epoch, step, batches):
        if step == 1:
            os._exit(9)
        return original(self, epoch, step, batches)

    Stepper._gradients = dying


def test_if_one_dies_the_other_says_so(make_run, start):
    folder = make_run()
    assert together(start, folder, prepare=(None, die_in_the_second_step)) == [11, 9]
    assert folder.status().cause == "node"
    assert "lost the other processes" in folder.status().message


def test_the_wrong_number_of_processes_is_the_users_fault(make_run, start):
    folder = make_run(train__batch_size=33)
    assert together(start, folder) == [11, 11]
    assert folder.status().cause == "config"
    assert "cannot be cut into 2 parts" in folder.status().message
