"""``correct.npz`` of a run: which test images it classified rightly, one bit each."""

from __future__ import annotations

import functools
import io
import zlib

import numpy as np
import numpy.typing as npt


def pack(right: npt.NDArray[np.uint8]) -> bytes:
    """The content of the file.

    Args:
        right: 1 or 0 for each test image, in the data set's order.
    """
    content = io.BytesIO()
    np.savez(content, bits=np.packbits(right), count=np.int64(len(right)))
    return content.getvalue()


def unpack(content: bytes, images: int | None) -> bytes:
    """The packed bits of a file, the first of eight images highest.

    Args:
        content: of the file.
        images: how many it should tell of.

    Raises:
        ValueError: the content is no such file, or tells of another number of images.
    """
    bits = _bits_of_own(content, images) if images is not None else None
    return _bits_of_any(content, images) if bits is None else bits


def _bits_of_any(content: bytes, images: int | None) -> bytes:
    try:
        with np.load(io.BytesIO(content)) as arrays:
            bits: bytes = arrays["bits"].tobytes()
            count = int(arrays["count"])
    except Exception:  # NumPy and zipfile raise a dozen kinds, by where the damage is.
        raise ValueError("is unreadable") from None
    if count != images or len(bits) != -(-count // 8):
        raise ValueError(f"holds {count} images, the result says {images}")
    return bits


def _bits_of_own(content: bytes, images: int) -> bytes | None:
    # NumPy parses for half a millisecond, too long for thousands of runs. Files of as many images
    # differ in the bits and their checksum alone, so one that is ``pack``'s needs no parsing.
    if not 0 < images <= 8 * len(content):
        return None
    before, after, checksum, of_header = _around(images)
    bits = content[len(before) : len(before) + -(-images // 8)]
    own = zlib.crc32(bits, of_header).to_bytes(4, "little")
    written = before.replace(checksum, own) + bits + after.replace(checksum, own)
    return bits if written == content else None


@functools.lru_cache(maxsize=16)
def _around(images: int) -> tuple[bytes, bytes, bytes, int]:
    """What ``pack`` writes before and after empty bits, their checksum, and their header's."""
    content = pack(np.zeros(images, np.uint8))
    header = content.index(b"\x93NUMPY")
    start = content.index(b"\n", header) + 1
    stop = start + -(-images // 8)
    checksum = zlib.crc32(content[header:stop]).to_bytes(4, "little")
    return content[:start], content[stop:], checksum, zlib.crc32(content[header:start])
