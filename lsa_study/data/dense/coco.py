"""COCO: images and the boxes and masks of their objects, in the layout of the 2017 release."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lsa_study.data import fast_pil
from lsa_study.data.dense import instances
from lsa_study.data.dense.targets import Item, Split, decoded, detected
from lsa_study.data.index import heads
from lsa_study.data.paths import DataLacks

EXPECTED = {"train": 118_287, "test": 5_000}


@dataclass
class Coco(Split):
    """The images of a split that are annotated; of ``"test"`` all of them."""

    file: Path
    """``instances_train2017.json`` or ``instances_val2017.json``."""
    folder: Path
    """Of its images."""
    split: str
    limit: int | None = None
    """Only the first so many."""

    def __post_init__(self) -> None:
        self._index, digest = instances.read(self.file)
        index, train = self._index, self.split == "train"
        found = len(index["ids"])
        if self.limit is None and found != EXPECTED[self.split]:
            raise DataLacks(
                f"{self.file}: names {found:,} images, expected {EXPECTED[self.split]:,}; fetch "
                "the file again, or ask for a part with data.train_limit and data.test_limit"
            )
        # Crowds stand for many objects: nothing to learn from, but no mistake to find one there.
        learnt = ~(index["crowd"] | index["bare"])
        self._used = learnt if train else np.ones(len(learnt), bool)
        annotated = np.bincount(index["image"][self._used], minlength=found) > 0
        self._rows = (np.flatnonzero(annotated) if train else np.arange(found))[: self.limit]
        if not np.isin(index["image"][~index["crowd"]], self._rows).any():
            of = f"none of the first {self.limit} images" if self.limit else "no image"
            raise DataLacks(
                f"{self.file}: {of} has an object to detect; fetch the file again, or ask for more "
                "images"
            )
        self._first = np.searchsorted(index["image"], np.arange(found + 1))
        self.names = [os.fsdecode(name) for name in index["classes"]]
        self.content = [digest, str(len(self)), *self._heads()]
        self.remarks = tuple(self._remarks(train, int((~annotated).sum())))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        """The image, and its objects in the order of the file."""
        image = self.image(index)
        pixels = fast_pil.decode(Path(self.where(index)).read_bytes())
        if pixels.shape[:2] != (image["height"], image["width"]):
            raise ValueError(
                f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels, {image['width']} x "
                f"{image['height']} in {self.file.name}"
            )
        found, rows = self._index, self._annotations(index)
        boxes = found["box"][rows].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        height, width = pixels.shape[:2]
        boxes = boxes.clip(0, [width, height, width, height])
        codes = [self._code(row, image) for row in rows]
        target = detected(
            torch.from_numpy(boxes),
            torch.from_numpy(found["label"][rows]),
            torch.from_numpy(decoded(codes, pixels.shape[:2])),
            image["id"],
            torch.from_numpy(found["crowd"][rows]),
        )
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), target

    def where(self, index: int) -> str:
        """Its file."""
        return str(self.folder / os.fsdecode(self._index["names"][self._rows[index]]))

    def image(self, index: int) -> dict[str, int]:
        """Its id, height and width."""
        row = self._rows[index]
        height, width = self._index["sizes"][row].tolist()
        return {"id": int(self._index["ids"][row]), "height": height, "width": width}

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """As in the file, but that labels are counted from 1 without gaps."""
        image, found = self.image(index), self._index
        return [
            {"image_id": image["id"], "category_id": int(found["label"][row]),
             "bbox": found["box"][row].tolist(), "iscrowd": int(found["crowd"][row]),
             "segmentation": self._code(row, image), "area": float(found["area"][row])}
            for row in self._annotations(index)
        ]  # fmt: skip

    def _annotations(self, index: int) -> NDArray[np.int64]:
        image = self._rows[index]
        rows = np.arange(self._first[image], self._first[image + 1])
        kept: NDArray[np.int64] = rows[self._used[rows]]
        return kept

    def _code(self, row: int, image: dict[str, int]) -> dict[str, Any]:
        start, end = self._index["start"][row : row + 2]
        size = [image["height"], image["width"]]
        return {"size": size, "counts": self._index["code"][start:end].tobytes()}

    def _heads(self) -> list[str | bytes]:
        try:
            return heads(Path(self.where(row)).read_bytes() for row in range(0, len(self), 1000))
        except OSError as error:
            raise DataLacks(
                f"{error.filename}: cannot be read ({error.strerror}); fetch the images that "
                f"{self.file.name} names"
            ) from error

    def _remarks(self, train: bool, empty: int) -> list[str]:
        dropped, clipped = self._index["left_out"].tolist()
        crowds = int(self._index["crowd"].sum())
        bare = int((self._index["bare"] & ~self._index["crowd"]).sum())
        return [
            f"{self.file.name}: {number:,} {what}"
            for number, what in (
                (dropped, "annotations without a mask left out"),
                (
                    train * bare,
                    "annotations left out of training, whose boxes are empty or outside "
                    "their images",
                ),
                (train * clipped, "boxes clipped to their images"),
                (train * crowds, "annotations of crowds left out of training"),
                (train * empty, "images without objects left out of training"),
            )
            if number
        ]
