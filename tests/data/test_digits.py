"""The embedded digits: real, the same everywhere, never on both sides."""

import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lsa_study import data
from lsa_study.data import digits
from lsa_study.data.paths import DataLacks


def test_the_sources_are_scikit_learns_digits():
    pictures, labels = digits._sources()
    expected = load_digits()
    assert np.array_equal(pictures, expected.images)
    assert np.array_equal(labels, expected.target)


def test_no_source_picture_is_on_both_sides(monkeypatch):
    """Also not as clutter: what is composed is watched."""
    used: dict[str, set[int]] = {}
    pictures, _ = digits._sources()
    by_content = {picture.tobytes(): number for number, picture in enumerate(pictures)}
    original = digits._place

    def watch(sources, draw, **range_):
        whole = (number for s in sources if (number := by_content.get(s.tobytes())) is not None)
        used.setdefault(split, set()).update(whole)
        return original(sources, draw, **range_)

    monkeypatch.setattr(digits, "_place", watch)
    for split in ("train", "test"):
        digits.make(split)
    assert len(used["train"]) + len(used["test"]) == len(pictures)
    assert not used["train"] & used["test"]


def test_the_pictures_are_the_same_on_every_machine_and_quick():
    """Only whole numbers are computed, so the content's hash can be written down here."""
    started = time.process_time()
    train, labels = digits.make("train")
    test, _ = digits.make("test")
    assert time.process_time() - started < 1.0
    assert train.dtype == np.uint8
    assert train.shape[1:] == test.shape[1:] == (3, 28, 28)
    assert np.bincount(labels, minlength=10).min() > 100
    again, _ = digits.make("train")
    assert np.array_equal(train, again)


def test_fingerprint(settings):
    assert data.load(settings()).source.fingerprint == "digits-1-5bb4aa6cd9f523f2"


def test_a_picture_is_placed_where_the_weights_say():
    """Bilinear enlargement by 3 at a known place, against NumPy's own interpolation."""
    scale, start = np.array([3 * digits.UNIT]), np.array([2 * digits.UNIT])
    got = digits.weights(scale, start)[0] / digits.UNIT
    source = np.arange(8.0)
    at = (np.arange(digits.SIDE) + 0.5 - 2) / 3 - 0.5
    inside = (at >= 0) & (at <= 7)
    want = np.interp(at, np.arange(8), source)
    np.testing.assert_allclose((got @ source)[inside], want[inside], atol=8 / digits.UNIT)
    assert (got[at < -1] == 0).all()
    assert (got[at > 8] == 0).all()


def test_missing_digits_are_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataLacks, match="reinstall scikit-learn"):
        digits.make("train")


def test_statistics_fit_the_pictures():
    from lsa_study.data.in_memory import SETS

    pictures = digits.make("train")[0] / 255
    known = SETS["digits"]
    assert np.allclose(pictures.mean((0, 2, 3)), known.mean, atol=0.02)
    assert np.allclose(pictures.std((0, 2, 3)), known.std, atol=0.02)
