"""ADE20K's layout: labels shifted by one, what is missing or damaged named."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from lsa_study import data
from lsa_study.data import dense
from lsa_study.data.dense.sets import DenseSets, SegmentRecipe
from lsa_study.data.paths import DataLacks


@pytest.fixture
def splits(ade_root, asked):
    return lambda **changes: dense.splits(asked("ade20k", ade_root, **changes), "segment")


def label_file(root, number=0, split="training"):
    return root / "ade20k" / "annotations" / split / f"ADE_{number}.png"


def sets(splits):
    recipe = SegmentRecipe(short=32, long=64, crop=32)
    return DenseSets("ade20k", *splits(), recipe, seed=0, device="cpu")


def batches(splits):
    found = sets(splits)
    return list(found.train(found.epoch(0, 2)))


def test_labels_are_those_of_the_file_less_one(splits, ade_root):
    train, test = splits()
    assert (len(train), len(test), len(train.names)) == (2, 1, 150)
    image, target = train[1]
    marks = np.asarray(Image.open(label_file(ade_root, 1))).astype(int)
    want = np.where(marks == 0, 255, marks - 1)
    assert target["labels"].dtype == torch.int64
    assert np.array_equal(target["labels"].numpy(), want)
    assert {0, 149, 255} <= {*target["labels"].unique().tolist()}
    shown = Image.open(train.where(1))
    assert np.abs(image.numpy().transpose(1, 2, 0).astype(int) - np.asarray(shown)).max() == 0


@pytest.mark.parametrize("home", ["ade20k", "ADEChallengeData2016"])
def test_the_released_folder_is_found_by_either_name(ade_root, asked, home):
    (ade_root / "ade20k").rename(ade_root / home)
    assert len(dense.splits(asked("ade20k", ade_root), "segment")[0]) == 2


def test_missing_folders_name_the_layout(tmp_path, asked):
    with pytest.raises(DataLacks, match=r"ADE20K not found .*Wanted under .*images/training"):
        data.require(asked("ade20k", tmp_path))


def test_a_part_is_not_taken_for_the_whole(splits):
    with pytest.raises(DataLacks, match=r"training: holds 2 images .*expected 20,210; .*limit"):
        splits(train_limit=None)
    assert len(splits(train_limit=1)[0]) == 1


def test_missing_label_maps_are_counted(splits, ade_root):
    for number in (0, 1):
        label_file(ade_root, number).unlink()
    with pytest.raises(DataLacks, match=r"ADE_0\.png: no such label map, nor for 1 more of 2"):
        splits()


def test_no_images_at_all(splits, ade_root):
    for entry in os.scandir(ade_root / "ade20k" / "images" / "validation"):
        os.remove(entry)  # noqa: PTH107
    with pytest.raises(DataLacks, match="validation: holds 0 images"):
        splits()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: Image.new("L", (50, 39)).save(path), r"50 x 39 pixels .*50 x 40 of one byte"),
        (lambda path: Image.new("L", (50, 40), 151).save(path), "up to 151; .*0 to 150"),
        (lambda path: Image.new("RGB", (50, 40)).save(path), "mode RGB"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "truncated"),
        (lambda path: path.write_bytes(b""), "cannot identify"),
    ],
    ids=["size", "label", "colours", "torn", "empty"],
)
def test_a_damaged_label_map_is_named(splits, ade_root, change, message):
    change(label_file(ade_root))
    with pytest.raises(DataLacks, match=rf"ADE_0\.jpg: cannot be used \(.*{message}.*fetch"):
        batches(splits)


def test_a_damaged_image_is_named(splits, ade_root):
    path = ade_root / "ade20k" / "images" / "training" / "ADE_1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataLacks, match=r"ADE_1\.jpg: cannot be used"):
        batches(splits)


def test_images_whose_pixels_all_count_nowhere_are_trained_on(splits, ade_root):
    """They have no class that could fill a crop."""
    for number in (0, 1):
        Image.new("L", (50, 40 + number)).save(label_file(ade_root, number))
    (batch,) = batches(splits)
    assert all((target["labels"] == 255).all() for target in batch.targets)


def test_the_fingerprint_is_of_names_and_sizes(splits, ade_root):
    first = sets(splits).source.fingerprint
    assert sets(splits).source.fingerprint == first
    path = ade_root / "ade20k" / "images" / "training" / "ADE_1.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert sets(splits).source.fingerprint != first
