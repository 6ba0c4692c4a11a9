"""ImageNet: encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from lsa_study.config.settings import Settings
from lsa_study.data import index, rng, transforms
from lsa_study.data.index import Listing
from lsa_study.data.paths import DataLacks, imagenet
from lsa_study.data.sampler import EpochSampler
from lsa_study.data.sets import CHANNELS, DatasetInfo, Datasets, Pixels, Shares, Tested, hold_out
from lsa_study.data.shards import listings
from lsa_study.data.token_labels import LabelMaps, moved
from lsa_study.data.workers import Workers

MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

Wanted = tuple[tuple[int | str, ...], list[int]]
"""A purpose and a batch's numbers: an image's draws depend on the purpose and its number alone."""
Decoded = tuple[Tensor, ...]
"""Pixels (N, 3, size, size) and labels; where label maps are read, also maps and cuts."""


@dataclass(frozen=True, eq=False)
class _Images(Dataset[Decoded]):
    """The images of a split, batch by batch."""

    listing: Listing
    transform: Compose
    size: int
    moved: transforms.Moved = field(default_factory=transforms.Moved)
    """What ``transform`` did to its last picture."""
    maps: LabelMaps | None = None

    def __getitems__(self, wanted: Wanted) -> Decoded:
        """A whole batch, each image written to its place."""
        purpose, numbers = wanted
        pixels = torch.empty(len(numbers), CHANNELS, self.size, self.size, dtype=torch.uint8)
        placed: list[tuple[Tensor, Tensor]] = []
        with rng.seeded_global() as seed:
            for out, index in zip(pixels.numpy(), numbers, strict=True):
                seed(*purpose, index)
                try:
                    transforms.planes(self.transform(self.listing.read(index)), out)
                except (OSError, ValueError) as error:
                    raise DataLacks(
                        f"{self.listing.where(index)}: cannot be decoded ({error}); fetch the file "
                        "again, or bring it to RGB of 8 bits"
                    ) from error
                if self.maps is not None:
                    name = os.fsdecode(self.listing.names[index])
                    found = moved(self.maps.read(name), self.moved)
                    placed.append((found, torch.tensor(self.moved.box)))
        labels = torch.from_numpy(self.listing.labels[numbers])
        return pixels, labels, *map(torch.stack, zip(*placed, strict=True))


class ImagenetSets(Datasets):
    """Images in files or shards: all there are, unless ``data.train_limit`` asks for few."""

    def __init__(self, settings: Settings, device: str) -> None:
        data, tokens = settings.data, settings.train.tokens
        train, test = listings(imagenet(data))
        if data.train_limit is None:
            train.complete("train")
            test.complete("val")
        maps, content = None, []
        if tokens is not None and tokens.labels != "plain":
            names = [os.fsdecode(name) for name in train.names[: data.train_limit]]
            maps = LabelMaps.find(
                train.root.parent / "token_labels", names, settings, train.classes
            )
            content = maps.content(names)
        labels = torch.from_numpy(train.labels[: data.train_limit])
        self._kept, self._held = hold_out(labels, data.validation, len(train.classes))
        source = DatasetInfo(
            len(self._kept), len(test.labels[: data.test_limit]),
            num_classes=len(train.classes), fingerprint=index.fingerprint(train, test, content),
            mean=MEAN, std=STD, held_out=len(self._held),
        )  # fmt: skip
        super().__init__(source, settings, device)
        self._look_bytes_up()
        self._workers, size = Workers(settings.runtime.workers, self.device), data.image_size
        past = transforms.Moved()
        self._train = _Images(train, transforms.training(settings, MEAN, past), size, past, maps)
        self._tests = [_Images(of, transforms.testing(settings), size) for of in (test, train)]

    def _train_pixels(self, epoch: EpochSampler) -> Shares:
        shares, maps = list(epoch.shares()), self._train.maps
        purpose = (self.seed, "picture", epoch.epoch)
        wanted: list[Wanted] = [(purpose, self._kept[share.indices].tolist()) for share in shares]
        decoded = self._workers.take(self._train, wanted)
        for share, parts in zip(shares, decoded, strict=True):
            pixels, labels, *placed = self._moved(parts)
            tokens = None
            if maps is not None:
                labels, tokens = maps.targets(labels, *placed)
            yield share, pixels, labels, tokens

    def _test_pixels(self, rows: tuple[Tensor, ...], held_out: bool) -> Tested:
        places = [self._held[numbers] if held_out else numbers for numbers in rows]
        wanted: list[Wanted] = [((), numbers.tolist()) for numbers in places]
        decoded = self._workers.take(self._tests[held_out], wanted)
        for numbers, parts in zip(rows, decoded, strict=True):
            pixels, labels = self._moved(parts)
            yield numbers, pixels, labels

    def _moved(self, parts: Decoded) -> Decoded:
        return tuple(part.to(self.device, non_blocking=True) for part in parts)
