"""Sets small enough to hold as one uint8 tensor: the digits, CIFAR-10, those from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lsa_study.config.settings import Settings
from lsa_study.data import augment, cifar, digits, outside, rng
from lsa_study.data.paths import require
from lsa_study.data.sampler import EpochSampler
from lsa_study.data.sets import DatasetInfo, Datasets, Pixels, Shares, Tested, hold_out


@dataclass(frozen=True)
class InMemory:
    """A set that is held whole."""

    read: Callable[[tuple[Path, ...]], tuple[cifar.Tensors, str]]
    """From its files, as ``require`` finds them, to its tensors and their fingerprint."""
    num_classes: int
    mean: Pixels
    std: Pixels
    """Per channel, of pixels in 0..1."""


def _digits(paths: tuple[Path, ...]) -> tuple[cifar.Tensors, str]:
    tensors: cifar.Tensors = {}
    for split in ("train", "test"):
        pixels, labels = map(torch.from_numpy, digits.make(split))
        tensors |= {f"{split}.labels": labels, f"{split}.pixels": pixels}
    content = (tensor.numpy().data for tensor in tensors.values())
    return tensors, rng.fingerprint(digits.VERSION, *content)


SETS: dict[str, InMemory] = {
    "digits": InMemory(_digits, 10, (0.22, 0.22, 0.22), (0.24, 0.24, 0.24)),
    "cifar10": InMemory(
        cifar.read, cifar.CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
}
"""``data.name`` -> the set."""


@lru_cache(maxsize=1)
def _read(name: str, paths: tuple[Path, ...]) -> outside.ReadSet:
    # Kept, because one process may train many runs of the same set in turn.
    if name not in SETS:
        return outside.read(name, paths[0] if paths else None)
    known = SETS[name]
    return outside.ReadSet(*known.read(paths), known.num_classes, known.mean, known.std)


class TensorSets(Datasets):
    """A set in memory, on the device where its batches are wanted."""

    def __init__(self, settings: Settings, device: str) -> None:
        data, size = settings.data, settings.data.image_size
        known = _read(data.name, require(data))
        tensors = known.tensors
        train, labels = (tensors[f"train.{of}"][: data.train_limit] for of in ("pixels", "labels"))
        test, right = (tensors[f"test.{of}"][: data.test_limit] for of in ("pixels", "labels"))
        kept, held = hold_out(labels, data.validation, known.num_classes)
        source = DatasetInfo(
            len(kept),
            len(right),
            known.num_classes,
            known.fingerprint,
            known.mean,
            known.std,
            len(held),
        )
        super().__init__(source, settings, device)
        scaled = math.floor(size / settings.evaluation.crop_share)
        self._pictorial = augment.pictorial(settings.augment, size, source.mean)
        self._tests = [
            (_centre(_resize(pixels, scaled), size).to(self.device), answers.to(self.device))
            for pixels, answers in ((test, right), (train[held], labels[held]))
        ]
        if len(held):
            train, labels = train[kept], labels[kept]
        self._train_labels = labels.to(self.device)
        if settings.augment.crop == "random_resized":
            self._train = train.to(self.device)
            return
        margin = settings.augment.crop_pad if settings.augment.crop == "pad" else 0
        pixels = _resize(train, scaled)
        pixels = _centre(pixels, size) if settings.augment.crop == "none" else pixels
        self._train = F.pad(pixels, [margin] * 4).to(self.device)

    def _train_pixels(self, epoch: EpochSampler) -> Shares:
        for share in epoch.shares():
            chosen = share.indices.to(self.device)
            draw = rng.generator(self.seed, "crop", epoch.epoch, share.step)
            pixels = self._crop(chosen, share.positions, epoch.batch, draw)
            flips = torch.rand(epoch.batch, generator=draw) < self.augment.hflip
            if self.augment.hflip > 0:
                flip = flips[share.positions].to(self.device).view(-1, 1, 1, 1)
                pixels = torch.where(flip, pixels.flip(-1), pixels)
            if self._pictorial is not None:
                changed = []
                bytes_ = pixels.round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
                for picture, index in zip(bytes_, share.indices.tolist(), strict=True):
                    with rng.seeded_global(self.seed, "picture", epoch.epoch, index):
                        changed.append(np.asarray(self._pictorial(Image.fromarray(picture))))
                pixels = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(self.device)
            yield share, pixels, self._train_labels[chosen], None

    def _crop(self, chosen: Tensor, positions: Tensor, batch: int, draw: torch.Generator) -> Tensor:
        height, width = self._train.shape[2:]
        if self.augment.crop == "random_resized":
            box = augment.boxes(
                batch, height=height, width=width, area=self.augment.crop_scale,
                ratio=self.augment.crop_ratio, draw=draw,
            )[positions]  # fmt: skip
            return augment.crop_resized(self._train[chosen], box, self.image_size)
        size = self.image_size
        # A view of every crop at every place, of which the chosen ones are copied.
        windows = self._train.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
        top = torch.randint(height - size + 1, (batch,), generator=draw)[positions]
        left = torch.randint(width - size + 1, (batch,), generator=draw)[positions]
        crops: Tensor = windows[chosen, top.to(self.device), left.to(self.device)]
        return crops

    def _test_pixels(self, rows: tuple[Tensor, ...], held_out: bool) -> Tested:
        pixels, labels = self._tests[held_out]
        for numbers in rows:
            chosen = numbers.to(self.device)
            yield numbers, pixels[chosen], labels[chosen]


def _resize(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[2:] == (side, side):
        return pixels
    parts = [
        F.interpolate(part.to(torch.float32), (side, side), mode="bicubic", antialias=True)
        for part in torch.split(pixels, 1000)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def _centre(pixels: Tensor, size: int) -> Tensor:
    """The central size x size pixels; black where the pictures are smaller."""
    short = max(0, size - pixels.shape[2])
    pixels = F.pad(pixels, [short // 2, short - short // 2] * 2)
    start = (pixels.shape[2] - size) // 2
    return pixels[:, :, start : start + size, start : start + size].contiguous()
