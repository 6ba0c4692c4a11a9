"""ImageNet: encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import Compose

from lsa_study.config.settings import Settings
from lsa_study.data import fast_pil, index, rng, shards, transforms
from lsa_study.data.index import Listing
from lsa_study.data.paths import DataLacks, Layout, imagenet
from lsa_study.data.sampler import EpochSampler, MicroBatch
from lsa_study.data.sets import CHANNELS, DatasetInfo, Datasets, Pixels
from lsa_study.data.token_labels import LabelMaps

MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

Key = tuple[tuple[int | str, ...], int]
Decoded = tuple[Tensor, ...]
"""Pixels (N, 3, size, size) and labels; where label maps are read, also maps and cuts."""


@lru_cache(maxsize=1)
def listings(layout: Layout) -> tuple[Listing, Listing]:
    """List the training and the test images, whatever their layout.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    if layout.kind == "folders":
        train = Listing.of(index.find_in_folders(layout.train[0], None), None)
        found = index.find_in_folders(layout.test[0], train.classes)
    else:
        train = Listing.of(shards.find_in_parquet(layout.root / "train", layout.train), None)
        found = shards.find_in_parquet(layout.root / "val", layout.test)
    return train, Listing.of(found, train)


@dataclass(frozen=True, eq=False)
class _Images(Dataset[Decoded]):
    """Images by (purpose of the draw, number): the draws of an image depend on nothing else."""

    listing: Listing
    transform: Compose
    size: int
    maps: LabelMaps | None = None

    def __getitems__(self, keys: Sequence[Key]) -> Decoded:
        """A whole batch, each image written to its place."""
        pixels = torch.empty(len(keys), CHANNELS, self.size, self.size, dtype=torch.uint8)
        placed: list[tuple[Tensor, Tensor]] = []
        with rng.seeded_global() as seed:
            for out, (purpose, index) in zip(pixels.numpy(), keys, strict=True):
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
                    crop, flip = self.transform.transforms[:2]
                    cut = torch.tensor([*crop.box, float(flip.flipped)])
                    placed.append((self.maps.read(name), cut))
        labels = torch.from_numpy(self.listing.labels[[index for _, index in keys]])
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
                train.store.root.parent / "token_labels", names, num_classes=len(train.classes),
                truth=tokens.labels == "maps_and_truth",
            )  # fmt: skip
            content = maps.content(names)
        source = DatasetInfo(
            len(train.labels[: data.train_limit]), len(test.labels[: data.test_limit]),
            num_classes=len(train.classes), fingerprint=index.fingerprint(train, test, content),
            mean=MEAN, std=STD,
        )  # fmt: skip
        super().__init__(source, settings, device)
        self.workers, size = settings.runtime.workers, data.image_size
        self._train = _Images(train, transforms.training(settings, MEAN), size, maps)
        self._test = _Images(test, transforms.testing(settings), size)
        self._resting: dict[_Images, tuple[DataLoader[Decoded], list[list[Key]]]] = {}

    def _train_pixels(
        self, epoch: EpochSampler
    ) -> Iterator[tuple[MicroBatch, Tensor, Tensor, Tensor | None]]:
        shares, maps = list(epoch.shares()), self._train.maps
        purpose = (self.seed, "picture", epoch.epoch)
        keys: list[list[Key]] = [
            [(purpose, index) for index in share.indices.tolist()] for share in shares
        ]
        for share, parts in zip(shares, self._decode(self._train, keys), strict=True):
            pixels, labels, *placed = parts
            tokens = None
            if maps is not None:
                labels, tokens = maps.targets(
                    labels, *placed, image_size=self.image_size,
                    smoothing=self.augment.label_smoothing,
                )  # fmt: skip
            yield share, pixels, labels, tokens

    def _test_pixels(self, rows: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        keys: list[list[Key]] = [[((), index) for index in n.tolist()] for n in rows]
        for numbers, (pixels, labels) in zip(rows, self._decode(self._test, keys), strict=True):
            yield numbers, pixels, labels

    def _decode(self, images: _Images, batches: list[list[Key]]) -> Iterator[Decoded]:
        # Workers stay from pass to pass and take the batches of the one at hand from a list; a
        # second pass while one is under way has its own.
        if images in self._resting:
            loader, waiting = self._resting.pop(images)
        else:
            fast_pil.routes()
            waiting = []
            loader = DataLoader(
                images, batch_sampler=waiting, num_workers=self.workers, collate_fn=_handed_over,
                pin_memory=self.device.type == "cuda", worker_init_fn=_quiet_worker,
                generator=torch.Generator(), persistent_workers=self.workers > 0,
            )  # fmt: skip
        waiting[:] = batches
        try:
            for parts in loader:
                yield tuple(part.to(self.device, non_blocking=True) for part in parts)
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own message stands last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None
        except (EOFError, OSError) as error:  # of what the processes share
            raise RuntimeError(f"shared memory: {error}") from error
        self._resting[images] = loader, waiting


def _handed_over(batch: Any) -> Any:
    # Torch moves it to shared memory in a thread of its own, where an error, as of a full /dev/shm,
    # is printed and the batch waited for in vain.
    if get_worker_info() is not None:
        for part in batch:
            part.share_memory_()
    return batch


def _quiet_worker(_: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_leave)  # type: ignore[attr-defined]
    # These reach every process of the terminal or the job; only the main one may act on them.
    # SIGTERM is left alone: it is how Python ends workers that it no longer needs.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _leave(error: BaseException, _: object) -> None:
    traceback.print_exception(error)
    os._exit(1)
