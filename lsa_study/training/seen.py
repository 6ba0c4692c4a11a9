"""Pictures of what a network finds in a few test images, with what stands in them above."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from lsa_study.by_image import BEST
from lsa_study.data.dense.targets import IGNORED, Target

SIDE = 192
"""Pixels of the longer side of a picture; shorter ones are filled with white."""
GOLDEN = 0.618034
"""Steps around the circle of hues in which classes that follow one another differ most."""
QUALITY = 88
"""Of the JPEG."""
LETTERS = 10
"""Pixels of the height of what is written beside a box."""
FEW = 20
"""Objects are named by the numbers of their classes where they are fewer."""


def strip(images: Sequence[Tensor], truths: Sequence[Target], answers: Sequence[Target]) -> bytes:
    """Two lines of pictures as one JPEG: above the truth, below the answers.

    Args:
        images: (3, H, W) uint8.
        truths, answers: of each ``boxes``, ``labels`` and ``masks``, or ``labels`` (H, W); answers
            with ``scores``, those of the best objects, as many as there are.
    """
    lines = [
        torch.cat([_framed(drawn(*one)) for one in zip(images, found, strict=True)], 2)
        for found in (truths, answers)
    ]
    pixels = torch.cat(lines, 1).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY, comment=BEST)
    return content.getvalue()


def drawn(image: Tensor, found: Target) -> Tensor:
    """An image with objects or labelled pixels in the colours of their classes, and scores."""
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
    for mask, colour in reversed(
        [*zip(masks, colours, strict=True)]
    ):  # together, overlaps go black
        image = draw_segmentation_masks(image, mask, 0.5, colour)
    boxes = found["boxes"].float() * by
    image = draw_bounding_boxes(image, boxes, colors=colours, width=1)
    said = [str(one - 1) * (len(classes) < FEW) for one in classes]
    if "scores" in found:
        scores = found["scores"].tolist()
        said = [
            f"{name}: {one:.2f}".removeprefix(": ") for name, one in zip(said, scores, strict=True)
        ]
    return _written(image, boxes, said, colours)


def _written(
    image: Tensor, boxes: Tensor, said: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Tensor:
    """The image with a text above each box, or below it where another's stands above."""
    picture = to_pil_image(image)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    taken: list[tuple[float, float, float, float]] = []
    for text, (left, top, _, bottom), colour in zip(said, boxes.tolist(), colours, strict=True):
        width, height = pen.textlength(text, font) + 2, LETTERS + 2
        x = max(0, min(left, picture.width - width))
        places = [
            (x, y, x + width, y + height)
            for at in (top - height, bottom + 1, top - 2 * height, bottom + 1 + height)
            for y in (max(0, min(at, picture.height - height)),)
        ]
        place = next((one for one in places if not any(_meet(one, of) for of in taken)), places[0])
        taken.append(place)
        pen.rectangle(place, colour)
        bright = sum(by * part for by, part in zip((0.3, 0.59, 0.11), colour, strict=True))
        ink = "black" if bright > 110 else "white"
        pen.text((place[0] + 1, place[1]), text, ink, font)
    return torch.as_tensor(pil_to_tensor(picture))


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


def _framed(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    return F.pad(image, [2, SIDE + 2 - width, 2, SIDE + 2 - height], value=255)


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
