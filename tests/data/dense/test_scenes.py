"""Digits in photographs: exact targets, the same scenes everywhere, nothing on both sides."""

import hashlib

import numpy as np
import pytest
import torch

from lsa_study.data import dense, digits, fast_pil
from lsa_study.data.dense import scenes
from lsa_study.data.dense.scenes import Scenes
from lsa_study.data.paths import DataLacks


@pytest.fixture(scope="module")
def detected():
    split = Scenes("train", "detect")
    return [split[index] for index in range(60)]


def test_boxes_are_the_smallest_around_what_is_seen(detected):
    for _, target in detected:
        assert target["masks"].sum(0).max() == 1, "two digits own a pixel"
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = np.nonzero(mask.numpy())
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_objects_are_of_the_promised_sizes_and_number(detected):
    numbers = [len(target["labels"]) for _, target in detected]
    assert {*numbers} == {1, 2, 3, 4}
    boxes = torch.cat([target["boxes"] for _, target in detected])
    heights = boxes[:, 3] - boxes[:, 1]
    # Bilinear: the ink of the outermost source pixels reaches half a pixel of theirs beyond.
    assert heights.max() <= scenes.SIDES[1] * 9 / 8
    assert heights.median() >= 16
    labels = torch.cat([target["labels"] for _, target in detected])
    assert labels.unique().tolist() == list(range(1, 11))
    assert not any(target["crowd"].any() for _, target in detected)


def test_label_maps_say_what_the_masks_say(detected):
    segmented = Scenes("train", "segment")
    assert len(segmented.names) == 11
    for index, (image, target) in enumerate(detected):
        other, labels = segmented[index]
        assert torch.equal(image, other)
        shown = (target["masks"].long() * target["labels"].view(-1, 1, 1)).sum(0)
        assert torch.equal(labels["labels"], shown)


def test_a_digit_that_another_hides_keeps_half_of_itself(monkeypatch):
    """One later digit stands over each; what is left is seen in the masks."""
    masks = []
    original = Scenes._placed

    def watch(self, source, draw):
        ink = original(self, source, draw)
        masks.append(ink * 3 >= digits.INK)
        return ink

    monkeypatch.setattr(Scenes, "_placed", watch)
    split, hidden = Scenes("train", "detect"), 0
    for index in range(40):
        masks.clear()
        target = split[index][1]
        for seen in target["masks"].bool().numpy():
            area, whole = seen.sum(), [m.sum() for m in masks if (m & seen).sum() == seen.sum()]
            assert 2 * area >= min(whole)
            hidden += area < min(whole)
    assert hidden > 5


def test_a_scene_depends_on_its_number_alone():
    whole, other = Scenes("test", "detect"), Scenes("test", "detect", limit=9)
    assert (len(whole), len(other)) == (500, 9)
    for index in (8, 3, 8):
        (image, target), (same, again) = whole[index], other[index]
        assert torch.equal(image, same)
        assert torch.equal(target["masks"], again["masks"])
        assert torch.equal(target["labels"], again["labels"])
    assert not torch.equal(whole[0][0], whole[1][0])


def test_the_targets_are_the_same_on_every_machine():
    """Only whole numbers are computed, so their hash can be written down here."""
    split, digest = Scenes("train", "segment"), hashlib.sha256()
    for index in range(20):
        digest.update(split[index][1]["labels"].numpy().astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "fc9c534426af4e46"


def test_training_and_test_share_no_digit_and_no_half_of_a_photograph():
    train, test = Scenes("train", "detect"), Scenes("test", "detect")
    pictures, _ = digits._sources()
    assert len(train._pictures) + len(test._pictures) == len(pictures)
    ours, theirs = ({p.tobytes() for p in of._pictures} for of in (train, test))
    assert not ours & theirs
    for left, right, name in zip(train._backs, test._backs, scenes.PHOTOGRAPHS, strict=True):
        whole = fast_pil.decode(scenes._photograph(name))
        assert np.array_equal(np.concatenate([left, right], axis=1), whole)


def test_the_fingerprint_follows_size_number_and_task_of_the_scenes():
    def content(*args, **options):
        return Scenes("train", *args, **options).content

    assert content("detect")[0] != content("detect", size=128)[0]
    assert content("detect")[0] != content("detect", limit=5)[0]


@pytest.mark.parametrize("size", [40, 321])
def test_sizes_that_no_photograph_has_room_for_are_refused(size, asked):
    with pytest.raises(ValueError, match=r"image_size=\d+: .*give 41 to 320"):
        dense.splits(asked("scenes", image_size=size), "detect")


def test_the_largest_digits_stand_in_the_smallest_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "SIDES", (40, 41))
    few = Scenes("train", "detect", size=41, limit=20)
    assert all(few[index][0].shape == (3, 41, 41) for index in range(20))


def test_missing_photographs_are_reported(monkeypatch):
    monkeypatch.setattr(scenes, "PHOTOGRAPHS", ("nowhere.jpg",))
    with pytest.raises(DataLacks, match=r"nowhere\.jpg.*reinstall scikit-learn"):
        Scenes("train", "detect")
