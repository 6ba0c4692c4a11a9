r"""VOLO's training objective: token labeling with MixToken.

.. math:: L = w_c \, CE(z, \lambda t + (1 - \lambda) t')
    + \frac{w_d}{NT} \sum_{n,i} CE(z_{n,i}, t_{n,i}), \qquad CE(z, t) = -\sum_k t_k \log p_k(z)

N images of T tokens; z and t are logits and soft targets of an image, or of its token i. t' are
the targets of a group of images in reverse, whose tokens were pasted over a box of 1 - lambda of
all tokens. Sources: Jiang et al., "All Tokens Matter" (2021); Yuan et al., "VOLO" (2021), and its
released loss, of which the weights are those of ``train.tokens``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.models.volo import VOLO
from torch import Tensor
from torch.nn import functional as F

from lsa_study.config.protocol import TokenLabels
from lsa_study.data import rng
from lsa_study.data.augment import soft

Box = tuple[int, int, int, int]
"""First row and column of pasted tokens, and the ends of both."""


class Answers(NamedTuple):
    """What a network says of a batch in training."""

    images: Tensor
    """(N, K) logits."""
    tokens: Tensor
    """(N, T, K) logits; each token's own image is that of its row, wherever it was pasted."""
    boxes: tuple[Box, ...]
    """Of each group of images."""
    group: int
    """Images of a group; the last may have fewer."""


def draw_box(rows: int, columns: int, beta: float, *purpose: int | str) -> Box:
    r"""Draw the box of a group, as released: the sides are \sqrt{1 - \lambda} of the map's.

    They are rounded down, and down again in halves to both sides of a token drawn evenly; what
    leaves the map is cut off. \lambda has a beta distribution with both parameters ``beta``.
    """
    draw = np.random.default_rng(rng.derive(*purpose))
    side = float(np.sqrt(1 - draw.beta(beta, beta)))
    halves = [int(rows * side) // 2, int(columns * side) // 2]
    middle = [int(draw.integers(rows)), int(draw.integers(columns))]
    (top, bottom), (left, right) = (
        (max(0, at - half), min(length, at + half))
        for at, half, length in zip(middle, halves, (rows, columns), strict=True)
    )
    return top, left, bottom, right


def answer(
    model: VOLO, images: Tensor, wanted: TokenLabels, *purpose: int | str, group: int, part: int = 0
) -> Answers:
    """Answer for images (N, 3, H, W) of a step's ``part``, and for their tokens.

    Every ``group`` images are mixed among themselves with a box of their own, which ``purpose`` and
    the group's number in the step decide alone. The model is in training mode.
    """
    scale = model.pooling_scale
    found = model.patch_embed(images).permute(0, 2, 3, 1)
    rows, columns = found.shape[1] // scale, found.shape[2] // scale
    groups = math.ceil(len(images) / group)
    boxes: tuple[Box, ...] = ((0, 0, 0, 0),) * groups
    if wanted.mix_token > 0:
        boxes = tuple(
            draw_box(rows, columns, wanted.mix_token, *purpose, number)
            for number in range(part * groups, (part + 1) * groups)
        )
    found = _pasted(found, boxes, group, scale)
    found = model.norm(model.forward_cls(model.forward_tokens(found)))
    tokens = model.aux_head(found[:, 1:]).unflatten(1, (rows, columns))
    tokens = _pasted(tokens, boxes, group).flatten(1, 2)
    return Answers(model.head(model.head_drop(found[:, 0])), tokens, boxes, group)


def _pasted(maps: Tensor, boxes: Sequence[Box], group: int, scale: int = 1) -> Tensor:
    """Paste maps (N, H, W, C) over each other, each group's box from the group in reverse."""
    mixed = []
    for one, box in zip(torch.split(maps, group), boxes, strict=True):
        top, left, bottom, right = (scale * edge for edge in box)
        copy = one.clone()
        copy[:, top:bottom, left:right] = one.flip(0)[:, top:bottom, left:right]
        mixed.append(copy)
    return torch.cat(mixed)


def loss(
    answers: Answers,
    targets: Tensor,
    tokens: Tensor | None,
    wanted: TokenLabels,
    *,
    smoothing: float,
) -> Tensor:
    """The objective, as a scalar in float32.

    Args:
        targets: (N,) class numbers, or (N, K) shares that are smoothed already.
        tokens: (N, T, K) shares, smoothed; None: each token gets its image's target.
        smoothing: of class numbers, the share that is spread over all classes.
    """
    num_classes, num_tokens = answers.images.shape[1], answers.tokens.shape[1]
    if targets.ndim == 1:
        targets = soft(targets, num_classes, smoothing)
    if tokens is None:
        tokens = targets[:, None].expand(-1, num_tokens, -1)
    parts = zip(torch.split(targets, answers.group), answers.boxes, strict=True)
    mixed = torch.cat(
        [
            torch.lerp(part, part.flip(0), (bottom - top) * (right - left) / num_tokens)
            for part, (top, left, bottom, right) in parts
        ]
    )
    of_images = F.cross_entropy(answers.images.float(), mixed)
    of_tokens = F.cross_entropy(answers.tokens.float().flatten(0, 1), tokens.flatten(0, 1))
    return wanted.class_weight * of_images + wanted.dense_weight * of_tokens
