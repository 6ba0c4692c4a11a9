"""Handwritten digits: 1,797 real 8 x 8 pictures, placed in larger ones with noise.

The pictures are the UCI set "Optical Recognition of Handwritten Digits" that scikit-learn carries.
All arithmetic is on whole numbers, so every machine makes the same bytes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsa_study.data.paths import DataLacks

VERSION = "digits-1"
"""Changes whenever the pictures do; part of the data fingerprint."""

SIDE = 28
TEST_SOURCES = 497
UNIT = 64
"""Positions and sizes are in this fraction of a pixel."""
INK = 16 * UNIT * UNIT
"""Of an enlarged picture: the most that a pixel can have."""
SCALES = (210, 224)
"""Pixels of a picture per pixel of its source, in UNITs: from the first, below the second."""
CONTRAST = 200
NOISE = 10

Whole = NDArray[np.int64]


def make(split: str) -> tuple[NDArray[np.uint8], Whole]:
    """Make the pictures of ``"train"`` or ``"test"``; no source picture is in both.

    Returns:
        Pictures (N, 3, 28, 28) and their digits (N,), in random order.

    Raises:
        DataLacks: scikit-learn does not carry the digits where it used to.
    """
    pictures, digits = sources(split)
    draw = np.random.default_rng([1, split == "test"])
    ink = _place(pictures, draw)
    noise = draw.integers(-NOISE, NOISE + 1, (len(digits), 3, SIDE, SIDE))
    shade = ink[:, None] * CONTRAST // INK + noise
    return np.clip(shade, 0, 255).astype(np.uint8), digits


def sources(split: str) -> tuple[Whole, Whole]:
    """The pictures (N, 8, 8), in 0..16, of ``"train"`` or ``"test"``, and their digits (N,).

    Raises:
        DataLacks: scikit-learn does not carry the digits where it used to.
    """
    pictures, digits = _sources()
    order = np.random.default_rng(0).permutation(len(digits))
    chosen = order[:TEST_SOURCES] if split == "test" else order[TEST_SOURCES:]
    return pictures[chosen], digits[chosen]


def _sources() -> tuple[Whole, Whole]:
    # Importing scikit-learn takes as long as a third of a toy run; its file needs no import.
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0] if folders else "sklearn") / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",").astype(np.int64)
    except (OSError, ValueError, EOFError) as error:
        raise DataLacks(
            f"{path}: the handwritten digits cannot be read ({error}); reinstall scikit-learn"
        ) from error
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def _place(sources: Whole, draw: np.random.Generator) -> Whole:
    """Enlarge each 8 x 8 picture by about 3.4, at a random place.

    Bilinear; returns (N, 28, 28) with ink in 0..INK.
    """
    scale = draw.integers(*SCALES, len(sources))
    room = SIDE * UNIT - 8 * scale
    rows = weights(scale, draw.integers(0, room))
    columns = weights(scale, draw.integers(0, room))
    enlarged: Whole = np.matmul(np.matmul(rows, sources), columns.transpose(0, 2, 1))
    return enlarged


def weights(scale: Whole, start: Whole, side: int = SIDE) -> Whole:
    """How much source pixel k weighs in pixel p of the picture: (N, side, 8), in 0..UNIT.

    ``scale`` and ``start`` (N,), of the source pixels and of the first one's edge, are in UNITs.
    """
    centres = (np.arange(side) * UNIT + UNIT // 2)[None, :] - start[:, None]
    at = centres * UNIT // scale[:, None] - UNIT // 2
    distance = np.abs(at[:, :, None] - np.arange(8) * UNIT)
    weighing: Whole = np.clip(UNIT - distance, 0, UNIT)
    return weighing
