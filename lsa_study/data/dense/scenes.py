"""Scenes: handwritten digits in photographs, with exact boxes, masks and labels.

scikit-learn's digits, enlarged and coloured, stand on crops of its two sample photographs.
Training and test scenes share no digit and no half of a photograph. All arithmetic behind the
decoded photographs is on whole numbers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lsa_study.data import digits, fast_pil
from lsa_study.data.dense.targets import Item, Split, detected
from lsa_study.data.digits import INK, UNIT, Whole
from lsa_study.data.paths import DataLacks
from lsa_study.errors import ConfigError

VERSION = "scenes-1"
"""Changes whenever the pictures do; part of the data fingerprint."""
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
COUNTS = {"train": 2000, "test": 500}
SIDES = (16, 41)
"""Of an enlarged digit, in pixels: from the first, below the second."""
MOST = 4
"""Digits of a scene; one at least."""
ATTEMPTS = 10
"""A place that hides too much of a digit is chosen anew so often; then the digit is left out."""

Bytes = NDArray[np.uint8]


@dataclass
class Scenes(Split):
    """Scenes of ``"train"`` or ``"test"``, each made when it is first asked for, then kept.

    For ``segment`` the classes are the background, 0, and the digits, from 1; for ``detect`` the
    digits, from 1.
    """

    split: str
    task: str
    size: int = 96
    """Height and width."""
    limit: int | None = None
    """Only the first so many."""
    _made: dict[int, tuple[Bytes, Bytes, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pictures, self._digits = digits.sources(self.split)
        encoded = [_photograph(name) for name in PHOTOGRAPHS]
        whole = [fast_pil.decode(content) for content in encoded]
        test = self.split == "test"
        self._backs = [
            photo[:, photo.shape[1] // 2 :] if test else photo[:, : photo.shape[1] // 2]
            for photo in whole
        ]
        room = min(min(back.shape[:2]) for back in self._backs)
        if not SIDES[1] <= self.size <= room:
            raise ConfigError(
                f"data.image_size={self.size}: scenes are parts of photographs that hold whole "
                f"digits; give {SIDES[1]} to {room}"
            )
        self.names = [str(digit) for digit in range(10)]
        if self.task == "segment":
            self.names.insert(0, "background")
        self.content = [f"{VERSION}/{self.split}/{self.size}/{len(self)}", self._pictures, *encoded]

    def __len__(self) -> int:
        return min(COUNTS[self.split], self.limit or COUNTS[self.split])

    def __getitem__(self, index: int) -> Item:
        """The picture (3, size, size) and its target."""
        if index not in self._made:
            self._made[index] = self._make(index)
        pixels, owners, labels = self._made[index]
        # By NumPy: torch would start threads for so little.
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.task == "segment":
            return image, {"labels": torch.from_numpy(np.array([0, *labels])[owners])}
        masks = (owners == np.arange(1, len(labels) + 1)[:, None, None]).astype(np.uint8)
        boxes = torch.from_numpy(_boxes(masks))
        return image, detected(boxes, torch.tensor(labels), torch.from_numpy(masks), index)

    def where(self, index: int) -> str:
        """The scene, for messages."""
        return f"scene {index} of {self.split}"

    def _make(self, index: int) -> tuple[Bytes, Bytes, list[int]]:
        """Pixels (size, size, 3), the number of the digit seen at each, 0 for none, and labels."""
        draw = np.random.default_rng([2, self.split == "test", index])
        size, back = self.size, self._backs[draw.integers(len(self._backs))]
        top, left = (int(draw.integers(side - size + 1)) for side in back.shape[:2])
        # Darkened, so that digits of any colour can be told from it.
        pixels = back[top : top + size, left : left + size].astype(np.int64) * 3 // 5
        owners = np.zeros((size, size), np.uint8)
        areas: list[int] = []
        labels: list[int] = []
        for _ in range(draw.integers(1, MOST + 1)):
            source = int(draw.integers(len(self._digits)))
            colour = draw.integers(80, 256, 3)
            colour[draw.integers(3)] = 255
            for _ in range(ATTEMPTS):
                ink = self._placed(self._pictures[source], draw)
                mask = ink * 3 >= INK
                seen = np.where(mask, 0, owners)
                left_over = np.bincount(seen.ravel(), minlength=len(areas) + 1)[1:]
                if not (2 * left_over < np.array(areas, np.int64)).any():
                    break
            else:
                continue
            areas.append(int(mask.sum()))
            labels.append(int(self._digits[source]) + 1)
            owners[mask] = len(areas)
            pixels = (pixels * (INK - ink[..., None]) + colour * ink[..., None]) // INK
        return pixels.astype(np.uint8), owners, labels

    def _placed(self, source: Whole, draw: np.random.Generator) -> Whole:
        """A digit, enlarged, at a random place: ink (size, size) in 0..INK."""
        scale = draw.integers(SIDES[0] * UNIT // 8, SIDES[1] * UNIT // 8, 1)
        room = self.size * UNIT - 8 * scale
        rows, columns = (
            digits.weights(scale, draw.integers(0, room + 1), self.size)[0] for _ in range(2)
        )
        ink: Whole = rows @ source @ columns.T
        return ink


def _boxes(masks: Bytes) -> NDArray[np.float32]:
    """The smallest boxes (N, 4) around masks (N, H, W), of which none is empty."""
    edges = []
    for axis in (1, 2):  # what is left are columns, then rows
        seen: NDArray[np.bool_] = np.any(masks, axis)
        edges.append((seen.argmax(1), seen.shape[1] - seen[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], 1).astype(np.float32)


def _photograph(name: str) -> bytes:
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0] if folders else "sklearn") / "datasets" / "images" / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataLacks(
            f"{path}: the sample photograph cannot be read ({error}); reinstall scikit-learn"
        ) from error
