"""The weights a run ends with: its seed's, however often it is stopped; averaged, if so asked."""

import pytest
import torch
from lives import StopAfter, equal, weights_of, without_times

from lsa_study import data, models
from lsa_study.training import evaluate, train


def test_the_seed_alone_decides(make_run):
    folders = [make_run("a"), make_run("b"), make_run("c", seed=1)]
    assert [train(folder) for folder in folders] == ["done"] * 3
    one, same, other = map(weights_of, folders)
    assert equal(one, same)
    assert not equal(one, other)
    assert without_times(folders[0].metrics()) == without_times(folders[1].metrics())


HARD = {
    "model__drop_path": 0.3, "augment__erasing": 0.5, "augment__mixup": 0.8,
    "augment__cutmix": 1.0, "augment__crop": "pad", "train__ema_decay": 0.9,
}  # fmt: skip


def test_stopping_anywhere_changes_nothing(make_run):
    """With every source of randomness on, stopped in mid-epoch, while testing, at a boundary."""
    whole = make_run("whole", **HARD)
    assert train(whole) == "done"
    pieces = make_run("pieces", **HARD)
    for lives, calls in enumerate((1, 3, 0, 2), start=1):
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
        status = pieces.status()
        assert (status.state, status.attempt) == ("stopped", lives)
        assert status.message.startswith("saved at epoch")
        assert pieces.result() is None
    assert train(pieces) == "done"
    assert equal(weights_of(whole), weights_of(pieces))
    assert without_times(whole.metrics()) == without_times(pieces.metrics())
    assert whole.correct_bits.read_bytes() == pieces.correct_bits.read_bytes()
    assert pieces.result().attempts == 5
    assert pieces.result().acc1 == whole.result().acc1


def test_stopping_in_mid_epoch_with_loading_processes_changes_nothing(make_run, image_folder):
    """Image files, the article's augmentation; stopped while workers have pictures ready."""
    files = {
        "tier": "paper", "data__root": image_folder, "data__image_size": 28,
        "data__train_limit": 64, "train__batch_size": 16, "model__backbone": "swin_micro",
    }  # fmt: skip
    whole = make_run("whole", **files, runtime__workers=0)
    assert train(whole) == "done"
    pieces = make_run("pieces", **files, runtime__workers=2)
    for calls, step in ((1, 2), (0, 3)):
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
        assert (pieces.status().epoch, pieces.status().step) == (0, step)
        assert pieces.status().saved == (0, step)
    assert train(pieces) == "done"
    assert equal(weights_of(whole), weights_of(pieces))
    assert without_times(whole.metrics()) == without_times(pieces.metrics())


def test_a_torn_checkpoint_costs_only_the_steps_since_the_one_before(make_run):
    whole, torn = make_run("whole"), make_run("torn", runtime__checkpoint_seconds=0.0001)
    train(whole)
    assert train(torn, stop=StopAfter(2)) == "stopped"
    content = torn.last_checkpoint.read_bytes()
    torn.last_checkpoint.write_bytes(content[: len(content) // 2])
    assert train(torn) == "done"
    assert equal(weights_of(whole), weights_of(torn))
    log = (torn.root / "attempts/002/log.txt").read_text()
    assert "resumed at epoch 1, step 3" in log


def test_accumulation_keeps_the_step(make_run):
    """Two parts give the same weights up to rounding; drop path draws per part, so it is off."""
    one = make_run("one", model__drop_path=0.0)
    two = make_run("two", model__drop_path=0.0, runtime__accumulate=2)
    assert one.settings().identity() == two.settings().identity()
    for folder in (one, two):
        assert train(folder) == "done"
    first, second = weights_of(one), weights_of(two)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=0)
    before = models.from_settings(one.settings().model, image_size=28, num_classes=10)
    moved = max(
        (first[name] - tensor).abs().max().item() for name, tensor in before.state_dict().items()
    )
    assert moved > 1e-2


def test_averaged_weights_and_best_epoch(make_run):
    """EMA by hand over the saved steps; the best epoch's weights are the ones that are kept."""
    folder = make_run(
        train__ema_decay=0.5, evaluation__weights="ema", evaluation__epoch="best", train__epochs=4
    )
    assert train(folder) == "done"
    result, records = folder.result(), folder.metrics()
    best = max(records, key=lambda record: record["acc1"])
    assert (result.weights, result.selected) == ("ema", "best")
    assert (result.acc1, result.epoch) == (best["acc1"], best["epoch"])
    assert result.ema_acc1 == result.acc1 == result.best_acc1
    settings = folder.settings()
    model = models.from_settings(settings.model, image_size=28, num_classes=10)
    model.load_state_dict(weights_of(folder))
    assert evaluate.evaluate(model, data.load(settings), 256).acc1 == pytest.approx(result.acc1)


def test_an_averaged_run_keeps_the_accuracy_of_its_trained_weights(make_run):
    """Averaging changes nothing in training, so it is that of a run without."""
    plain = make_run("plain")
    averaged = make_run("averaged", train__ema_decay=0.9, evaluation__weights="ema")
    for folder in (plain, averaged):
        assert train(folder) == "done"
    alone = [(r["acc1"], r["model_acc1"], r["ema_acc1"]) for r in plain.metrics()]
    assert all(acc1 == of_model and of_ema is None for acc1, of_model, of_ema in alone)
    records = averaged.metrics()
    assert [r["model_acc1"] for r in records] == [acc1 for acc1, *_ in alone]
    assert [r["ema_acc1"] for r in records] == [r["acc1"] for r in records]
    assert any(r["model_acc1"] != r["acc1"] for r in records)


def test_a_decay_of_zero_averages_nothing(make_run):
    """Then the averaged weights are the weights, buffers included."""
    plain, averaged = (
        make_run("plain"),
        make_run("averaged", train__ema_decay=0.0, evaluation__weights="ema"),
    )
    for folder in (plain, averaged):
        assert train(folder) == "done"
    assert equal(weights_of(plain), weights_of(averaged))
    assert averaged.result().ema_acc1 == plain.result().acc1
