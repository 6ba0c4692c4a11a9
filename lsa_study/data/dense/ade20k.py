"""ADE20K: images and the class of every pixel, in the layout of the scene parsing benchmark."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsa_study.data import fast_pil
from lsa_study.data.dense.targets import IGNORED, Item, Split
from lsa_study.data.index import heads
from lsa_study.data.paths import DataLacks, entries

EXPECTED = {"train": 20_210, "test": 2_000}
CLASSES = 150


@dataclass
class Ade20k(Split):
    """The images of a split, by name.

    In the files 0 is what belongs to no class, and counts nowhere; 1 to 150 become 0 to 149.
    """

    images: Path
    """The folder of ``.jpg`` files."""
    labels: Path
    """The folder of ``.png`` files of the same names."""
    split: str
    limit: int | None = None
    """Only the first so many."""

    def __post_init__(self) -> None:
        found = _sizes(self.images, ".jpg")
        labelled = _sizes(self.labels, ".png")
        if lacking := sorted(found.keys() - labelled.keys()):
            raise DataLacks(
                f"{self.labels / lacking[0]}.png: no such label map, nor for {len(lacking) - 1:,} "
                f"more of {len(found):,} images; unpack the benchmark again"
            )
        expected = len(found) if self.limit else EXPECTED[self.split]
        if not found or len(found) != expected:
            raise DataLacks(
                f"{self.images}: holds {len(found):,} images (.jpg), expected "
                f"{EXPECTED[self.split]:,}; complete it, or ask for a part with data.train_limit "
                "and data.test_limit"
            )
        # Names as fixed-width bytes, as in ``data.index``.
        self._files = np.array([os.fsencode(name) for name in found])[: self.limit]
        self.names = [str(number) for number in range(1, CLASSES + 1)]
        sizes = (f"{os.fsencode(name)!r} {size}" for name, size in found.items())
        self.content = [*sizes, str(len(self)), *self._heads()]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Item:
        """The image and its label map."""
        pixels = fast_pil.decode(Path(self.where(index)).read_bytes())
        path = self.labels / f"{os.fsdecode(self._files[index])}.png"
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as file:
                mode, marks = file.mode, np.asarray(file)
        except Exception as error:  # Pillow raises a dozen kinds, by where the damage is
            raise ValueError(f"{path}: {error}") from error
        if mode not in ("L", "P") or marks.shape != pixels.shape[:2] or marks.max() > CLASSES:
            raise ValueError(
                f"{path} is {marks.shape[1]} x {marks.shape[0]} pixels of mode {mode} up to "
                f"{marks.max()}; wanted are {pixels.shape[1]} x {pixels.shape[0]} of one byte, 0 "
                f"to {CLASSES}"
            )
        labels = np.where(marks == 0, IGNORED, marks.astype(np.int64) - 1)
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return torch.from_numpy(planes), {"labels": torch.from_numpy(labels)}

    def where(self, index: int) -> str:
        """Its file."""
        return str(self.images / f"{os.fsdecode(self._files[index])}.jpg")

    def _heads(self) -> list[str | bytes]:
        try:
            return heads(Path(self.where(row)).read_bytes() for row in range(0, len(self), 1000))
        except OSError as error:
            raise DataLacks(f"{self.images}: cannot be read ({error})") from error


def _sizes(folder: Path, suffix: str) -> dict[str, int]:
    """Bytes of the files that end so, by the rest of their names, in order."""
    found = (entry for entry in entries(folder) if entry.name.endswith(suffix))
    return {e.name.removesuffix(suffix): e.stat().st_size for e in found if e.is_file()}
