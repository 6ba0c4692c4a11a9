"""Augmentations that are done picture by picture, on Pillow's images: RandAugment, color jitter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps

from lsa_study.config.settings import Augment
from lsa_study.data import fast_pil

Pictorial = Callable[[Image.Image], Image.Image]

BENDING = ("Rotate", "Shear", "Translate")


def pictorial(wanted: Augment, size: int, mean: tuple[float, ...]) -> Pictorial | None:
    """RandAugment, else color jitter, as timm has it; None where neither is on.

    Args:
        size: side of the picture in pixels, of which translations are a share.
        mean: of the data set's pixels in 0..1; what geometric operations uncover gets this colour.
    """
    if wanted.rand_augment is not None:
        from timm.data.auto_augment import rand_augment_transform

        grey = tuple(min(255, round(255 * value)) for value in mean)
        options: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": grey}
        randomly: Any = rand_augment_transform(wanted.rand_augment, options)
        for op in randomly.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
            elif op.name.startswith(BENDING):
                op.aug_fn = fast_pil.Bending(op.aug_fn)
        return randomly  # type: ignore[no-any-return]
    if wanted.color_jitter > 0:
        from torchvision.transforms import ColorJitter

        jitter: Pictorial = ColorJitter(*[wanted.color_jitter] * 3)
        return jitter
    return None


def _posterize(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    # timm asks for 0 bits at the strongest level, which Pillow refuses since version 13; before,
    # it gave black, and so it was in the article's runs.
    if bits <= 0:
        return Image.new(picture.mode, picture.size)
    return picture if bits >= 8 else ImageOps.posterize(picture, bits)
