"""From an encoded picture to the pixels a network sees: crop, flip, augmentation."""

from __future__ import annotations

import math
import random
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


class RandomResizedCrop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's: the same draws in the same order, and the same pixels, from an encoded picture.

    It remembers its last box, for what lies on the picture beside its pixels.
    """

    box = (0.0, 0.0, 1.0, 1.0)
    """As shares of the picture: left, top, right, bottom."""

    def __call__(self, content: bytes) -> Image.Image:
        """Decode, cut and resize."""
        pixels = fast_pil.decode(content)
        rows, columns, _ = pixels.shape
        # Of the picture, only its size counts.
        like = torch.empty(3, rows, columns, device="meta")
        top, left, height, width = self.get_params(like, self.scale, self.ratio)
        self.box = left / columns, top / rows, (left + width) / columns, (top + height) / rows
        filter_ = Image.Resampling[random.choice(self.interpolation).name]
        return fast_pil.resized_crop(pixels, (left, top, width, height), self.size, filter_)


class RandomHorizontalFlip(transforms.RandomHorizontalFlip):  # type: ignore[misc]  # torchvision has no types
    """torchvision's random flip; remembers whether it flipped its last image."""

    flipped = False

    def forward(self, img: Image.Image) -> Image.Image:
        """Flip or leave the image."""
        image: Image.Image = super().forward(img)
        self.flipped = image is not img
        return image


def training(settings: Settings, mean: Pixels) -> transforms.Compose:
    """The crop, the flip and the augmentation that ``settings.augment`` asks for.

    Where crops are resized, the first two steps are a RandomResizedCrop and a RandomHorizontalFlip.
    """
    wanted, size = settings.augment, settings.data.image_size
    steps: list[Any]
    if wanted.crop == "random_resized":
        # The released code draws between bilinear and bicubic.
        steps = [
            RandomResizedCrop(
                size, scale=wanted.crop_scale, ratio=wanted.crop_ratio, interpolation="random"
            )
        ]
    else:
        pad = wanted.crop == "pad"
        crop = transforms.RandomCrop(size, wanted.crop_pad) if pad else transforms.CenterCrop(size)
        steps = [whole, transforms.Resize(_scaled(settings), CUBIC), crop]
    steps.append(RandomHorizontalFlip(wanted.hflip))
    change = pictorial(wanted, size, mean)
    return transforms.Compose(steps if change is None else [*steps, change])


def testing(settings: Settings) -> transforms.Compose:
    """The shorter side to floor(size / share), bicubic, then the centre: timm's evaluation."""
    centre = transforms.CenterCrop(settings.data.image_size)
    return transforms.Compose([whole, transforms.Resize(_scaled(settings), CUBIC), centre])


def _scaled(settings: Settings) -> int:
    return math.floor(settings.data.image_size / settings.evaluation.crop_share)


def planes(picture: Image.Image, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write an RGB picture into (3, H, W); faster than to transpose its pixels."""
    for plane, channel in zip(out, picture.mode, strict=True):
        plane[:] = np.frombuffer(picture.tobytes("raw", channel), np.uint8).reshape(plane.shape)
