"""The paper tier's recipe against the released code of ELSA, Swin and VOLO, and against timm."""

import io
import math
import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath
from timm.loss import SoftTargetCrossEntropy
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from lsa_study import models
from lsa_study.config import study
from lsa_study.config.protocol import TokenLabels
from lsa_study.data import augment, imagenet, transforms
from lsa_study.data.sets import Batch
from lsa_study.training import optim
from lsa_study.training.distributed import ALONE
from lsa_study.training.step import Stepper

TRAINED = (*study.ARTICLE, "table6", "table8")

DROP_PATH = {
    "swin_tiny": 0.1, "swin_small": 0.3, "swin_base": 0.5, "swin_large": 0.2,
    "volo_d1": 0.1, "volo_d3": 0.5, "volo_d4": 0.5, "volo_d5": 0.75,
}  # fmt: skip
VOLO_LR = {"volo_d1": 1.6e-3, "volo_d3": 1e-3, "volo_d4": 1e-3, "volo_d5": 8e-4}
VOLO_CROP = {"volo_d1": 0.96, "volo_d3": 0.96, "volo_d4": 1.15, "volo_d5": 1.15}
AVERAGED = ("swin_base", "volo_d5")
"""The article averages the ELSA row of these alone; here the row it is compared with as well."""


def rows(stem):
    return study.load_study(stem, tier="paper").variants


def settings_of(stem, variant, **changes):
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    (run,) = study.load_study(
        stem, tier="paper", only=variant, seeds=[0], overrides=overrides
    ).runs()
    return run.settings


def build(settings):
    torch.manual_seed(0)
    return models.from_settings(
        settings.model, image_size=settings.data.image_size, num_classes=1000
    )


# -- every row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", TRAINED)
def test_rows_that_are_compared_share_one_protocol(stem):
    loaded = study.load_study(stem, tier="paper")
    for name, row in loaded.variants.items():
        other = loaded.variants[loaded.reference_of(name)]
        drawn = [one.train.model_copy(update={"start": None}) for one in (row, other)]
        assert drawn[0] == drawn[1], name
        assert (row.augment, row.data) == (other.augment, other.data), name
        assert (row.train.start is None) == (other.train.start is None), name
        assert row.model.drop_path == other.model.drop_path, name
        assert row.evaluation == other.evaluation, name


@pytest.mark.parametrize("stem", TRAINED)
def test_every_row_has_the_released_values_of_its_backbone(stem):
    for name, row in rows(stem).items():
        backbone, train, change = row.model.backbone, row.train, row.augment
        volo = backbone.startswith("volo")
        fine, large = train.start is not None, row.data.image_size > 224
        assert fine == (backbone == "swin_large" or large), name
        assert row.model.drop_path == DROP_PATH[backbone], name
        if not fine:
            assert train.lr == (VOLO_LR[backbone] if volo else 1e-3), name
        assert train.clip_grad == (None if volo else 5.0), name
        assert (change.mixup, change.cutmix) == ((0.0, 0.0) if volo else (0.8, 1.0)), name
        labels = "maps_and_truth" if fine else "maps"
        assert train.tokens == (TokenLabels(labels=labels) if volo else None), name
        swin = {"swin_large": 0.875, "swin_large_384": 1.0}.get(name.removeprefix("elsa_"), 0.9)
        assert row.evaluation.crop_share == (VOLO_CROP[backbone] if volo else swin), name
        assert row.evaluation.crop == ("none" if swin == 1 else "centre"), name
        if not fine:
            assert (train.batch_size, train.lr_batch, train.epochs) == (1024, 1024, 310), name
        assert (train.weight_decay, train.precision) == (1e-8 if fine else 0.05, "fp16"), name
        assert change.label_smoothing == 0.1, name
        averaged = backbone in AVERAGED
        assert train.ema_decay == (0.99992 if averaged else None), name
        assert row.evaluation.weights == ("ema" if averaged else "model"), name


# -- learning rates ----------------------------------------------------------------------------


def rates(settings, steps):
    """The rate of every step."""
    train = settings.train
    optimizer = optim.optimiser(nn.Linear(1, 1), train)
    set_rate = optim.schedule(optimizer, train, steps=steps)
    found = []
    for place in range(train.epochs * steps):
        set_rate(*divmod(place, steps))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def released(moment, peak, *, horizon=300, warmup=20, first=1e-6, last=1e-5):
    """Linear epochs from ``first``, a cosine from epoch 0 over the horizon, then ``last``."""
    if moment < warmup:
        return first + (peak - first) * moment / warmup
    if moment < horizon:
        return last + (peak - last) * (1 + math.cos(math.pi * moment / horizon)) / 2
    return last


