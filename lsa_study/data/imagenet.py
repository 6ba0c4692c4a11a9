"""ImageNet: encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lsa_study.config import Settings
from lsa_study.data import folders, listing, resample, seeds, shards, transforms
from lsa_study.data.listing import Listing
from lsa_study.data.plan import Epoch, Share
from lsa_study.data.roots import DataLacks, Layout, imagenet
from lsa_study.data.sets import CHANNELS, Pixels, Sets, Source

MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

Key = tuple[tuple[int | str, ...], int]
Decoded = tuple[Tensor, Tensor]


def load(settings: Settings, *, device: str) -> ImagenetSets:
    """List the images; check that all are there unless ``data.train_limit`` asks for few.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    train, test = listings(imagenet(settings.data))
    limit = settings.data.train_limit
    if limit is None:
        listing.complete("train", train)
        listing.complete("val", test)
    source = Source(
        "imagenet", min(limit or len(train.labels), len(train.labels)), len(test.labels),
        num_classes=len(train.classes), fingerprint=_fingerprint(train, test), mean=MEAN, std=STD,
    )  # fmt: skip
    return ImagenetSets(source, settings, device, train=train, test=test)


@lru_cache(maxsize=1)
def listings(layout: Layout) -> tuple[Listing, Listing]:
    """List the training and the test images, whatever their layout.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    if layout.kind == "folders":
        train = listing.ordered(folders.find(layout.train[0], None), None)
        return train, listing.ordered(folders.find(layout.test[0], train.classes), train)
    find = {"tar": shards.find_in_tar, "parquet": shards.find_in_parquet}[layout.kind]
    train = listing.ordered(find(layout.root / "train", layout.train), None)
    return train, listing.ordered(find(layout.root / "val", layout.test), train)


def _fingerprint(train: Listing, test: Listing) -> str:
    try:
        return listing.fingerprint((train, test))
    except OSError as error:
        raise DataLacks(f"{train.store.root}: cannot be read ({error})") from error


@dataclass(frozen=True, eq=False)
class _Images(Dataset[Decoded]):
    """Images by (words of the draw, number): the draws of an image depend on nothing else."""

    listing: Listing
    transform: transforms.Transform
    size: int

    def __getitems__(self, keys: Sequence[Key]) -> Decoded:
        """A whole batch, each image written to its place: pixels (N, 3, size, size) and labels."""
        pixels = torch.empty(len(keys), CHANNELS, self.size, self.size, dtype=torch.uint8)
        with seeds.kept():
            for out, (words, index) in zip(pixels.numpy(), keys, strict=True):
                seeds.plant(*words, index)
                self._write(index, out)
        labels = self.listing.labels[[index for _, index in keys]]
        return pixels, torch.from_numpy(labels)

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
        self, source: Source, settings: Settings, device: str, *, train: Listing, test: Listing
    ) -> None:
        super().__init__(source, settings, device)
        self.workers = settings.runtime.workers
        size = settings.data.image_size
        self._train = _Images(train, transforms.training(settings, MEAN), size)
        self._test = _Images(test, transforms.testing(settings), size)
        self._resting: dict[_Images, _Loader] = {}

    def _train_pixels(self, epoch: Epoch) -> Iterator[tuple[Share, Tensor, Tensor]]:
        shares = list(epoch.shares())
        words = (self.seed, "picture", epoch.epoch)
        keys = [[(words, index) for index in share.indices.tolist()] for share in shares]
        for share, (pixels, labels) in zip(shares, self._decode(self._train, keys), strict=True):
            yield share, pixels, labels

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
            for pixels, labels in loader:
                yield (
                    pixels.to(self.device, non_blocking=True),
                    labels.to(self.device, non_blocking=True),
                )
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own words stand last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None
        self._resting[images] = loader, waiting

    def _loader(self, images: _Images) -> _Loader:
        resample.prepare()
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
