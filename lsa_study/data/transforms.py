"""From an encoded picture to the pixels a network sees: crop, flip, augmentation."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from lsa_study.config.settings import Settings
from lsa_study.data import fast_pil
from lsa_study.data.augment import pictorial
from lsa_study.data.sets import Pixels

CUBIC = transforms.InterpolationMode.BICUBIC


def whole(content: bytes) -> Image.Image:
    """Decode a picture, as RGB; see ``fast_pil.decode``."""
    return Image.fromarray(fast_pil.decode(content))


@dataclass
class Moved:
    """What the last picture went through before it was cut, for what lies on it: label maps."""

    flipped: bool = False
    moves: list[fast_pil.Move] = field(default_factory=list)
    """Of RandAugment, after the flip."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """What is left of it: left, top, right and bottom, as shares of the picture."""


class RandomResizedCrop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's: the same draws in the same order, and the same pixels."""

    def __init__(self, size: int, moved: Moved | None = None, **options: Any) -> None:
        # The released code draws between bilinear and bicubic.
        super().__init__(size, interpolation="random", **options)
        self.moved = moved or Moved()

    def __call__(self, picture: bytes | Image.Image) -> Image.Image:
        """Decode what is encoded, cut and resize."""
        pixels = fast_pil.decode(picture) if isinstance(picture, bytes) else np.asarray(picture)
        rows, columns, _ = pixels.shape
        # Of the picture, only its size counts.
        like = torch.empty(3, rows, columns, device="meta")
        top, left, height, width = self.get_params(like, self.scale, self.ratio)
        self.moved.box = left / columns, top / rows, (left + width) / columns, (top + height) / rows
        filter_ = Image.Resampling[random.choice(self.interpolation).name]
        return fast_pil.resized_crop(pixels, (left, top, width, height), self.size, filter_)


class RandomHorizontalFlip(transforms.RandomHorizontalFlip):  # type: ignore[misc]  # torchvision has no types
    """torchvision's random flip."""

    def __init__(self, moved: Moved, p: float) -> None:
        super().__init__(p)
        self.moved = moved

    def forward(self, img: Image.Image) -> Image.Image:
        """Flip or leave the image; what earlier pictures went through is forgotten."""
        image: Image.Image = super().forward(img)
        self.moved.flipped = image is not img
        self.moved.moves.clear()
        return image


def training(settings: Settings, mean: Pixels, moved: Moved | None = None) -> transforms.Compose:
    """The crop, the flip and the augmentation that ``settings.augment`` asks for.

    Where label maps are read, the whole picture is flipped and augmented before it is cut, as in
    the released code for token labels, and ``moved`` says what happened; elsewhere it is cut first.
    """
    wanted, size = settings.augment, settings.data.image_size
    moved = moved or Moved()
    change = pictorial(wanted, size, mean, moved.moves)
    bending = [RandomHorizontalFlip(moved, wanted.hflip), *([change] if change else [])]
    if wanted.crop == "random_resized":
        cut = RandomResizedCrop(size, moved, scale=wanted.crop_scale, ratio=wanted.crop_ratio)
        first = settings.train.tokens is not None and settings.train.tokens.labels != "plain"
        return transforms.Compose([whole, *bending, cut] if first else [cut, *bending])
    pad = wanted.crop == "pad"
    crop = transforms.RandomCrop(size, wanted.crop_pad) if pad else transforms.CenterCrop(size)
    return transforms.Compose([whole, transforms.Resize(_scaled(settings), CUBIC), crop, *bending])


def testing(settings: Settings) -> transforms.Compose:
    """The shorter side to floor(size / share), bicubic, then the centre: timm's evaluation.

    With ``evaluation.crop: none`` both sides to size, as Swin's code tests at 384.
    """
    size = settings.data.image_size
    if settings.evaluation.crop == "none":
        return transforms.Compose([whole, transforms.Resize((size, size), CUBIC)])
    centre = transforms.CenterCrop(size)
    return transforms.Compose([whole, transforms.Resize(_scaled(settings), CUBIC), centre])


def _scaled(settings: Settings) -> int:
    return math.floor(settings.data.image_size / settings.evaluation.crop_share)


def planes(picture: Image.Image, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write an RGB picture into (3, H, W); faster than to transpose its pixels."""
    for plane, channel in zip(out, picture.mode, strict=True):
        plane[:] = np.frombuffer(picture.tobytes("raw", channel), np.uint8).reshape(plane.shape)
