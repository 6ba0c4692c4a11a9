"""Batches and views: the same by seed, epoch and number, however they are cut."""

import itertools
import weakref

import pytest
import torch

from lsa_study.data import dense, imagenet
from lsa_study.data.dense import augment
from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe
from lsa_study.data.dense.sets import DenseSets
from lsa_study.data.paths import DataLacks

DETECT = DetectRecipe(shorts=(64, 96), long=128, crop_shorts=(80,), crop=(48, 80), test_short=64)
SEGMENT = SegmentRecipe(
    short=96, long=384, crop=80, test_scales=(0.5, 1.0, 1.5), test_flip=True
)  # fmt: skip
RECIPES = {"detect": DETECT, "segment": SEGMENT}


@pytest.fixture
def sets(asked):
    def make(task="detect", seed=0, workers=0, recipe=None, **changes):
        data = asked("scenes", **({"train_limit": 12, "test_limit": 7} | changes))
        splits = dense.splits(data, task)
        return DenseSets(
            "scenes", *splits, recipe or RECIPES[task], seed=seed, device="cpu", workers=workers
        )  # fmt: skip

    return make


def flat(batch):
    """All that a batch holds, one after the other."""
    values = [value for target in batch.targets for _, value in sorted(target.items())]
    return [torch.tensor(batch.step), *batch.images, *map(torch.as_tensor, values)]


def same(one, other):
    """Whether two batches hold the same, bit for bit."""
    return all(map(torch.equal, flat(one), flat(other)))


def batches(sets, epoch=0, size=4, **plan):
    return list(sets.train(sets.epoch(epoch, size, **plan)))


@pytest.mark.parametrize("task", RECIPES)
def test_a_batch_depends_on_seed_epoch_and_numbers_alone(sets, task):
    """Resumed, made by another process, in other order: bit for bit the same."""
    whole = batches(sets(task), epoch=1)
    assert [batch.step for batch in whole] == [0, 1, 2]
    for again in (
        batches(sets(task), epoch=1, first_step=1),
        batches(sets(task, workers=1), epoch=1, first_step=1),
    ):
        assert all(map(same, whole[1:], again))
    assert not same(whole[0], batches(sets(task), epoch=2)[0])
    assert not same(whole[0], batches(sets(task, seed=1), epoch=1)[0])


def test_parts_of_a_step_are_those_of_the_whole(sets):
    whole = batches(sets())
    parts = [batches(sets(), parts=2, mine=range(part, part + 1)) for part in range(2)]
    for step, halves in zip(whole, zip(*parts, strict=True), strict=True):
        images = [image for half in halves for image in half.images]
        assert all(map(torch.equal, step.images, images))


def test_images_have_sizes_of_their_own_and_targets_follow(sets):
    shapes = set()
    for batch in itertools.chain(*(batches(sets(), epoch) for epoch in range(3))):
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width = image.shape[1:]
            shapes.add((height, width))
            assert min(height, width) <= 96
            assert max(height, width) <= 128
            assert target["masks"].shape[1:] == (height, width)
            assert image.is_contiguous()
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"][:, 2:] <= torch.tensor([width, height])).all()
    assert len(shapes) > 5


def test_what_a_crop_lacks_is_the_mean_colour_and_counts_nowhere(sets):
    small = SegmentRecipe(short=96, long=384, scales=(0.5, 0.5), crop=80)
    for batch in batches(sets("segment", recipe=small)):
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.shape == (3, 80, 80)
            assert (image[:, 48:] == 0).all()
            assert (image[:, :, 48:] == 0).all()
            assert (target["labels"][48:] == 255).all()
            assert (target["labels"][:48, :48] < 11).all()


def test_pixels_are_normalised_as_imagenets(sets):
    plain = DetectRecipe(shorts=(96,), crop_share=0.0, hflip=0.0)
    found = sets(recipe=plain)
    (batch,) = batches(found, size=12)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (imagenet.MEAN, imagenet.STD))
    for image, target in zip(batch.images, batch.targets, strict=True):
        pixels, _ = found.train_split[target["image_id"]]
        torch.testing.assert_close(image, (pixels / 255 - mean) / std, atol=1e-5, rtol=1e-5)


# -- test images ------------------------------------------------------------------------------


def test_ranks_share_the_test_images_in_order(sets):
    found = sets()
    assert [test.index for test in found.test()] == list(range(7))
    shares = [[test.index for test in found.test(rank=rank, ranks=3)] for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_view_says_its_scale(sets):
    for test in sets().test():
        (view,) = test.views()
        assert test.size == (96, 96)
        assert view.image.shape == (3, 64, 64)
        assert view.scale == (64 / 96, 64 / 96)
        assert test.target["masks"].shape[1:] == test.size


def test_every_scale_is_seen_from_both_sides(sets):
    (test, *_) = sets("segment").test()
    views = list(test.views())
    assert [view.image.shape[1] for view in views] == [48, 48, 96, 96, 144, 144]
    assert [view.flipped for view in views] == [False, True] * 3
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(plain.image, mirrored.image.flip(-1))


def test_one_view_is_held_at_a_time(sets):
    (test, *_) = sets("segment").test()
    held = []
    for view in test.views():
        assert not any(earlier() is not None for earlier in held)
        held.append(weakref.ref(view.image))
        del view
    assert len(held) == 6


# -- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_an_image_is_one_sentence(sets, workers, monkeypatch):
    def broken(self, index):
        raise OSError("broken data stream")

    found = sets(workers=workers)
    monkeypatch.setattr(type(found.train_split), "__getitem__", broken)
    with pytest.raises(DataLacks) as raised:
        batches(found)
    first, _, rest = str(raised.value).partition(": ")
    assert first.startswith("scene ")
    assert rest == "cannot be used (broken data stream); fetch the file again"


def test_a_planted_shift_of_the_masks_is_found(sets, monkeypatch):
    """That the tests above see what they should: boxes around masks that moved apart."""
    plain = DetectRecipe(shorts=(96,), crop_share=0.0, hflip=1.0)

    def fits():
        (batch,) = batches(sets(recipe=plain), size=12)
        return all(
            mask.any(0).nonzero().flatten()[[0, -1]].tolist() == [left, right - 1]
            for target in batch.targets
            for mask, (left, _, right, _) in zip(
                target["masks"], target["boxes"].tolist(), strict=True
            )
        )

    assert fits()
    original = augment.flipped

    def torn(item):
        image, target = original(item)
        return image, target | {"masks": target["masks"].flip(-1)}

    monkeypatch.setattr(augment, "flipped", torn)
    assert not fits()
