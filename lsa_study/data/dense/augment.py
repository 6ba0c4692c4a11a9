"""Augmentation of images with boxes, masks and label maps, as the released code trains by it.

Draws come from one generator for an image, so it is augmented alike in whatever batch it stands.
Images are resized bilinearly and masks to the nearest pixel, as OpenCV does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import adjust_hue

from lsa_study.data.dense.targets import IGNORED, Item

Size = tuple[int, int]
"""Height and width."""

ATTEMPTS = 10
"""A crop that one class fills is drawn again so often."""


def fitted(size: Size, short: float, long: float) -> Size:
    """The largest size of these proportions within ``short`` and ``long`` sides."""
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def scaled(image: Tensor, size: Size) -> Tensor:
    """An image (3, H, W) uint8 of another size."""
    if image.shape[1:] == size:
        return image
    resized = F.interpolate(image[None].to(torch.float32), size, mode="bilinear")
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def resized(item: Item, size: Size) -> Item:
    """The image and all that stands in it, of another size."""
    image, target = item
    before, target = image.shape[1:], dict(target)
    key = "masks" if "masks" in target else "labels"
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, before, strict=True))
    target[key] = target[key][..., rows, :][..., columns]
    if "boxes" in target:
        down, across = (new / old for new, old in zip(size, before, strict=True))
        target["boxes"] = target["boxes"] * torch.tensor([across, down, across, down])
    return scaled(image, size), target


def flipped(item: Item) -> Item:
    """The mirror image, left for right."""
    image, target = item[0].flip(-1), dict(item[1])
    key = "masks" if "masks" in target else "labels"
    target[key] = target[key].flip(-1)
    if "boxes" in target:
        left, top, right, bottom = target["boxes"].unbind(1)
        width = image.shape[2]
        target["boxes"] = torch.stack([width - right, top, width - left, bottom], 1)
    return image, target


def cropped(item: Item, top: int, left: int, size: Size) -> Item:
    """A part of the image; objects whose boxes lie outside are dropped, other boxes clipped."""
    image, target = item[0], dict(item[1])
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    key = "masks" if "masks" in target else "labels"
    target[key] = target[key][..., rows, columns]
    if "boxes" in target:
        height, width = target["masks"].shape[1:]
        limits = torch.tensor([width, height, width, height])
        moved = target["boxes"] - torch.tensor([left, top, left, top])
        boxes = torch.minimum(moved.clamp(min=0), limits)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        for name in ("labels", "masks", "crowd"):
            target[name] = target[name][inside]
        target["boxes"] = boxes[inside]
    return image[:, rows, columns], target


def with_area(item: Item) -> Item:
    """The same without objects whose boxes rounding left without area."""
    image, target = item[0], dict(item[1])
    kept = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(1)
    for name in ("boxes", "labels", "masks", "crowd"):
        target[name] = target[name][kept]
    return image, target


def distorted(image: Tensor, draw: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of an image (3, H, W) uint8, each changed or not.

    As mmsegmentation's photometric distortion, but that hues are not rounded to two degrees.
    """
    contrast_first = _coin(draw)
    if _coin(draw):
        image = _linear(image, offset=_between(-32, 32, draw))
    if contrast_first and _coin(draw):
        image = _linear(image, factor=_between(0.5, 1.5, draw))
    if _coin(draw):
        # Of a colour's saturation (most - least) / most, and never beyond 1.
        factor = _between(0.5, 1.5, draw)
        pixels = image.to(torch.float32)
        most, least = pixels.amax(0), pixels.amin(0)
        factors = torch.clamp(most / (most - least).clamp(min=1), max=factor)
        image = (most - (most - pixels) * factors).round().clamp(0, 255).to(torch.uint8)
    if _coin(draw):
        image = adjust_hue(image, _whole(-18, 17, draw) / 180)
    if not contrast_first and _coin(draw):
        image = _linear(image, factor=_between(0.5, 1.5, draw))
    return image


