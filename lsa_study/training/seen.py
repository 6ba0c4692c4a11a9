"""Pictures of what a network finds in a few test images, with what stands in them above."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from lsa_study.data.dense.targets import IGNORED, Target

SIDE = 144
"""Pixels of the longer side of a picture; shorter ones are filled with white."""
GOLDEN = 0.618034
"""Steps around the circle of hues in which classes that follow one another differ most."""
QUALITY = 88
"""Of the JPEG."""


def strip(images: Sequence[Tensor], truths: Sequence[Target], answers: Sequence[Target]) -> bytes:
    """Two lines of pictures as one JPEG: above the truth, below the answers.

    Args:
        images: (3, H, W) uint8.
        truths, answers: of each ``boxes``, ``labels`` and ``masks``, or ``labels`` (H, W).
    """
    lines = [
        torch.cat([_framed(drawn(*one)) for one in zip(images, found, strict=True)], 2)
        for found in (truths, answers)
    ]
    pixels = torch.cat(lines, 1).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def drawn(image: Tensor, found: Target) -> Tensor:
    """An image with objects or labelled pixels in the colours of their classes."""
    by = SIDE / max(image.shape[1:])
    size = [max(1, round(side * by)) for side in image.shape[1:]]
    image = F.interpolate(image[None].float(), size, mode="bilinear")[0].round().byte()
    if "boxes" not in found:
        labels = F.interpolate(found["labels"][None, None].float(), size)[0, 0].long()
        classes = [c for c in torch.unique(labels).tolist() if c not in (0, IGNORED)]
        if not classes:
            return image
        masks = torch.stack([labels == one for one in classes])
        colours = [_colour(one) for one in classes]
        return torch.as_tensor(draw_segmentation_masks(image, masks, 0.6, colours))
    if not len(found["boxes"]):
        return image
    masks = F.interpolate(found["masks"][None].float(), size)[0] > 0.5
    classes = found["labels"].tolist()
    colours = [_colour(one) for one in classes]
    image = draw_segmentation_masks(image, masks, 0.5, colours)
    names = [str(one - 1) for one in classes] if len(classes) < 20 else None
    boxes = found["boxes"].float() * by
    return torch.as_tensor(draw_bounding_boxes(image, boxes, names, colours, width=1))


def _framed(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    return F.pad(image, [2, SIDE + 2 - width, 2, SIDE + 2 - height], value=255)


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
