"""Runs whose epoch held-out training images choose: the test set is looked at once, at the end."""

import numpy as np
import pytest
import torch
from lives import StopAfter, weights_of, without_times

from lsa_study import data, models
from lsa_study.training import evaluate, train
from lsa_study.training.tasks import classify

CHOSEN = {
    "data__train_limit": 128, "data__validation": 32, "evaluation__epoch": "best",
    "train__epochs": 3,
}  # fmt: skip


def network(folder):
    model = models.from_settings(folder.settings().model, image_size=28, num_classes=10)
    model.load_state_dict(weights_of(folder))
    return model


@pytest.mark.parametrize("ema", [False, True])
def test_held_out_images_choose_and_the_test_set_is_seen_once(make_run, monkeypatch, ema):
    looked = []

    def watched(model, sets, *rest, held_out=False, **named):
        looked.append(held_out)
        return evaluate.evaluate(model, sets, *rest, held_out=held_out, **named)

    monkeypatch.setattr(classify, "evaluate", watched)
    averaged = {"train__ema_decay": 0.5, "evaluation__weights": "ema"} if ema else {}
    folder = make_run(**CHOSEN, **averaged)
    assert train(folder) == "done"
    assert looked == [True] * (3 * (1 + ema)) + [False]
    result, records = folder.result(), folder.metrics()
    best = max(records, key=lambda record: record["acc1"])
    assert (result.selected, result.epoch) == ("best by validation", best["epoch"])
    assert (result.best_acc1, result.train_images) == (best["acc1"], 96)
    sets = data.load(folder.settings())
    model = network(folder)
    tested = evaluate.evaluate(model, sets, 256)
    assert (result.acc1, result.loss) == (tested.acc1, pytest.approx(tested.loss))
    assert result.ema_acc1 == (result.acc1 if ema else None)
    packed = np.frombuffer(folder.correct(result.test_images), np.uint8)
    assert np.unpackbits(packed, count=result.test_images).tolist() == tested.bits.tolist()
    assert evaluate.evaluate(model, sets, 256, held_out=True).acc1 == pytest.approx(best["acc1"])


def test_the_last_epoch_is_tested_too_where_images_are_held_out(make_run):
    folder = make_run(**{**CHOSEN, "evaluation__epoch": "last", "train__epochs": 2})
    assert train(folder) == "done"
    result = folder.result()
    assert (result.selected, result.epoch) == ("last", 2)
    tested = evaluate.evaluate(network(folder), data.load(folder.settings()), 256)
    assert result.acc1 == tested.acc1


@pytest.mark.parametrize("calls", [4, 12])
def test_a_resumed_run_is_chosen_alike(make_run, calls):
    """Stopped in the middle of an epoch, and in the last test of the chosen weights."""
    whole, cut = make_run("whole", **CHOSEN), make_run("cut", **CHOSEN)
    assert train(whole) == "done"
    assert train(cut, stop=StopAfter(calls)) == "stopped"
    assert train(cut) == "done"
    assert without_times(cut.metrics()) == without_times(whole.metrics())
    one, other = whole.result(), cut.result()
    assert (one.acc1, one.loss, one.epoch) == (other.acc1, other.loss, other.epoch)


def test_encoded_images_are_held_out_too(make_run, image_folder):
    folder = make_run(
        tier="paper", data__root=image_folder, data__image_size=28, data__train_limit=64,
        data__validation=8, runtime__workers=0, model__backbone="swin_micro",
        augment__mixup=0.0, augment__cutmix=0.0,
    )  # fmt: skip
    sets = data.load(folder.settings())
    assert not {*sets._kept.tolist()} & {*sets._held.tolist()}
    assert (sets.source.train_images, sets.source.held_out) == (56, 8)
    held = [labels for _, _, labels in sets.test(3, held_out=True)]
    assert sorted(torch.cat(held).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    trained = [batch.targets for batch in sets.train(sets.epoch(0, 56))]
    assert torch.bincount(torch.cat(trained)).tolist() == [14] * 4
