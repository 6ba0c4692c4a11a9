"""From an encoded picture to the pixels a network sees: crop, flip, augmentation."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from lsa_study.config.settings import Settings
from lsa_study.data import fast_pil
from lsa_study.data.pictorial import pictorial
from lsa_study.data.sets import Pixels

Change = Callable[[Image.Image], Image.Image]
Transform = Callable[[bytes], Image.Image]


def opened(content: bytes) -> Image.Image:
    """Read the head of a picture, nothing more."""
    return Image.open(io.BytesIO(content))


def whole(content: bytes) -> Image.Image:
    """Decode a picture, as RGB.

    Raises:
        OSError: it is damaged, or no picture at all.
    """
    with opened(content) as file:
        pixels = fast_pil.decode(file, content)
        return file.convert("RGB") if pixels is None else Image.fromarray(pixels)


class RandomResizedCrop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's: the same draws in the same order, and the same pixels, from an encoded picture."""

    def __call__(self, content: bytes) -> Image.Image:
        """Decode, cut and resize."""
        with opened(content) as file:
            pixels = fast_pil.decode(file, content)
            picture = file.convert("RGB") if pixels is None else file
            top, left, height, width = self.get_params(file, self.scale, self.ratio)
        filter_ = _FILTERS[random.choice(self.interpolation).value]
        if pixels is None:
            cut = picture.crop((left, top, left + width, top + height))
            return cut.resize(self.size, filter_)
        return fast_pil.resized_crop(pixels, (left, top, width, height), self.size, filter_)


_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def training(settings: Settings, mean: Pixels) -> Transform:
    """The crop, the flip and the augmentation that ``settings.augment`` asks for."""
    wanted, size = settings.augment, settings.data.image_size
    crop, flip = RandomResizedCrop, transforms.RandomHorizontalFlip
    if settings.reads()[1]:
        from lsa_study.data.token_labels import NotedCrop, NotedFlip

        crop, flip = NotedCrop, NotedFlip
    crops: list[Any]
    if wanted.crop == "random_resized":
        # The released code draws between bilinear and bicubic.
        crops = [
            crop(size, scale=wanted.crop_scale, ratio=wanted.crop_ratio, interpolation="random")
        ]
    else:
        scaled = math.floor(size / settings.evaluation.crop_share)
        crops = [whole, transforms.Resize(scaled, transforms.InterpolationMode.BICUBIC)]
        pad = wanted.crop == "pad"
        crops.append(
            transforms.RandomCrop(size, wanted.crop_pad) if pad else transforms.CenterCrop(size)
        )
    change = pictorial(wanted, size, mean)
    changes = [] if change is None else [change]
    chain: Transform = transforms.Compose([*crops, flip(wanted.hflip), *changes])
    return chain


def testing(settings: Settings) -> Transform:
    """The shorter side to floor(size / share), bicubic, then the centre: timm's evaluation."""
    size = settings.data.image_size
    scaled = math.floor(size / settings.evaluation.crop_share)
    chain: Transform = transforms.Compose(
        [
            whole,
            transforms.Resize(scaled, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    return chain


def planes(picture: Image.Image, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write an RGB picture into (3, H, W); faster than to transpose its pixels."""
    for plane, channel in zip(out, picture.mode, strict=True):
        plane[:] = np.frombuffer(picture.tobytes("raw", channel), np.uint8).reshape(plane.shape)
