"""Batches of small sets: augmentation against loops and against timm, and who may change them."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup

from lsa_study import data
from lsa_study.data import augment, in_memory, mixing, rng
from lsa_study.data.sets import Batch


def epoch_of(sets, epoch=0, batch_size=64, **plan) -> list[Batch]:
    return list(sets.train(sets.epoch(epoch, batch_size, **plan)))


def pixels_of(sets, images):
    """Undo the normalisation."""
    return images * sets._std + sets._mean


ALL_AT_ONCE = {
    "augment__hflip": 0.5, "augment__erasing": 0.5, "augment__mixup": 0.8, "augment__cutmix": 1.0,
    "augment__rand_augment": "rand-m9-mstd0.5-inc1", "data__train_limit": 96,
}  # fmt: skip


@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
def test_draws_depend_on_seed_epoch_and_step_alone(settings, crop):
    sets = data.load(settings(augment__crop=crop, **ALL_AT_ONCE))
    first = epoch_of(sets, batch_size=32)
    torch.manual_seed(5)
    np.random.seed(5)
    again = epoch_of(sets, batch_size=32)
    resumed = epoch_of(sets, batch_size=32, first_step=2)
    for one, other in zip([*first, first[2]], [*again, *resumed], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
    assert not torch.equal(epoch_of(sets, epoch=1, batch_size=32)[0].images, first[0].images)
    other = data.load(settings(augment__crop=crop, seed=1, **ALL_AT_ONCE))
    assert not torch.equal(epoch_of(other, batch_size=32)[0].images, first[0].images)


@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
@pytest.mark.parametrize("batch", [32, 256])
def test_parts_of_a_step_are_the_step(settings, crop, batch):
    """Images, erased boxes and mixtures are the same however a step is cut."""
    sets = data.load(settings(augment__crop=crop, **{**ALL_AT_ONCE, "data__train_limit": batch}))
    whole = epoch_of(sets, batch_size=batch)[0]
    key = {image.numpy().tobytes(): row for row, image in enumerate(whole.images)}
    seen = []
    for part in range(4):
        (cut,) = epoch_of(sets, batch_size=batch, parts=4, mine=range(part, part + 1))
        for image, target in zip(cut.images, cut.targets, strict=True):
            row = key[image.numpy().tobytes()]
            assert torch.equal(target, whole.targets[row])
            seen.append(row)
    assert sorted(seen) == list(range(batch))


def test_global_generators_are_left_alone(settings):
    sets = data.load(settings(**ALL_AT_ONCE))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    epoch_of(sets, batch_size=32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_no_augmentation_gives_the_pictures(settings):
    sets = data.load(settings())
    train = in_memory._read("digits", ())[0]
    (share,) = list(sets.epoch(0, 1300).shares())
    (batch,) = epoch_of(sets, batch_size=1300)
    want = train["train.pixels"][share.indices].float()
    torch.testing.assert_close(pixels_of(sets, batch.images), want, atol=1e-3, rtol=0)
    assert torch.equal(batch.targets, train["train.labels"][share.indices])


def test_padded_crops_are_cut_from_the_padded_picture(settings):
    """Every crop is found, flipped or not, at a place in the zero-padded picture; places vary."""
    sets = data.load(settings(augment__crop="pad", augment__crop_pad=2, augment__hflip=0.5))
    train = in_memory._read("digits", ())[0]
    (share,) = list(sets.epoch(0, 40).shares())[:1]
    batch = epoch_of(sets, batch_size=40)[0]
    places = set()
    flips = 0
    for image, index in zip(pixels_of(sets, batch.images).round(), share.indices, strict=True):
        padded = np.pad(train["train.pixels"][index].numpy(), ((0, 0), (2, 2), (2, 2)))
        found = [
            (y, x, flip)
            for y in range(5) for x in range(5) for flip in (1, -1)
            if np.array_equal(padded[:, y : y + 28, x : x + 28][:, :, ::flip], image.numpy())
        ]  # fmt: skip
        assert len(found) == 1
        places.add(found[0][:2])
        flips += found[0][2] == -1
    assert len(places) > 15
    assert 8 < flips < 32


def test_resized_crops_are_bilinear():
    """Against a loop that walks each output pixel; a whole-picture box is the picture itself."""
    pictures = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0, 0, 9, 7], [2, 1, 4, 5], [3, 2, 1, 2]])
    got = augment.crop_resized(pictures, box, 6).numpy()
    want = np.zeros_like(got)
    for n, c, row, column in np.ndindex(want.shape):
        top, left, h, w = box[n].tolist()
        y = np.clip(top + (row + 0.5) * h / 6 - 0.5, 0, 8)
        x = np.clip(left + (column + 0.5) * w / 6 - 0.5, 0, 6)
        y0, x0 = min(int(y), 7), min(int(x), 5)
        corner = pictures[n, c, y0 : y0 + 2, x0 : x0 + 2].numpy()
        want[n, c, row, column] = np.array([1 - y + y0, y - y0]) @ corner @ [1 - x + x0, x - x0]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_boxes_have_the_asked_area_and_shape():
    draw = torch.Generator().manual_seed(0)
    box = augment.boxes(
        4000, height=60, width=40, area=(0.1, 0.5), ratio=(0.5, 2.0), draw=draw
    ).double()  # fmt: skip
    top, left, h, w = box.unbind(1)
    fits = h > 0
    assert fits.float().mean() > 0.99
    assert ((top >= 0) & (left >= 0) & (top + h <= 60) & (left + w <= 40)).all()
    share = (h * w / 2400)[fits]
    assert 0.09 < share.min() < 0.12
    assert 0.45 < share.max() < 0.55
    aspect = (w / h)[fits].log()
    assert aspect.min() > np.log(0.45)
    assert aspect.max() < np.log(2.2)


def test_erasing_puts_noise_into_some_boxes_and_leaves_the_rest(settings):
    plain = epoch_of(data.load(settings()), batch_size=400)[0].images
    erased = epoch_of(data.load(settings(augment__erasing=0.25)), batch_size=400)[0].images
    changed = (plain != erased).any(1)
    touched = changed.flatten(1).any(1)
    assert 0.18 < touched.float().mean() < 0.32
    noise = []
    for before, after, where in zip(plain, erased, changed, strict=True):
        if not where.any():
            continue
        rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
        box = where[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert 0.01 < box.numel() / 784 < 0.37
        noise.append(after[:, where].flatten())
        assert torch.equal(before[:, ~where], after[:, ~where])
    values = torch.cat(noise)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_mixing_is_timms(settings):
    changes = {"augment__mixup": 0.8, "augment__cutmix": 1.0, "augment__label_smoothing": 0.1}
    plain = epoch_of(data.load(settings(augment__label_smoothing=0.1)), batch_size=64)
    mixed = epoch_of(data.load(settings(**changes)), batch_size=64)
    mixer = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=10)
    kinds = set()
    for one, other in zip(plain, mixed, strict=True):
        with rng.seeded_global(0, 0, one.step, "mix", 0):
            images, targets = mixer(one.images.clone(), one.targets)
        assert torch.equal(other.images, images)
        assert torch.equal(other.targets, targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(64))
        kinds.add(bool((other.images == one.images).float().mean() > 0.1))
    assert kinds == {True, False}  # cutmix keeps pixels, mixup hardly any


@pytest.mark.parametrize("order", ["erase_first", "mix_first"])
def test_erasing_and_mixing_come_in_the_order_asked_for(settings, order):
    """Step by step on the same draws: timm's mixer after erasing, or its collate before."""
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 10}
    sets = data.load(
        settings(
            augment__mixup=0.8, augment__cutmix=1.0, augment__label_smoothing=0.1,
            augment__erasing=0.5, augment__order=order,
        )
    )  # fmt: skip
    train = in_memory._read("digits", ())[0]
    kinds, erased = set(), 0

    def erase(images, share):
        before = images.clone()
        augment.erase(images, share, batch=64, augment=sets.augment, purpose=(0, 0, share.step))
        return (images != before).any(1)

    for share, got in zip(sets.epoch(0, 64).shares(), epoch_of(sets), strict=True):
        pixels, labels = (train[f"train.{of}"][share.indices] for of in ("pixels", "labels"))
        if order == "mix_first":
            pairs = list(zip(pixels.numpy(), labels.tolist(), strict=True))
            with rng.seeded_global(0, 0, share.step, "mix", 0):
                mixed, targets = FastCollateMixup(**mixing)(pairs)
            images = sets._normalise(mixed)
            changed = erase(images, share)
        else:
            images = sets._normalise(pixels)
            changed = erase(images, share)
            with rng.seeded_global(0, 0, share.step, "mix", 0):
                images, targets = Mixup(**mixing)(images, labels)
        assert torch.equal(got.images, images)
        torch.testing.assert_close(got.targets, targets.float(), rtol=0, atol=1e-6)
        kinds.add(len(targets.unique(dim=0)))
        erased += int(changed.flatten(1).any(1).sum())
    assert len(kinds) > 1
    assert erased > 400


