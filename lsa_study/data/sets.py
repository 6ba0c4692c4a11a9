"""A training and a test set, as the training loop sees them: batches on a device, ready to use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lsa_kernels import pictures
from lsa_study.config.parts import batch_norms
from lsa_study.config.protocol import Augment
from lsa_study.config.settings import Settings
from lsa_study.data import augment, rng
from lsa_study.data.sampler import EpochSampler, MicroBatch
from lsa_study.errors import ConfigError

Pixels = tuple[float, float, float]

Shares = Iterator[tuple[MicroBatch, Tensor, Tensor, Tensor | None]]
"""Parts of steps, on the device: pixels in 0..255 (N, 3, size, size), then as in ``Batch``."""
Tested = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Numbers of test images, on the CPU; on the device their pixels and labels."""

CHANNELS = 3
AnyBatch = TypeVar("AnyBatch")


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is, whatever is done to its images."""

    train_images: int
    """After ``data.train_limit``, without those of ``data.validation``."""
    test_images: int
    """After ``data.test_limit``."""
    num_classes: int
    fingerprint: str
    """Name and 16 hex digits of a hash of the content."""
    mean: Pixels
    std: Pixels
    """Per channel, of pixels in 0..1."""
    held_out: int = 0
    """Training images of ``data.validation``."""


@dataclass(frozen=True)
class Batch:
    """Some images of one step, normalised, with their targets."""

    step: int
    images: Tensor
    """(N, 3, H, W), float32."""
    targets: Tensor
    """(N,) class numbers, or (N, classes) shares where images were mixed or label maps are read."""
    tokens: Tensor | None = None
    """(N, tokens, classes) shares where label maps are read."""


class Datasets(ABC):
    """The images of one run."""

    def __init__(self, source: DatasetInfo, settings: Settings, device: str) -> None:
        self.source = source
        self.seed = settings.seed
        self.image_size = settings.data.image_size
        self.augment: Augment = settings.augment
        self.device = torch.device(device)
        normed = batch_norms(settings.model)
        self._together = settings.train.norm_batch if normed else None
        self.mixer = augment.mixer(settings.augment, source.num_classes)
        scale = 255 * torch.tensor([source.mean, source.std], device=self.device)
        self._mean, self._std = scale.view(2, CHANNELS, 1, 1).unbind(0)
        self._bytes: Tensor | None = None
        """What each value of a channel's byte is when it is normalised; (channels, 256)."""

    def epoch(
        self, epoch: int, batch_size: int, *, first_step: int = 0, parts: int = 1,
        mine: range = range(1),
    ) -> EpochSampler:  # fmt: skip
        """Plan one epoch of this set; see ``sampler.EpochSampler``."""
        return EpochSampler(
            self.source.train_images, batch_size, self.seed, epoch, first_step, parts, mine,
            paired=self.mixer is not None, together=self._together,
        )  # fmt: skip

    def train(self, epoch: EpochSampler) -> Iterator[Batch]:
        """Augmented training batches: for every step of ``epoch``, this process's parts in order.

        Raises:
            DataLacks: a file cannot be decoded.
        """
        for share, pixels, labels, tokens in self._train_pixels(epoch):
            purpose, mix_first = (self.seed, epoch.epoch, share.step), False
            if self.mixer is not None and (mix_first := self.augment.order == "mix_first"):
                # As timm's collate, which gives whole numbers to its loader.
                labels = self._mix(pixels, labels, share, purpose)
                if pixels.is_floating_point():
                    pixels.round_()
            images = self._normalise(pixels)
            augment.erase(images, share, batch=epoch.batch, augment=self.augment, purpose=purpose)
            if not mix_first:
                labels = self._mix(images, labels, share, purpose)
            yield Batch(share.step, images, labels, tokens)

    def test(
        self, batch_size: int, *, rank: int = 0, ranks: int = 1, held_out: bool = False
    ) -> Tested:
        """Every ``ranks``-th test image from the ``rank``-th on, once, in order; normalised.

        ``held_out``: the images of ``data.validation`` in their place.
        """
        images = self.source.held_out if held_out else self.source.test_images
        mine = torch.arange(rank, images, ranks)
        for rows, pixels, labels in self._test_pixels(torch.split(mine, batch_size), held_out):
            yield rows, self._normalise(pixels), labels

    def _mix(
        self, images: Tensor, labels: Tensor, share: MicroBatch, purpose: tuple[int, ...]
    ) -> Tensor:
        """Mix images in place where that is asked for; returns their targets."""
        if self.mixer is None:
            return labels
        targets = []
        for group, first, end in share.groups:
            with rng.seeded_global(*purpose, "mix", group):
                targets.append(self.mixer(images[first:end], labels[first:end])[1])
        return torch.cat(targets)

    def _normalise(self, pixels: Tensor) -> Tensor:
        if self._bytes is None or pixels.dtype != torch.uint8 or not pixels.is_contiguous():
            return pixels.to(torch.float32).sub_(self._mean).div_(self._std)
        images = torch.empty(pixels.shape)
        pictures.look_up(pixels.numpy(), self._bytes.numpy(), images.numpy())
        return images

    def _look_bytes_up(self) -> None:
        """Normalise by a table from here on, where there are kernels: the same in one pass."""
        if self.device.type == "cpu" and pictures.why_not_pictures() is None:
            every = torch.arange(256, dtype=torch.uint8).repeat(1, CHANNELS, 1, 1)
            self._bytes = self._normalise(every).view(CHANNELS, 256)

    @abstractmethod
    def _train_pixels(self, epoch: EpochSampler) -> Shares:
        """This process's parts of an epoch."""

    @abstractmethod
    def _test_pixels(self, rows: tuple[Tensor, ...], held_out: bool) -> Tested:
        """The test or held-out images ``rows``, pixels in 0..255."""


