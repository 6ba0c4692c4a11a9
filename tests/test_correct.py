"""The bits of a run survive the way to disk and back, and damage is told, not read."""

import io

import numpy as np
import pytest

from lsa_study import correct


def right(images, seed=0):
    return np.random.default_rng(seed).integers(0, 2, images).astype(np.uint8)


@pytest.mark.parametrize("images", [1, 7, 8, 9, 360, 10_000, 50_000])
def test_what_is_packed_comes_back(images):
    for seed in range(3):
        bits = correct.unpack(correct.pack(right(images, seed)), images)
        assert (
            np.unpackbits(np.frombuffer(bits, np.uint8), count=images) == right(images, seed)
        ).all()


def test_own_files_need_no_parsing(monkeypatch):
    """NumPy's parsing is most of the time that thousands of runs take to collect."""
    monkeypatch.delattr(np, "load")
    assert correct.unpack(correct.pack(right(360)), 360) == np.packbits(right(360)).tobytes()


@pytest.mark.parametrize("images", [8, 360])
def test_a_damaged_byte_is_refused_or_changes_nothing(images):
    content, bits = correct.pack(right(images)), np.packbits(right(images)).tobytes()
    refused = 0
    for place in range(len(content)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= flip
            try:
                assert correct.unpack(bytes(damaged), images) == bits
            except ValueError:
                refused += 1
    assert refused > 2 * len(content), "most bytes are checked"


@pytest.mark.parametrize("cut", [0, 1, 40, 300, -1])
def test_a_torn_file_is_unreadable(cut):
    with pytest.raises(ValueError, match="is unreadable"):
        correct.unpack(correct.pack(right(360))[:cut], 360)


@pytest.mark.parametrize("images", [None, -1, 0, 1, 359, 361, 10**12])
def test_another_number_of_images_is_refused(images):
    with pytest.raises(ValueError, match=f"holds 360 images, the result says {images}"):
        correct.unpack(correct.pack(right(360)), images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_other_writers_are_read(save):
    """Another NumPy may pad or order the file otherwise."""
    content = io.BytesIO()
    save(content, count=np.int32(360), bits=np.packbits(right(360)), more=np.zeros(3))
    assert correct.unpack(content.getvalue(), 360) == np.packbits(right(360)).tobytes()


def test_pickled_objects_are_never_read():
    content = io.BytesIO()
    np.savez(content, bits=np.array([{}], dtype=object), count=np.int64(8))
    with pytest.raises(ValueError, match="is unreadable"):
        correct.unpack(content.getvalue(), 8)