@pytest.mark.parametrize("kernels", [True, False])
def test_bytes_are_mixed_as_by_timms_collate(monkeypatch, kernels):
    """Cutmix and mixup, by the kernel and by torch; labels too."""
    if not kernels:
        monkeypatch.setattr(mixing.pictures, "why_not_pictures", lambda: "none")
    given = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 10}
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 20, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(6)
    for seed in range(12):
        with rng.seeded_global(seed):
            wanted, shares = FastCollateMixup(**given)(
                list(zip(pixels.numpy(), labels.tolist(), strict=True))
            )
        with rng.seeded_global(seed):
            got, targets = mixing.WholeMixup(**given)(pixels.clone(), labels)
        assert got.dtype == torch.uint8
        assert torch.equal(got, wanted)
        torch.testing.assert_close(targets, shares.float(), rtol=0, atol=1e-6)


def test_a_table_of_bytes_normalises_as_arithmetic_does(settings):
    sets = data.load(settings())
    pixels = torch.arange(3 * 256, dtype=torch.int32).remainder(256).byte().view(1, 3, 16, 16)
    plain = sets._normalise(pixels)
    sets._look_bytes_up()
    assert torch.equal(sets._normalise(pixels), plain)
    assert torch.equal(sets._normalise(pixels.transpose(2, 3)), plain.transpose(2, 3))
    assert torch.equal(sets._normalise(pixels.float()), plain)


