"""What is known of each test image of a run, as small archives of arrays."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_study.files import read_whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


BEST = b"the best objects, as many as there are"
"""The comment in a picture of what is found where that is what it shows; older ones have none and
show objects of a score of 0.5 or more."""


def packed(right: npt.NDArray[np.uint8]) -> bytes:
    """Correctness by image, 1 or 0, as a file holds it."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, bits=np.packbits(right), count=np.int64(len(right)))
    return content.getvalue()


def bits(path: Path, images: int | None) -> bytes:
    """The same as packed bits, the first of eight images highest.

    Raises:
        ValueError: the file cannot be read, or is about another number of images than ``images``.
    """
    try:
        found, counts = _arrays(read_whole(path) or b"")
        count = int(counts[0])
    except Exception:  # NumPy and zipfile raise a dozen kinds, by where the damage is.
        raise ValueError(f"{path}: is unreadable") from None
    if count != images or len(found) != -(-count // 8):
        raise ValueError(f"{path}: holds {count} images, the result says {images}")
    return bytes(found.tobytes())


def kept(scores: npt.NDArray[np.float32]) -> bytes:
    """One number for each image, as a file holds it."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, scores=scores.astype(np.float32))
    return content.getvalue()


def scores(path: Path, images: int | None) -> bytes:
    """The same as bytes of float32; errors as of ``bits``."""
    import numpy as np

    try:
        with np.load(io.BytesIO(read_whole(path) or b"")) as file:
            found = file["scores"].astype(np.float32, casting="no")
    except Exception:  # NumPy and zipfile raise a dozen kinds, by where the damage is.
        raise ValueError(f"{path}: is unreadable") from None
    if found.shape != (images,) or not np.isfinite(found).all():
        holds = (
            "numbers that are not finite" if found.shape == (images,) else f"{found.size} images"
        )
        raise ValueError(f"{path}: holds {holds}, the result says {images}")
    return bytes(found.tobytes())


# One file of an archive, as np.savez writes it: checksum, name and size.
_MEMBER = re.compile(
    rb"PK\x03\x04-\0{7}!\0(.{4})\xff{8}.\0\x14\0(bits|count)\.npy\x01\0\x10\0(.{8})\3", re.DOTALL
)


def _arrays(content: bytes) -> list[npt.NDArray[Any]]:
    """``bits`` and ``count`` of an archive, each as its checksum says."""
    import numpy as np

    found, at = {}, 0
    # zipfile takes ten times as long, which is felt with thousands of runs.
    while head := _MEMBER.match(content, at):
        at = head.end() + int.from_bytes(head[3], "little")
        found[head[2]] = content[head.end() : at]
        if zlib.crc32(found[head[2]]) != int.from_bytes(head[1], "little"):
            raise ValueError("damaged")
    if len(found) < 2 or content[-22:-18] != b"PK\x05\x06":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = {name: archive.read(f"{name.decode()}.npy") for name in (b"bits", b"count")}
    arrays = []
    for file in (found[b"bits"], found[b"count"]):
        # NumPy evaluates Python to read a header, which takes most of the time of np.load.
        kind = re.match(rb"\x93NUMPY\x01.{3}\{'descr': '([<|][iu]\d)'", file, re.DOTALL)
        if kind is None:
            raise ValueError("not an array of whole numbers")
        arrays.append(np.frombuffer(file, kind[1].decode(), offset=file.index(b"\n", 10) + 1))
    return arrays