def beside(batches: Iterator[AnyBatch], device: torch.device) -> Iterator[AnyBatch]:
    """The same batches, which a GPU copies and prepares while it still computes what came before.

    Args:
        batches: made by operations on ``device``; on a CPU nothing changes.
    """
    streams = torch.get_device_module(device)
    computing, copying = streams.current_stream(device), streams.Stream()
    copying.wait_stream(computing)  # what a set keeps on the device may have just been put there
    while True:
        with streams.stream(copying):
            batch = next(batches, None)
        if batch is None:
            return
        computing.wait_stream(copying)
        for tensor in _tensors(vars(batch)):
            if tensor.is_cuda:
                tensor.record_stream(computing)  # its memory is not given away before the step ends
        yield batch


def _tensors(held: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dicts."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, list | dict):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _tensors(one)


def hold_out(labels: Tensor, images: int | None, classes: int) -> tuple[Tensor, Tensor]:
    """Split training images: the numbers of those that train, and of ``images`` others, in order.

    Of each class alike, but for one where ``images`` is no multiple of ``classes``; which ones,
    no seed of a run decides.

    Raises:
        ConfigError: a class has too few.
    """
    if images is None:
        return torch.arange(len(labels)), torch.arange(0)
    draw = rng.generator("validation")
    shares = torch.full((classes,), images // classes)
    shares[torch.randperm(classes, generator=draw)[: images % classes]] += 1
    counts = torch.bincount(labels, minlength=classes)
    if images < classes or bool((counts <= shares).any()):
        fewest = int(counts.min())
        fits = f"give {classes} to {classes * (fewest - 1)}" if fewest > 1 else "give null"
        raise ConfigError(
            f"data.validation={images}: of {classes} classes the smallest has {fewest} training "
            f"images, and each must have some on both sides; {fits}, or raise data.train_limit"
        )
    order = torch.randperm(len(labels), generator=draw)
    order = order[labels[order].argsort(stable=True)]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    held = place < shares[labels[order]]
    return order[~held].sort().values, order[held].sort().values
