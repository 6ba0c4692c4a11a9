"""Training images that are held out: of each class alike, the same for everybody, never trained."""

import json
import subprocess
import sys

import pytest
import torch

from lsa_study import data
from lsa_study.data.sets import hold_out
from lsa_study.errors import ConfigError

LABELS = torch.arange(640) % 7
PINNED = [104, 204, 207, 359, 416, 418, 505, 560]
"""Of 8 held out: results made with another split are others."""


def test_classes_are_held_out_alike_and_no_image_stands_on_both_sides():
    kept, held = hold_out(LABELS, 70, 7)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(640))
    assert torch.bincount(LABELS[held]).tolist() == [10] * 7
    assert kept.tolist() == sorted(kept)
    assert set(torch.bincount(LABELS[hold_out(LABELS, 73, 7)[1]]).tolist()) == {10, 11}
    assert len(hold_out(LABELS, None, 7)[1]) == 0


def test_the_split_is_the_same_in_every_process_and_for_every_seed(settings):
    code = "from test_hold_out import *; print(hold_out(LABELS, 8, 7)[1].tolist())"
    torch.manual_seed(5)
    _, here = hold_out(LABELS, 8, 7)
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])},
    )  # fmt: skip
    assert here.tolist() == json.loads(there.stdout) == PINNED
    one, other = (data.load(settings(seed=seed, data__validation=100)) for seed in (0, 1))
    assert torch.equal(one._train, other._train)
    assert torch.equal(one._tests[1][0], other._tests[1][0])


def test_small_sets_hold_out_pictures_as_they_prepare_test_pictures(settings):
    whole = data.load(settings(augment__crop="none"))
    sets = data.load(settings(augment__crop="none", data__validation=100))
    assert (sets.source.train_images, sets.source.held_out) == (1200, 100)
    assert sets.source.fingerprint == whole.source.fingerprint
    kept, held = hold_out(whole._train_labels, 100, 10)
    rows, images, labels = map(torch.cat, zip(*sets.test(64, held_out=True), strict=True))
    assert torch.equal(rows, torch.arange(100))
    assert torch.equal(labels, whole._train_labels[held])
    assert torch.equal(images, whole._normalise(whole._train[held]))
    assert torch.equal(sets._train, whole._train[kept])
    assert torch.equal(sets._train_labels, whole._train_labels[kept])
    for one, other in zip(sets.test(64), whole.test(64), strict=True):
        assert torch.equal(one[1], other[1])


def test_a_class_that_has_too_few_is_named_with_what_would_fit(settings):
    with pytest.raises(ConfigError, match=r"data.validation=90: .* the smallest has \d+ training"):
        data.load(settings(data__train_limit=110, data__validation=90))
    with pytest.raises(ConfigError, match=r"give 3 to 3, or raise data.train_limit"):
        hold_out(torch.tensor([0, 0, 1, 1, 2, 2, 2]), 5, 3)
    with pytest.raises(ConfigError, match=r"give null, or raise data.train_limit"):
        hold_out(torch.tensor([0, 0, 1]), 2, 3)
