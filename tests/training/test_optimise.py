"""Learning rates against the article's numbers; which parameters are decayed."""

import math

import pytest
import torch
from torch import nn

from lsa_study.config import study
from lsa_study.training import optim


def rates(tier="paper", steps=10, **changes):
    """The rate of every step of a run."""
    overrides = [f"train.{key}={value}" for key, value in changes.items()]
    (run,) = study.load_study(
        "table1", tier=tier, only="swin", seeds=[0], overrides=overrides
    ).runs()
    train = run.settings.train
    optimizer = optim.optimiser(nn.Linear(1, 1), train)
    set_rate = optim.schedule(optimizer, train, steps=steps)
    found = []
    for epoch in range(train.epochs):
        for step in range(steps):
            set_rate(epoch, step)
            found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_articles_schedule():
    """Linear from 1e-6 over 20 epochs, a cosine counted from epoch 0 over 300, then 1e-5."""
    found = rates(steps=1)
    assert len(found) == 310
    assert found[0] == pytest.approx(1e-6)
    assert found[10] == pytest.approx(1e-6 + 10 * (1e-3 - 1e-6) / 20)
    assert found[20] == pytest.approx(9.89e-4, abs=5e-7)
    assert max(found) < 1e-3
    for epoch in (20, 150, 299):
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300))
        assert found[epoch] == pytest.approx(cosine)
    assert found[300:] == [1e-5] * 10


def test_the_rate_moves_once_an_epoch_or_at_every_step():
    by_epoch = rates(steps=4)
    assert by_epoch == [rate for rate in rates(steps=1) for _ in range(4)]
    by_step = rates(steps=4, schedule="step")
    assert by_step[::4] == pytest.approx(rates(steps=1))
    assert len(set(by_step[:1200])) == 1200


def test_the_peak_is_scaled_to_the_batch():
    assert max(rates(steps=1, batch_size=512)) == pytest.approx(max(rates(steps=1)) / 2, rel=0.02)


def test_warm_up_and_cool_down_shrink_in_proportion():
    """12 epochs: 30 epochs around the cosine become 6, of which 4 warm up and 2 cool down."""
    found = rates(steps=1, epochs=12)
    assert found[0] == pytest.approx(1e-6)
    assert found[3] == pytest.approx(1e-6 + 3 * (1e-3 - 1e-6) / 4)
    for epoch in range(4, 10):
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 10))
        assert found[epoch] == pytest.approx(cosine)
    assert found[10:] == [1e-5, 1e-5]


def released(steps, epochs, peak, falls):
    """As mmcv's hook, by its documentation: warm-up takes a share of what the decay says."""
    found, warm, ratio = [], 2 * steps, 0.001
    for t in range(steps * epochs):
        rate = falls(t, peak)
        if t < warm:
            rate *= 1 - (1 - t / warm) * (1 - ratio)
        found.append(rate)
    return found


@pytest.mark.parametrize("kind", ["steps", "poly"])
def test_decays_of_detection_and_segmentation(kind):
    steps, epochs = 5, 12
    written = {"steps": "{kind: steps, milestones: [8, 11]}", "poly": "{kind: poly, power: 0.9}"}
    found = rates(
        steps=steps, epochs=epochs, schedule="step", decay=written[kind], warmup_epochs=2,
        cooldown_epochs=0, lr="1.0e-4", lr_batch=1024, warmup_lr="1.0e-7", min_lr=0.0,
    )  # fmt: skip

    def falls(t, peak):
        if kind == "poly":
            return peak * (1 - t / (steps * epochs)) ** 0.9
        return peak * (1.0 if t < 8 * steps else 0.1 if t < 11 * steps else 0.01)

    assert found == pytest.approx(released(steps, epochs, 1e-4, falls), rel=1e-12)


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_a_single_epoch_trains(schedule):
    assert max(rates(steps=6, epochs=1, schedule=schedule)) > 2e-4


@pytest.mark.parametrize(("no_decay", "tables_decayed"), [("timm", True), ("swin", False)])
def test_what_is_decayed(no_decay, tables_decayed):
    from lsa_study import models

    (run,) = study.load_study("table1", only="net7", seeds=[0]).runs()
    model = models.from_settings(run.settings.model, image_size=28, num_classes=10)
    train = run.settings.train.model_copy(update={"no_decay": no_decay})
    optimizer = optim.optimiser(model, train)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decay) == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        table = name.rpartition(".")[2] in ("rel_k", "rel_q", "rel_bias")
        plain = parameter.ndim > 1 and (tables_decayed or not table)
        assert decay[id(parameter)] == (0.05 if plain else 0.0), name


def sgd(**changes):
    rule = ", ".join(f"{key}: {value}" for key, value in changes.items())
    overrides = [f"train.optimizer={{kind: sgd, {rule}}}", "train.weight_decay=0.1"]
    (run,) = study.load_study("table1", only="swin", seeds=[0], overrides=overrides).runs()
    return run.settings.train


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_by_hand(nesterov):
    """Three steps of a weight and of a bias, which is not decayed."""
    train = sgd(momentum=0.9, nesterov=str(nesterov).lower())
    layer = nn.Linear(2, 2).double()
    want = {name: p.detach().clone() for name, p in layer.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in want.items()}
    optimizer = optim.optimiser(layer, train)
    rate = train.lr * train.batch_size / train.lr_batch
    for step in range(3):
        optimizer.zero_grad()
        (layer(torch.full((1, 2), float(step + 1), dtype=torch.float64)) ** 2).sum().backward()
        for name, parameter in layer.named_parameters():
            slope = parameter.grad + (0.1 * want[name] if name == "weight" else 0)
            speed[name] = 0.9 * speed[name] + slope
            want[name] = want[name] - rate * (
                slope + 0.9 * speed[name] if nesterov else speed[name]
            )
        optimizer.step()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.detach(), want[name])


def test_sgd_follows_the_same_schedule():
    train = sgd(momentum=0.9)
    optimizer = optim.optimiser(nn.Linear(1, 1), train)
    adamw = optim.optimiser(nn.Linear(1, 1), study.load_study("table1").variants["swin"].train)
    for epoch in range(train.epochs):
        for one in (optimizer, adamw):
            optim.schedule(one, train, steps=4)(epoch, 1)
        assert optimizer.param_groups[0]["lr"] == adamw.param_groups[0]["lr"]