@pytest.mark.parametrize(
    ("stem", "variant", "peak"),
    [("table1", "swin", 1e-3), ("table6", "volo_elsa", 1.6e-3), ("table8", "volo_d5", 8e-4)],
)
def test_all_310_rates_are_those_of_the_released_command(stem, variant, peak):
    want = [released(epoch, peak) for epoch in range(310)]
    assert rates(settings_of(stem, variant), 1) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("variant", "start", "batch", "epochs", "peak", "first", "last"),
    [
        ("volo_d1_384", "volo_d1", 512, 40, 8e-6, 1e-6, 4e-6),
        ("elsa_volo_d3_448", "elsa_volo_d3", 240, 40, 8e-6, 1e-6, 4e-6),
        ("volo_d5_512", "volo_d5", 240, 40, 8e-6, 1e-6, 4e-6),
        ("swin_large", "imagenet21k/swin_large.pth", 512, 30, 2e-5, 2e-8, 2e-7),
        ("elsa_swin_large_384", "imagenet21k/elsa_swin_large.pth", 512, 30, 2e-5, 2e-8, 2e-7),
    ],
)
def test_the_rates_of_fine_tuning(variant, start, batch, epochs, peak, first, last):
    """VOLO's: 30 epochs and 10 more at the last rate; Swin's: 30."""
    settings = settings_of("table8", variant)
    assert start in (settings.train.start.row, settings.train.start.weights)
    assert settings.train.batch_size == batch
    ends = {"horizon": 30, "warmup": 5, "first": first, "last": last}
    want = [released(epoch, peak, **ends) for epoch in range(epochs)]
    assert rates(settings, 1) == pytest.approx(want, rel=1e-9)


def test_swins_own_schedule_is_a_choice_of_settings():
    """300 epochs, no cool-down, the rate moves at every step."""
    settings = settings_of(
        "table1", "swin", train__epochs=300, train__cooldown_epochs=0, train__schedule="step"
    )
    want = [released(step / 5, 1e-3) for step in range(300 * 5)]
    assert rates(settings, 5) == pytest.approx(want, rel=1e-9)


# -- which parameters are decayed --------------------------------------------------------------


def decayed(model, settings):
    """Names of the parameters with weight decay; the rest must have none."""
    groups = optim.optimiser(model, settings.train).param_groups
    rule = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert set(rule.values()) == {0.0, 0.05}
    return {name for name, p in model.named_parameters() if rule[id(p)] == 0.05}


def sizes(model, names):
    return sorted(p.numel() for name, p in model.named_parameters() if name in names)


TABLES = ("rel_k", "rel_q", "rel_bias", "relative_position_bias_table")


@pytest.mark.parametrize("rule", ["timm", "swin"])
@pytest.mark.parametrize(("stem", "variant"), [("table1", "net7"), ("table4", "elsa")])
def test_the_no_decay_rules_of_both_code_bases(stem, variant, rule):
    """ELSA's: all but 1-D parameters are decayed, tables and ghost too; Swin's spares tables."""
    settings = settings_of(stem, variant, train__no_decay=rule)
    model = build(settings)
    found = decayed(model, settings)
    tables = {n for n, _ in model.named_parameters() if n.rpartition(".")[2] in TABLES}
    assert len(tables) == (36 if variant == "net7" else 2)
    large = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert found == (large if rule == "timm" else large - tables)
    if variant == "elsa":
        assert sum("ghost" in name for name in found) == 10


@pytest.mark.parametrize(
    ("stem", "variant", "theirs", "rule"),
    [
        ("table1", "swin", "swin_tiny_patch4_window7_224", "swin"),
        ("table6", "volo_outlooker", "volo_d1_224", "timm"),
    ],
)
def test_the_groups_are_those_of_timms_own_networks(stem, variant, theirs, rule):
    settings = settings_of(stem, variant, train__no_decay=rule)
    ours, other = build(settings), timm.create_model(theirs)
    groups = param_groups_weight_decay(other, 0.05, no_weight_decay_list=other.no_weight_decay())
    want = {g["weight_decay"]: sorted(p.numel() for p in g["params"]) for g in groups}
    found = decayed(ours, settings)
    spared = {name for name, _ in ours.named_parameters()} - found
    assert sizes(ours, found) == want[0.05]
    assert sizes(ours, spared) == want[0.0]
    if rule == "timm":
        assert {"pos_embed", "cls_token"} <= spared


# -- drop path in the built network ------------------------------------------------------------


def test_drop_path_grows_over_all_blocks_of_swin_and_starts_after_volos_first_stage():
    swin = build(settings_of("table1", "swin"))
    found = [m.drop_prob for m in swin.modules() if isinstance(m, DropPath)]
    # Two per block; the first block's is 0 and is left out.
    assert found == pytest.approx([0.1 * b / 11 for b in range(1, 12) for _ in range(2)])
    volo = build(settings_of("table6", "volo_elsa"))
    assert not any(isinstance(m, DropPath) for m in volo.network[0].modules())
    found = [m.drop_prob for m in volo.network.modules() if isinstance(m, DropPath)]
    assert found == pytest.approx([0.1 * b / 17 for b in range(4, 18) for _ in range(2)])


# -- augmentation ------------------------------------------------------------------------------


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)


