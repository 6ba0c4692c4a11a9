"""Masks of objects: what a mask head should say, and its answers in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor, side: int) -> Tensor:
    """What of an object's mask lies in a box, as zeros and ones.

    Args:
        masks: (N, H, W) of the image's objects.
        boxes: (R, 4), x1 y1 x2 y2.
        owners: (R,), the object of each box.
        side: S.

    Returns:
        (R, S, S), 1 where at least half of a cell is the object's, as mmdet has it.
    """
    regions = torch.cat([owners[:, None].to(boxes), boxes], 1)
    cells = roi_align(masks[:, None].to(boxes), regions, (side, side), aligned=True)
    inside: Tensor = cells[:, 0] >= 0.5
    return inside.to(boxes)


def paste(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge masks to their boxes and lay each into an image of its own.

    Args:
        masks: (N, S, S), probabilities.
        boxes: (N, 4), x1 y1 x2 y2, inside the image.
        size: height and width of the image.

    Returns:
        (N, height, width), bool: where the probability, bilinear between the centers of cells and
        0 outside, is at least one half at the center of a pixel.
    """
    pasted = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    corners = zip(
        boxes[:, :2].floor().int().tolist(), boxes[:, 2:].ceil().int().tolist(), strict=True
    )
    for index, ((left, top), (right, bottom)) in enumerate(corners):
        x1, y1, x2, y2 = boxes[index]
        x = torch.arange(left, right, device=masks.device) + 0.5
        y = torch.arange(top, bottom, device=masks.device) + 0.5
        across, down = 2 * (x - x1) / (x2 - x1) - 1, 2 * (y - y1) / (y2 - y1) - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]
        seen = F.grid_sample(masks[index][None, None], grid.to(masks), align_corners=False)[0, 0]
        pasted[index, top:bottom, left:right] = seen >= 0.5
    return pasted