def test_the_order_is_part_of_a_run_only_where_images_are_mixed(settings):
    assert settings(augment__order="mix_first").identity() == settings().identity()
    both = [settings(augment__mixup=0.8, augment__order=of) for of in ("erase_first", "mix_first")]
    assert both[0].identity() == settings(augment__mixup=0.8).identity() != both[1].identity()


def test_rand_augment_and_jitter_change_single_pictures(settings):
    plain = epoch_of(data.load(settings(data__train_limit=64)))[0]
    for change in ({"augment__rand_augment": "rand-m9"}, {"augment__color_jitter": 0.4}):
        sets = data.load(settings(data__train_limit=64, **change))
        changed = epoch_of(sets)[0]
        differs = (plain.images != changed.images).flatten(1).any(1)
        assert differs.float().mean() > 0.7
        pixels = pixels_of(sets, changed.images)
        torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)


def test_the_test_set_is_the_centre_of_the_resized_picture(settings):
    """crop_share 0.875 of a 32-pixel side is 28: the centre itself, without resizing."""
    sets = data.load(settings(data__image_size=14, evaluation__crop_share=0.5))
    whole = in_memory._read("digits", ())[0]["test.pixels"]
    assert torch.equal(sets._tests[0][0], whole[:, :, 7:21, 7:21])
    smaller = data.load(settings(data__image_size=14))
    assert smaller._tests[0][0].shape[2:] == (14, 14)
    average = whole.float().mean((1, 2, 3)) - smaller._tests[0][0].float().mean((1, 2, 3))
    assert average.abs().max() < 3


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_test_image_comes_once(settings, ranks):
    sets = data.load(settings())
    rows = [
        row for rank in range(ranks) for rows, _, _ in sets.test(100, rank=rank, ranks=ranks)
        for row in rows.tolist()
    ]  # fmt: skip
    assert sorted(rows) == list(range(sets.source.test_images))
    for numbers, images, labels in sets.test(100):
        assert torch.equal(labels, sets._tests[0][1][numbers])
        assert torch.equal(pixels_of(sets, images).round().byte(), sets._tests[0][0][numbers])


def test_the_strongest_posterize_is_black(settings):
    """Pillow 13 refuses the 0 bits that timm's RandAugment asks for at its strongest."""
    from timm.data.auto_augment import LEVEL_TO_ARG

    wanted = settings(augment__rand_augment="rand-m10-inc1").augment
    ops = augment.pictorial(wanted, 28, (0.5,) * 3).ops
    (op,) = [op for op in ops if op.name == "PosterizeIncreasing"]
    picture = Image.fromarray(np.full((4, 4, 3), 200, np.uint8))
    (bits,) = LEVEL_TO_ARG[op.name](10, {})
    assert bits == 0
    op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0.0
    assert np.asarray(op(picture)).max() == 0
    op.magnitude = 5
    assert np.unique(np.asarray(op(picture))).tolist() == [192]