def encoded(picture):
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def seeded(transform, image, seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(image)


def test_training_pictures_are_those_of_timms_pipeline_with_the_released_options():
    ours = transforms.training(settings_of("table1", "swin"), imagenet.MEAN)
    theirs = create_transform(
        224, is_training=True, use_prefetcher=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3),
        hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="random",
        mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    last = "\n    MaybePILToTensor()"  # ours writes the pixels into a batch's place instead
    assert last in repr(theirs)
    named = repr(theirs).replace(last, "").replace("CropAndInterpolation", "Crop")
    assert repr(ours) == named
    compared = 0
    for seed in range(32):
        one = seeded(ours, encoded(picture(seed)), seed)
        try:
            other = seeded(theirs, picture(seed), seed)
        except ValueError:  # Pillow refuses timm's strongest posterize; ours is black
            continue
        pixels = np.empty((3, 224, 224), np.uint8)
        transforms.planes(one, pixels)
        assert (pixels == other).all(), seed
        compared += 1
    assert compared > 20
    assert (imagenet.MEAN, imagenet.STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize(
    ("study", "variant", "shorter"),
    [
        ("table6", "swin", 248), ("table6", "volo_elsa", 233), ("table8", "swin_large", 256),
        ("table8", "elsa_swin_large", 256),
    ],
    ids=["0.9", "0.96", "0.875", "as Swin-L"],
)  # fmt: skip
def test_test_pictures_are_resized_and_cropped_as_released(study, variant, shorter):
    transform = transforms.testing(settings_of(study, variant))
    resize, crop = transform.transforms[1:]
    assert (resize.size, resize.interpolation.value) == (shorter, "bicubic")
    assert tuple(crop.size) == (224, 224)


@pytest.mark.parametrize("variant", ["swin_large_384", "elsa_swin_large_384"])
def test_at_384_swin_sees_the_whole_picture(variant):
    """Both sides to 384, bicubic: a mark in each corner of a broad picture stays in its corner."""
    transform = transforms.testing(settings_of("table8", variant))
    pixels = np.zeros((60, 100, 3), np.uint8)
    for corner, channel in (((0, 0), 0), ((-12, 0), 1), ((0, -20), 2), ((-12, -20), 0)):
        rows, columns = (slice(at, at + n or None) for at, n in zip(corner, (12, 20), strict=True))
        pixels[rows, columns, channel] = 255
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    got = np.asarray(transform(content.getvalue()))
    want = np.asarray(Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC))
    assert np.array_equal(got, want)
    assert [tuple(got[at]) for at in ((2, 2), (-3, 2), (2, -3))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255),
    ]  # fmt: skip


def test_erasing_is_timms_in_pixel_mode(monkeypatch):
    settings = settings_of("table1", "swin")
    theirs = RandomErasing(settings.augment.erasing, mode="pixel", max_count=1)
    asked = {}
    original = augment.boxes

    def noted(count, **options):
        asked.update(options)
        return original(count, **options)

    monkeypatch.setattr(augment, "boxes", noted)
    share = augment.MicroBatch(0, torch.arange(8), torch.arange(8), ((0, 0, 8),))
    augment.erase(torch.zeros(8, 3, 32, 32), share, batch=8, augment=settings.augment, purpose=(0,))
    assert theirs.probability == 0.25
    assert asked["area"] == pytest.approx((theirs.min_area, theirs.max_area))
    assert [math.log(r) for r in asked["ratio"]] == pytest.approx(theirs.log_aspect_ratio)


@pytest.mark.parametrize(
    ("study", "variant", "order"),
    [("table1", "swin", "mix_first"), ("table8", "elsa_swin_large", "erase_first")],
)
def test_images_are_mixed_and_erased_in_the_order_of_the_released_code(study, variant, order):
    """ELSA's loader mixes in collate and erases on the device; Swin erases single images."""
    augment = settings_of(study, variant).augment
    assert (augment.order, augment.erasing) == (order, 0.25)
    assert augment.mixes


def test_mixing_and_loss():
    """Swin mixes every batch and compares soft targets; VOLO mixes none and smooths labels."""
    settings = settings_of("table6", "swin")
    mixup = augment.mixer(settings.augment, 1000)
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob) == (0.8, 1.0, 1.0)
    assert (mixup.switch_prob, mixup.label_smoothing, mixup.mode) == (0.5, 0.1, "batch")
    logits, labels = torch.randn(6, 10), torch.arange(6)
    soft = torch.rand(6, 10).softmax(1)
    volo = settings_of("table6", "volo_elsa")
    assert augment.mixer(volo.augment, 1000) is None

    def loss(chosen, targets):
        plain = chosen.model_copy(
            update={"train": chosen.train.model_copy(update={"tokens": None})}
        )
        stepper = Stepper(plain, nn.Linear(1, 1), ALONE, steps=1)
        stepper.forward = nn.Identity()
        return stepper._loss_of(Batch(0, logits, targets), 0, 0)

    torch.testing.assert_close(loss(settings, soft), SoftTargetCrossEntropy()(logits, soft))
    smooth = torch.full((6, 10), 0.01) + 0.9 * torch.eye(10)[:6]
    torch.testing.assert_close(loss(volo, labels), SoftTargetCrossEntropy()(logits, smooth))