def _linear(image: Tensor, factor: float = 1.0, offset: float = 0.0) -> Tensor:
    # Cut off, not rounded, as released.
    return (image.to(torch.float32) * factor + offset).clamp(0, 255).to(torch.uint8)


def _between(low: float, high: float, draw: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def _whole(first: int, last: int, draw: Generator) -> int:
    return int(torch.randint(first, last + 1, (), generator=draw))


def _coin(draw: Generator, share: float = 0.5) -> bool:
    return float(torch.rand((), generator=draw)) < share


@dataclass(frozen=True)
class DetectRecipe:
    """How images are augmented and tested where objects are detected; the article's by default."""

    shorts: tuple[int, ...] = tuple(range(480, 801, 32))
    """Shorter sides, in pixels, of which one is drawn."""
    long: int = 1333
    """No side is longer."""
    crop_share: float = 0.5
    """Of the images: they are first resized and cropped."""
    crop_shorts: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    """Smallest and largest side of a crop."""
    hflip: float = 0.5
    test_short: int = 800

    def train(self, item: Item, draw: Generator) -> Item:
        """Flip, crop and resize an image and its objects."""
        if _coin(draw, self.hflip):
            item = flipped(item)
        if _coin(draw, self.crop_share):
            item = self._resized(item, self.crop_shorts, draw)
            size = item[0].shape[1:]
            least, most = self.crop
            height, width = (_whole(min(side, least), min(side, most), draw) for side in size)
            top, left = _whole(0, size[0] - height, draw), _whole(0, size[1] - width, draw)
            item = cropped(item, top, left, (height, width))
        return with_area(self._resized(item, self.shorts, draw))

    def views(self, size: Size) -> list[tuple[Size, bool]]:
        """The sizes in which an image of this one is tested, and whether flipped."""
        return [(fitted(size, self.test_short, self.long), False)]

    def _resized(self, item: Item, shorts: tuple[int, ...], draw: Generator) -> Item:
        short = shorts[_whole(0, len(shorts) - 1, draw)]
        height, width = item[0].shape[1:]
        return resized(item, fitted((height, width), short, self.long))


@dataclass(frozen=True)
class SegmentRecipe:
    """How images are augmented and tested where pixels are labelled; the article's by default."""

    short: int = 512
    long: int = 2048
    """Sides that an image fits into, at scale 1."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest in training."""
    crop: int = 512
    """Side of a training image; what a smaller one lacks is padded."""
    cat_max_ratio: float = 0.75
    """Most that one class may fill of a crop's labelled pixels."""
    hflip: float = 0.5
    distort: bool = True
    """Change colours; see ``distorted``."""
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    """Test every scale flipped as well."""

    def train(self, item: Item, draw: Generator) -> Item:
        """Resize, crop, flip and recolour an image, its labels with it."""
        height, width = item[0].shape[1:]
        item = resized(item, self._fitted((height, width), _between(*self.scales, draw)))
        item = self._cropped(item, draw)
        if _coin(draw, self.hflip):
            item = flipped(item)
        return (distorted(item[0], draw), item[1]) if self.distort else item

    def views(self, size: Size) -> list[tuple[Size, bool]]:
        """The sizes in which an image of this one is tested, and whether flipped."""
        flips = (False, True) if self.test_flip else (False,)
        return [(self._fitted(size, scale), flip) for scale in self.test_scales for flip in flips]

    def _fitted(self, size: Size, scale: float) -> Size:
        return fitted(size, int(self.short * scale), int(self.long * scale))

    def _cropped(self, item: Item, draw: Generator) -> Item:
        height, width = (min(self.crop, side) for side in item[0].shape[1:])
        # The last one is taken whatever fills it.
        for _ in range(1 + ATTEMPTS):
            top, left = (
                _whole(0, side - self.crop if side > self.crop else 0, draw)
                for side in item[0].shape[1:]
            )
            found = cropped(item, top, left, (height, width))
            counts = torch.bincount(found[1]["labels"].flatten(), minlength=IGNORED + 1)[:IGNORED]
            if (counts > 0).sum() > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
        return found
