"""ImageNet: encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import Compose

from lsa_kernels import pictures
from lsa_study.config.settings import Settings
from lsa_study.data import fast_pil, index, rng, transforms
from lsa_study.data.index import Listing
from lsa_study.data.paths import DataLacks, imagenet
from lsa_study.data.sampler import EpochSampler
from lsa_study.data.sets import CHANNELS, DatasetInfo, Datasets, Pixels, Shares, Tested, hold_out
from lsa_study.data.shards import listings
from lsa_study.data.token_labels import LabelMaps, moved

MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

PARENT_POLL_SECONDS = 1.0
"""A worker looks so often whether its parent is still there."""

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
        self.workers, size = settings.runtime.workers, data.image_size
        past = transforms.Moved()
        self._train = _Images(train, transforms.training(settings, MEAN, past), size, past, maps)
        self._tests = [_Images(of, transforms.testing(settings), size) for of in (test, train)]
        self._resting: dict[_Images, tuple[DataLoader[Decoded], list[Any]]] = {}

    def _train_pixels(self, epoch: EpochSampler) -> Shares:
        shares, maps = list(epoch.shares()), self._train.maps
        purpose = (self.seed, "picture", epoch.epoch)
        wanted: list[Wanted] = [(purpose, self._kept[share.indices].tolist()) for share in shares]
        for share, parts in zip(shares, self._decode(self._train, wanted), strict=True):
            pixels, labels, *placed = parts
            tokens = None
            if maps is not None:
                labels, tokens = maps.targets(labels, *placed)
            yield share, pixels, labels, tokens

    def _test_pixels(self, rows: tuple[Tensor, ...], held_out: bool) -> Tested:
        places = [self._held[numbers] if held_out else numbers for numbers in rows]
        wanted: list[Wanted] = [((), numbers.tolist()) for numbers in places]
        decoded = self._decode(self._tests[held_out], wanted)
        for numbers, (pixels, labels) in zip(rows, decoded, strict=True):
            yield numbers, pixels, labels

    def _decode(self, images: _Images, batches: list[Any]) -> Iterator[Decoded]:
        # Workers stay from pass to pass and take the batches of the one at hand from a list; a
        # second pass while one is under way has its own.
        if images in self._resting:
            loader, waiting = self._resting.pop(images)
            waiting[:] = batches
        else:
            # Compiled and tried once, before processes are forked, for all of them.
            fast_pil.decodes()
            pictures.as_pillow()
            waiting = batches
            loader = DataLoader(
                images, batch_sampler=waiting, num_workers=self.workers, collate_fn=_shared,
                pin_memory=self.device.type == "cuda", generator=torch.Generator(),
                worker_init_fn=partial(_heed, os.getpid()), persistent_workers=self.workers > 0,
            )  # fmt: skip
        try:
            with _signals_blocked():  # the workers, if they are forked here, keep them blocked
                decoded = iter(loader)
            for parts in decoded:
                yield tuple(part.to(self.device, non_blocking=True) for part in parts)
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own message stands last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None
        except (EOFError, OSError) as error:  # of what the processes share
            raise RuntimeError(f"shared memory: {error}") from error
        self._resting[images] = loader, waiting


def _shared(batch: Any) -> Any:
    # Torch moves it to shared memory in a thread of its own, where an error, as of a full /dev/shm,
    # is printed and the batch waited for in vain.
    if get_worker_info() is not None:
        for part in batch:
            part.share_memory_()
    return batch


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    # These reach every process of the terminal or the job; only the main one may act on them. A
    # worker that ends at any moment may hold a lock that the main process then waits for in vain.
    reaching_all = (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    )  # fmt: skip
    before = signal.pthread_sigmask(signal.SIG_BLOCK, reaching_all)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(error: BaseException, _: object) -> None:
    traceback.print_exception(error)
    os._exit(1)


def _heed(parent: int, _: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_leave)  # type: ignore[attr-defined]
    if not hasattr(signal, "sigtimedwait"):  # macOS: SIGTERM ends the worker as it comes
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent has ended, or asks by SIGTERM as torch and Python do."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
