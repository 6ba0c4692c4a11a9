"""The audits of the paper tier find nothing in it, and find what is planted."""

import audit
import pytest
import torch
from test_recipe import TRAINED, build, settings_of

from lsa_study.config import study
from lsa_study.data import augment, transforms
from lsa_study.training import optim


def distinct(key):
    """The rows of all studies at the paper tier, one for each answer of ``key``."""
    found = {}
    for stem in TRAINED:
        for name, row in study.load_study(stem, tier="paper").variants.items():
            found.setdefault(key(row), pytest.param(row, id=f"{stem}/{name}"))
    return [*found.values()]


def without_starts(row):
    return row.train.model_copy(update={"start": None}).model_dump_json(), row.model.backbone


def sighted(row):
    augmented = row.augment.model_dump_json(), row.evaluation.crop_share, row.data.image_size
    return *augmented, row.model.backbone.startswith("volo")


OPERATORS = distinct(lambda r: (r.model.op.kind, r.model.backbone, r.model.op.model_dump_json()))
SMALL = [p for p in OPERATORS if p.values[0].model.backbone in ("swin_tiny", "volo_d1")]


@pytest.mark.parametrize("row", distinct(without_starts))
def test_the_rates_of_all_epochs(row):
    assert audit.rates(row) == []


def test_the_peak_is_never_reached():
    """The known answer: 9.89e-4 of 1e-3 in the first epoch after the warm-up."""
    settings = settings_of("table1", "swin")
    optimizer = optim.optimiser(torch.nn.Linear(1, 1), settings.train)
    set_rate = optim.schedule(optimizer, settings.train, steps=1)
    found = []
    for epoch in range(310):
        set_rate(epoch, 0)
        found.append(optimizer.param_groups[0]["lr"])
    assert max(found) == found[20] == pytest.approx(9.89e-4, abs=5e-7)
    assert set(found[300:]) == {1e-5}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__schedule": "step"}, "epoch 0, step 1:"),
        ({"train__cooldown_epochs": 0}, "epoch 21, step 0:"),
        ({"train__epochs": 300}, "epoch 309: of 300, released 310"),
        ({"train__warmup_epochs": 5}, "epoch 1, step 0: 0.0002008, released 5.095e-05"),
        ({"train__batch_size": 512}, "epoch 1, step 0:"),
    ],
)
def test_other_rates_are_seen(changes, told):
    found = audit.rates(settings_of("table1", "swin", **changes))
    assert any(line.startswith(told) for line in found), found[:3]


@pytest.mark.parametrize("row", SMALL)
def test_the_names_of_decayed_parameters(row):
    assert audit.groups(row) == []


def test_another_rule_of_decay_is_seen(monkeypatch):
    found = audit.groups(settings_of("table1", "net7", train__no_decay="swin"))
    assert len(found) == 36
    assert found[0].endswith("rel_k: decayed by 0.0, released 0.05")
    volo = settings_of("table6", "volo_outlooker")
    model = build(volo)
    model.no_weight_decay = set
    found = audit.groups(volo, model)
    assert [line.partition(":")[0] for line in found] == ["pos_embed", "cls_token"]
    monkeypatch.setattr(optim, "param_groups_weight_decay", all_decayed)
    found = audit.groups(settings_of("table4", "elsa"))
    assert any(line.startswith("norm.weight: decayed by 0.05, released 0") for line in found)


def all_decayed(model, weight_decay, **_):
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]


@pytest.mark.parametrize("row", distinct(sighted))
def test_the_pictures_step_by_step(row):
    assert audit.pictures(row) == []


@pytest.mark.parametrize("variant", ["swin", "volo_elsa"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"augment__rand_augment": "rand-m9-mstd0.5"}, "(RandAugment): other pixels"),
        ({"augment__rand_augment": "null"}, "(RandAugment): "),
        ({"augment__crop_scale": "[0.2, 1.0]"}, "(RandomResizedCropAndInterpolation): other"),
        ({"augment__hflip": 0.4}, "(RandomHorizontalFlip): other pixels"),
    ],
)
def test_another_augmentation_is_seen(variant, changes, told):
    found = audit.pictures(settings_of("table6", variant, **changes), range(40))
    assert any(told in line for line in found), found[:3]


@pytest.mark.parametrize("variant", ["swin", "volo_elsa"])
def test_another_order_of_steps_is_seen(monkeypatch, variant):
    settings, original = settings_of("table6", variant), transforms.training

    def swapped(*given):
        made = original(*given)
        steps = [step for step in made.transforms if step is not transforms.whole]
        made.transforms = [steps[1], steps[0], steps[2]]
        return made

    monkeypatch.setattr(transforms, "training", swapped)
    monkeypatch.setattr(audit, "encoded", lambda image: image)
    monkeypatch.setattr(transforms, "whole", lambda image: image)
    assert audit.pictures(settings) != []


VIEWED = [p for p in distinct(sighted) if p.values[0].model.backbone != "swin_large"]


@pytest.mark.parametrize("row", VIEWED)
def test_the_views_of_test_pictures(row):
    assert audit.views(row) == []


def test_another_view_is_seen():
    settings = settings_of("table1", "swin", evaluation__crop_share=0.875)
    assert len(audit.views(settings)) == 6


def test_erasing_and_what_deviates(monkeypatch):
    assert audit.erasing(settings_of("table1", "swin")) == []
    found = audit.erasing(settings_of("table1", "swin", augment__erasing=0.4))
    assert [line.partition(":")[0] for line in found] == ["erasing, share of pictures"]
    original = augment.boxes
    for option, pair, told in (
        ("area", (0.02, 0.6), "erasing, area"),
        ("ratio", (0.9, 1 / 0.9), "erasing, spread of shapes"),
    ):
        changed = {option: pair}
        monkeypatch.setattr(
            augment, "boxes", lambda *given, now=changed, **how: original(*given, **how | now)
        )
        found = audit.erasing(settings_of("table1", "swin"))
        assert [line.partition(":")[0] for line in found] == [told]


@pytest.mark.parametrize("variant", ["swin", "elsa"])
def test_mixing_and_its_loss(variant):
    assert audit.mixing(settings_of("table6", variant)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"augment__label_smoothing": 0.0}, "other targets"),
        ({"augment__label_smoothing": 0.0}, "loss "),
        ({"augment__mixup": 0.2}, "other pixels are mixed"),
        ({"augment__cutmix": 0.5}, "other pixels are mixed"),
        ({"augment__mix_switch": 0.2}, "other pixels are mixed"),
        ({"augment__mix_prob": 0.8}, "other pixels are mixed"),
        ({"augment__mixup": 0.0, "augment__cutmix": 0.0}, "nothing is mixed"),
    ],
)
def test_other_mixing_is_seen(changes, told):
    found = audit.mixing(settings_of("table1", "swin", **changes))
    assert any(told in line for line in found), found[:3]


def test_token_labels_and_their_loss():
    for stem, variant in (("table6", "volo_elsa"), ("table8", "volo_d5_512")):
        assert audit.token_loss(settings_of(stem, variant)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__tokens__dense_weight": 1.0}, ["classes", "maps, mixed"]),
        ({"train__tokens__class_weight": 0.5}, ["classes", "maps, mixed"]),
        ({"augment__label_smoothing": 0.0}, ["classes"]),
    ],
)
def test_another_token_loss_is_seen(changes, told):
    found = audit.token_loss(settings_of("table6", "volo_elsa", **changes))
    assert [line.partition(":")[0] for line in found] == told
