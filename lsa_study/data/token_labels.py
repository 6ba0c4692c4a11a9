"""Label maps: what a trained network answers for each place of every training image, as released.

A map lies in ``imagenet/token_labels/<wnid>/<image>.pt`` and is a tensor (2, k, rows, columns): the
k best scores of every cell, as logits, and their classes (Jiang et al., "All Tokens Matter", 2021).
It covers the whole picture; an image shows a box of it.
"""

from __future__ import annotations

import os
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from lsa_study.config.settings import Settings
from lsa_study.data.augment import soft
from lsa_study.data.index import heads
from lsa_study.data.paths import DataLacks
from lsa_study.data.transforms import Moved

TOKEN_PIXELS = 16
"""Pixels per side of the image that one of VOLO's tokens stands for."""


@dataclass(frozen=True)
class LabelMaps:
    """The label maps of a training set, and what its ``settings`` make of them."""

    root: Path
    settings: Settings
    num_classes: int
    shape: tuple[int, ...] | None = None
    """Of the first map; a batch needs all to have it."""

    @classmethod
    def find(cls, root: Path, names: list[str], settings: Settings, classes: Sized) -> LabelMaps:
        """Look whether each image has a map; the first is read.

        ``root`` holds a folder for each class; ``names`` are class folder / file.

        Raises:
            DataLacks: maps are missing, or the first cannot be read.
        """
        folders = {name.partition("/")[0] for name in names}
        there = {
            f"{folder}/{entry.name}"
            for folder in folders
            if (root / folder).is_dir()
            for entry in os.scandir(root / folder)
        }
        missing = [name for name in map(_beside, names) if name not in there]
        if missing:
            raise DataLacks(
                f"{root / missing[0]}: no such label map, nor for {len(missing) - 1:,} more of "
                f"{len(names):,} images; unpack the released maps (label_top5_train_nfnet) there, "
                "or set train.tokens.labels: plain, which needs none"
            )
        maps = cls(root, settings, len(classes))
        return replace(maps, shape=tuple(maps.read(names[0]).shape))

    def read(self, name: str) -> Tensor:
        """The map of an image: (2, k, rows, columns), float32.

        Raises:
            DataLacks: it is damaged, or no map like the others.
        """
        path = self.root / _beside(name)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds, by where the damage is
            # Its kind only: of a file that holds more than tensors, torch invites to trust it.
            kind = type(error).__name__
            raise DataLacks(
                f"{path}: cannot be read as a tensor ({kind}); unpack it again"
            ) from error
        if wrong := self._wrong(found):
            raise DataLacks(
                f"{path}: {wrong}; wanted is a tensor (2, k, rows, columns) of scores and of "
                "classes, the same size for all images"
            )
        maps: Tensor = found.float()
        return maps

    def targets(self, labels: Tensor, maps: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
        """Smoothed targets of a batch: (N, K) of its images, (N, tokens, K) of their tokens.

        Args:
            labels: (N,) class numbers.
            maps, cuts: as in ``answers``.
        """
        wanted, smoothing = self.settings.train.tokens, self.settings.augment.label_smoothing
        side = self.settings.data.image_size // TOKEN_PIXELS
        if wanted is not None and wanted.boxes == "transposed":
            cuts = cuts[:, [1, 0, 3, 2]]
        images, tokens = (
            smoothed(shares, smoothing)
            for shares in answers(maps, cuts, num_classes=self.num_classes, side=side)
        )
        if wanted is not None and wanted.labels == "maps_and_truth":
            images = with_truth(images, labels, smoothing)
        return images, tokens

    def content(self, names: list[str]) -> list[Any]:
        """Size and first 4 kB of every thousandth map, for a fingerprint."""
        return heads((self.root / _beside(name)).read_bytes() for name in names[::1000])

    def _wrong(self, found: Any) -> str | None:
        if not isinstance(found, Tensor):
            return f"holds no tensor but a {type(found).__name__}"
        if found.ndim != 4 or len(found) != 2 or not found.is_floating_point():
            return f"holds numbers of type {found.dtype}, shape {tuple(found.shape)}"
        if self.shape is not None and tuple(found.shape) != self.shape:
            return f"has the shape {tuple(found.shape)}, the first map {self.shape}"
        scores, classes = found.float()
        if not scores.isfinite().all():
            return "holds scores that are not finite"
        if not ((classes >= 0) & (classes < self.num_classes) & (classes == classes.round())).all():
            return f"holds classes that are not whole numbers from 0 to {self.num_classes - 1}"
        if (classes.sort(dim=0).values.diff(dim=0) == 0).any():
            return "names a class twice in one cell"
        return None


def _beside(name: str) -> str:
    return str(Path(name).with_suffix(".pt"))


# -- targets -------------------------------------------------------------------------------------


def answers(maps: Tensor, cuts: Tensor, *, num_classes: int, side: int) -> tuple[Tensor, Tensor]:
    """What the network that made the maps says of images cut from their pictures.

    As released: scores are put back to all classes, 0 elsewhere, averaged by RoI align over each
    token's part of the box, or over all of it, and become shares by softmax.

    Args:
        maps: (N, 2, k, rows, columns), scores and classes; see ``moved``.
        cuts: (N, 4): left, top, right and bottom as shares of the picture.
        num_classes: K.
        side: tokens per side of an image.

    Returns:
        (N, K) of the whole images and (N, side**2, K) of their tokens, row by row from the top
        left; each sums to 1 over the classes.
    """
    scores, classes = maps.unbind(1)
    count, _, rows, columns = scores.shape
    whole = scores.new_zeros(count, num_classes, rows, columns).scatter_(1, classes.long(), scores)
    boxes = cuts * cuts.new_tensor([columns, rows, columns, rows])
    boxes = torch.cat([torch.arange(count, device=cuts.device)[:, None], boxes], dim=1)
    images: Tensor = roi_align(whole, boxes, 1, aligned=True)
    tokens: Tensor = roi_align(whole, boxes, side, aligned=True)
    return images.flatten(1).softmax(1), tokens.flatten(2).softmax(1).transpose(1, 2)


def moved(maps: Tensor, past: Moved) -> Tensor:
    """Move a map (2, k, rows, columns) as its picture was: flipped, then bent.

    Every cell takes the answers of the cell that its middle came from. One from outside has scores
    of 0, as released.
    """
    _, _, rows, columns = maps.shape
    if past.flipped:
        maps = maps.flip(-1)
    y = ((torch.arange(rows) + 0.5) / rows)[:, None]
    x = (torch.arange(columns) + 0.5) / columns
    for a, b, c, d, e, f in past.moves:
        row = ((d * x + e * y + f) * rows).floor().long()
        column = ((a * x + b * y + c) * columns).floor().long()
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        scores, classes = maps[:, :, row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
        maps = torch.stack([torch.where(inside, scores, 0), classes])
    return maps


def smoothed(shares: Tensor, smoothing: float) -> Tensor:
    """Smooth shares s of K classes as released: s (1 - e + e/K) + e/K; so they sum to 1 + e/K."""
    least = smoothing / shares.shape[-1]
    return shares * (1 - smoothing + least) + least


def with_truth(images: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mix whole images' targets (N, K), smoothed, with their classes (N,), smoothed.

    VOLO's fine-tuning: half of each where both name the same class, else 9 parts of 10 of the
    former remain.
    """
    truth = soft(labels, images.shape[1], smoothing)
    kept = torch.where(images.argmax(1) == labels, 0.5, 0.9)[:, None]
    return kept * images + (1 - kept) * truth
