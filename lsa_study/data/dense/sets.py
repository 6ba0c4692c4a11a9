"""Batches of images with boxes, masks or label maps; test images in their views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lsa_study.data import rng
from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe, Size, scaled
from lsa_study.data.dense.targets import IGNORED, Item, Split, Target
from lsa_study.data.imagenet import MEAN, STD
from lsa_study.data.paths import DataLacks
from lsa_study.data.sampler import EpochSampler
from lsa_study.data.sets import CHANNELS, DatasetInfo
from lsa_study.data.workers import Workers

Recipe = DetectRecipe | SegmentRecipe
Wanted = tuple[tuple[int | str, ...], list[int]]
"""A purpose and the numbers of images: an image's draws depend on both alone."""


@dataclass(frozen=True)
class DenseBatch:
    """Some images of one step, normalised, each of its own size."""

    step: int
    images: list[Tensor]
    """(3, H, W) float32, on the device."""
    targets: list[Target]
    """Of each, on the device."""


@dataclass(frozen=True)
class View:
    """A test image as a network sees it."""

    image: Tensor
    """(3, h, w) float32, normalised, on the device."""
    scale: tuple[float, float]
    """Of its height and width to those of the image."""
    flipped: bool


@dataclass(frozen=True)
class TestImage:
    """A test image, in its own size and in those it is tested in."""

    __test__ = False  # no test of pytest's

    index: int
    pixels: Tensor
    """(3, H, W) uint8, on the CPU."""
    target: Target
    """Of this size, on the CPU."""
    sets: DenseSets

    @property
    def size(self) -> Size:
        """Height and width."""
        height, width = self.pixels.shape[1:]
        return height, width

    def views(self) -> Iterator[View]:
        """Its views, each made when it is asked for."""
        height, width = self.size
        for (h, w), flip in self.sets.recipe.views(self.size):
            pixels = scaled(self.pixels, (h, w))
            image = self.sets.normalised(pixels.flip(-1) if flip else pixels)
            yield View(image, (h / height, w / width), flip)


@dataclass(frozen=True, eq=False)
class _Items(Dataset[Any]):
    """The images of a split, batch by batch; augmented where there is a recipe."""

    split: Split
    recipe: Recipe | None

    def __getitems__(self, wanted: Wanted) -> list[Item]:
        purpose, numbers = wanted
        return [self._item(purpose, number) for number in numbers]

    def _item(self, purpose: tuple[int | str, ...], number: int) -> Item:
        try:
            item = self.split[number]
        except (OSError, ValueError) as error:
            raise DataLacks(
                f"{self.split.where(number)}: cannot be used ({error}); fetch the file again"
            ) from error
        if self.recipe is None:
            return item
        image, target = self.recipe.train(item, rng.generator(*purpose, number))
        # Whole copies: a crop that is handed over as a view takes its picture along.
        return image.contiguous(), {
            key: value.contiguous() if isinstance(value, Tensor) else value
            for key, value in target.items()
        }


class DenseSets:
    """The images of a run that detects objects or labels pixels."""

    def __init__(
        self, name: str, train: Split, test: Split, recipe: Recipe, *, seed: int, device: str,
        workers: int = 0, together: int | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.recipe = seed, recipe
        self.device = torch.device(device)
        self.train_split, self.test_split = train, test
        self.source = DatasetInfo(
            len(train), len(test), len(train.names),
            rng.fingerprint(name, *train.content, *test.content), MEAN, STD,
        )  # fmt: skip
        self.remarks = train.remarks + test.remarks
        self._together = together
        self._workers = Workers(workers, self.device)
        self._train, self._test = _Items(train, recipe), _Items(test, None)
        scale = 255 * torch.tensor([MEAN, STD], device=self.device)
        self._mean, self._std = scale.view(2, CHANNELS, 1, 1).unbind(0)

    def epoch(
        self, epoch: int, batch_size: int, *, first_step: int = 0, parts: int = 1,
        mine: range = range(1),
    ) -> EpochSampler:  # fmt: skip
        """Plan one epoch of this set; see ``sampler.EpochSampler``."""
        return EpochSampler(
            self.source.train_images, batch_size, self.seed, epoch, first_step, parts, mine,
            together=self._together,
        )  # fmt: skip

    def train(self, epoch: EpochSampler) -> Iterator[DenseBatch]:
        """Augmented training batches: for every step of ``epoch``, this process's parts in order.

        Raises:
            DataLacks: a file cannot be decoded, or does not fit its annotations.
        """
        shares = list(epoch.shares())
        purpose = (self.seed, "dense", epoch.epoch)
        wanted: list[Wanted] = [(purpose, share.indices.tolist()) for share in shares]
        taken = self._workers.take(self._train, wanted)
        for share, items in zip(shares, taken, strict=True):
            done = [self._padded(self.normalised(image), target) for image, target in items]
            images, targets = (list(column) for column in zip(*done, strict=True))
            yield DenseBatch(share.step, images, targets)

    def test(self, *, rank: int = 0, ranks: int = 1) -> Iterator[TestImage]:
        """Every ``ranks``-th test image from the ``rank``-th on, once, in order.

        Raises:
            DataLacks: as for ``train``.
        """
        mine = range(rank, self.source.test_images, ranks)
        taken = self._workers.take(self._test, [((), [index]) for index in mine])
        for index, [(image, target)] in zip(mine, taken, strict=True):
            yield TestImage(index, image, target, self)

    def normalised(self, pixels: Tensor) -> Tensor:
        """An image (3, H, W) uint8 as networks want it, on the device."""
        moved = pixels.to(self.device, non_blocking=True).to(torch.float32)
        return moved.sub_(self._mean).div_(self._std)

    def _padded(self, image: Tensor, target: Target) -> Item:
        moved = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in target.items()
        }
        if isinstance(self.recipe, SegmentRecipe):
            height, width = image.shape[1:]
            beyond = [0, self.recipe.crop - width, 0, self.recipe.crop - height]
            # The mean colour, as networks see it.
            image = F.pad(image, beyond)
            moved["labels"] = F.pad(moved["labels"], beyond, value=IGNORED)
        return image, moved
