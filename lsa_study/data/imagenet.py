"""ImageNet: encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lsa_study.config.settings import Settings
from lsa_study.data import fast_pil, folders, index, rng, shards, transforms
from lsa_study.data.index import Listing
from lsa_study.data.paths import DataLacks, Layout, imagenet
from lsa_study.data.sampler import Epoch, Share
from lsa_study.data.sets import CHANNELS, Pixels, Sets, Source

if TYPE_CHECKING:
    from lsa_study.data.token_labels import LabelMaps

MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

Key = tuple[tuple[int | str, ...], int]
Decoded = tuple[Tensor, ...]
"""Pixels (N, 3, size, size) and labels; where label maps are read, also maps and cuts."""


def load(settings: Settings, *, device: str) -> ImagenetSets:
    """List the images; check that all are there unless ``data.train_limit`` asks for few.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    train, test = listings(imagenet(settings.data))
    if settings.data.train_limit is None:
        index.complete("train", train)
        index.complete("val", test)
    maps, content = _label_maps(settings, train)
    trained, tested = len(train.labels), len(test.labels)
    source = Source(
        "imagenet",
        min(settings.data.train_limit or trained, trained),
        min(settings.data.test_limit or tested, tested),
        num_classes=len(train.classes), fingerprint=_fingerprint(train, test, content), mean=MEAN,
        std=STD,
    )  # fmt: skip
    return ImagenetSets(source, settings, device, train=train, test=test, maps=maps)


@lru_cache(maxsize=1)
def listings(layout: Layout) -> tuple[Listing, Listing]:
    """List the training and the test images, whatever their layout.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    if layout.kind == "folders":
        train = index.ordered(folders.find(layout.train[0], None), None)
        return train, index.ordered(folders.find(layout.test[0], train.classes), train)
    find = {"tar": shards.find_in_tar, "parquet": shards.find_in_parquet}[layout.kind]
    train = index.ordered(find(layout.root / "train", layout.train), None)
    return train, index.ordered(find(layout.root / "val", layout.test), train)


def _label_maps(settings: Settings, train: Listing) -> tuple[LabelMaps | None, list[Any]]:
    """The label maps that the settings read, if any, and what a fingerprint takes of them."""
    tokens = settings.train.tokens
    if tokens is None or tokens.labels == "plain":
        return None, []
    from lsa_study.data.token_labels import LabelMaps

    names = [os.fsdecode(name) for name in train.names[: settings.data.train_limit]]
    maps = LabelMaps.find(
        train.store.root.parent / "token_labels", names, num_classes=len(train.classes),
        truth=tokens.labels == "maps_and_truth",
    )  # fmt: skip
    return maps, maps.content(names)


def _fingerprint(train: Listing, test: Listing, content: Sequence[Any]) -> str:
    try:
        return index.fingerprint((train, test), content)
    except OSError as error:
        raise DataLacks(f"{train.store.root}: cannot be read ({error})") from error


@dataclass(frozen=True, eq=False)
class _Images(Dataset[Decoded]):
    """Images by (words of the draw, number): the draws of an image depend on nothing else."""

    listing: Listing
    transform: transforms.Transform
    size: int
    maps: LabelMaps | None = None

    def __getitems__(self, keys: Sequence[Key]) -> Decoded:
        """A whole batch, each image written to its place."""
        pixels = torch.empty(len(keys), CHANNELS, self.size, self.size, dtype=torch.uint8)
        placed: list[tuple[Tensor, Tensor]] = []
        with rng.kept():
            for out, (words, index) in zip(pixels.numpy(), keys, strict=True):
                rng.plant(*words, index)
                self._write(index, out)
                if self.maps is not None:
                    name = os.fsdecode(self.listing.names[index])
                    placed.append(self.maps.placed(name, self.transform))
        labels = torch.from_numpy(self.listing.labels[[index for _, index in keys]])
        return pixels, labels, *map(torch.stack, zip(*placed, strict=True))

    def _write(self, index: int, out: Any) -> None:
        try:
            transforms.planes(self.transform(self.listing.read(index)), out)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataLacks(
                f"{self.listing.where(index)}: cannot be decoded ({error}); fetch the file again"
            ) from error


class _Batches:
    """The batches of the pass at hand, as a loader that stays wants to be told them."""

    batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


_Loader = tuple[DataLoader[Decoded], _Batches]


class ImagenetSets(Sets):
    """Images in files or shards."""

    def __init__(
        self, source: Source, settings: Settings, device: str, *, train: Listing, test: Listing,
        maps: LabelMaps | None,
    ) -> None:  # fmt: skip
        super().__init__(source, settings, device)
        self.workers = settings.runtime.workers
        size = settings.data.image_size
        self._train = _Images(train, transforms.training(settings, MEAN), size, maps)
        self._test = _Images(test, transforms.testing(settings), size)
        self._resting: dict[_Images, _Loader] = {}

    def _train_pixels(self, epoch: Epoch) -> Iterator[tuple[Share, Tensor, Tensor, Tensor | None]]:
        shares = list(epoch.shares())
        words = (self.seed, "picture", epoch.epoch)
        keys = [[(words, index) for index in share.indices.tolist()] for share in shares]
        for share, (pixels, *told) in zip(shares, self._decode(self._train, keys), strict=True):
            yield share, pixels, *self._targets(*told)

    def _targets(self, labels: Tensor, *placed: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._train.maps is None:
            return labels, None
        return self._train.maps.targets(
            labels, *placed, image_size=self.image_size, smoothing=self.augment.label_smoothing
        )

    def _test_pixels(self, rows: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        keys = [[((), index) for index in numbers.tolist()] for numbers in rows]
        for numbers, (pixels, labels) in zip(rows, self._decode(self._test, keys), strict=True):
            yield numbers, pixels, labels

    def _decode(self, images: _Images, batches: Sequence[Any]) -> Iterator[Decoded]:
        # Workers stay from pass to pass; a second pass while one is under way has its own.
        resting = self._resting.pop(images) if images in self._resting else None
        loader, waiting = resting or self._loader(images)
        waiting.batches = batches
        try:
            for parts in loader:
                yield tuple(part.to(self.device, non_blocking=True) for part in parts)
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own words stand last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None
        self._resting[images] = loader, waiting

    def _loader(self, images: _Images) -> _Loader:
        fast_pil.prepare()
        waiting = _Batches()
        loader = DataLoader(
            images, batch_sampler=waiting, num_workers=self.workers, collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda", worker_init_fn=_quiet_worker,
            generator=torch.Generator(), persistent_workers=self.workers > 0,
        )  # fmt: skip
        return loader, waiting


def _as_it_is(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    # These reach every process of the terminal or the job; only the main one may act on them.
    # SIGTERM is left alone: it is how Python ends workers that it no longer needs.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
