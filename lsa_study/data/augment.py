"""Augmentation: of whole batches of small pictures, and picture by picture on Pillow's images.

Of a batch, draws are made for the whole effective batch of a step and then cut, so an image is
augmented identically however the step is divided among processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from lsa_study.config.protocol import Augment
from lsa_study.data import fast_pil, rng
from lsa_study.data.sampler import MicroBatch

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Pictorial = Callable[[Image.Image], Image.Image]

ATTEMPTS = 10
"""As torchvision and timm: a box that does not fit is drawn again so often."""

BENDING = ("Rotate", "Shear", "Translate")
"""Operations of RandAugment that are affine transforms."""


def boxes(
    count: int,
    *,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    draw: torch.Generator,
) -> Tensor:
    """Draw boxes inside a picture, as random-resized crops and erasing want them.

    Args:
        area: smallest and largest share of the picture.
        ratio: smallest and largest width / height, uniform in the logarithm.

    Returns:
        (count, 4) whole numbers: top, left, height, width. A box that fitted in none of the
        attempts has height 0.
    """
    share = area[0] + (area[1] - area[0]) * torch.rand(count, ATTEMPTS, generator=draw)
    low, high = map(math.log, ratio)
    aspect = (low + (high - low) * torch.rand(count, ATTEMPTS, generator=draw)).exp()
    pixels = share * height * width
    h, w = (pixels / aspect).sqrt().round().long(), (pixels * aspect).sqrt().round().long()
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    first = fits.long().argmax(dim=1, keepdim=True)
    h, w = (torch.where(fits, side, 0).gather(1, first).squeeze(1) for side in (h, w))
    place = torch.rand(2, count, generator=draw)
    top = (place[0] * (height - h + 1)).long()
    left = (place[1] * (width - w + 1)).long()
    return torch.stack([top, left, h, w], dim=1)


def crop_resized(pictures: Tensor, box: Tensor, size: int) -> Tensor:
    """Cut ``box`` (N, 4) out of pictures (N, C, H, W) and resize it to size x size, bilinear."""
    _, _, height, width = pictures.shape
    whole = torch.tensor([0, 0, height, width]).expand_as(box)
    box = torch.where(box[:, 2:3] > 0, box, whole).to(torch.float32)
    top, left, h, w = box.unbind(1)
    theta = torch.zeros(len(box), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = w / width, (2 * left + w) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * top + h) / height - 1
    shape = [len(box), pictures.shape[1], size, size]
    grid = F.affine_grid(theta.to(pictures.device), shape, align_corners=False)
    return F.grid_sample(
        pictures.to(torch.float32), grid, padding_mode="border", align_corners=False
    )


def erase(
    images: Tensor, share: MicroBatch, *, batch: int, augment: Augment, purpose: Sequence[int]
) -> None:
    """Random erasing in place on normalised images: one box of Gaussian noise in some images.

    The article's settings: 2 to 33 % of the area, sides 0.3 to 3.3, every pixel its own noise.
    """
    if augment.erasing == 0:
        return
    draw = rng.generator(*purpose, "erase")
    chosen = torch.rand(batch, generator=draw) < augment.erasing
    box = boxes(
        batch, height=images.shape[2], width=images.shape[3], area=(0.02, 1 / 3),
        ratio=(0.3, 1 / 0.3), draw=draw,
    )  # fmt: skip
    noise = torch.Generator(images.device)
    for row, position in enumerate(share.positions.tolist()):
        top, left, h, w = box[position].tolist()
        if chosen[position] and 0 < h < images.shape[2] and 0 < w < images.shape[3]:
            noise.manual_seed(rng.derive(*purpose, "erase", position))
            spot = images[row, :, top : top + h, left : left + w]
            spot.normal_(generator=noise)


def soft(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Class numbers (N,) as shares (N, classes), of which ``smoothing`` is spread over all."""
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mixer(augment: Augment, num_classes: int) -> Mixer | None:
    """Mixup and cutmix of a batch by timm, or None where neither is on."""
    if not augment.mixes:
        return None
    from lsa_study.data.mixing import WholeMixup

    mixup: Mixer = WholeMixup(
        mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mix_prob,
        switch_prob=augment.mix_switch, label_smoothing=augment.label_smoothing,
        num_classes=num_classes,
    )  # fmt: skip
    return mixup


def pictorial(
    augment: Augment,
    size: int,
    mean: tuple[float, ...],
    moves: list[fast_pil.Move] | None = None,
) -> Pictorial | None:
    """RandAugment, else color jitter, of one picture as timm has it; None where neither is on.

    Translations are a share of ``size``, the picture's side in pixels. What geometric operations
    uncover gets the colour ``mean``, in 0..1; each of them is added to ``moves``.
    """
    if augment.rand_augment is not None:
        from timm.data.auto_augment import rand_augment_transform

        grey = tuple(min(255, round(255 * value)) for value in mean)
        options: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": grey}
        randomly: Any = rand_augment_transform(augment.rand_augment, options)
        for op in randomly.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
            elif op.name.startswith(BENDING):
                op.aug_fn = partial(fast_pil.bent, op.aug_fn, moves)
        return randomly  # type: ignore[no-any-return]
    if augment.color_jitter > 0:
        from torchvision.transforms import ColorJitter

        jitter: Pictorial = ColorJitter(*[augment.color_jitter] * 3)
        return jitter
    return None


def _posterize(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    # timm asks for 0 bits at the strongest level, which Pillow refuses since version 13; before,
    # it gave black, and so it was in the article's runs.
    if bits <= 0:
        return Image.new(picture.mode, picture.size)
    return picture if bits >= 8 else ImageOps.posterize(picture, bits)
