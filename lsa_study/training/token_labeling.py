r"""VOLO's training objective: token labeling with MixToken.

.. math:: L = w_c \, CE(z, \lambda t + (1 - \lambda) t')
    + \frac{w_d}{NT} \sum_{n,i} CE(z_{n,i}, t_{n,i}), \qquad CE(z, t) = -\sum_k t_k \log p_k(z)

N images of T tokens; z and t are logits and soft targets of an image, or of its token i. t' are
the targets of the batch in reverse, whose tokens were pasted over a box of 1 - lambda of all
tokens. Sources: Jiang et al., "All Tokens Matter" (2021); Yuan et al., "VOLO" (2021), and its
released loss, of which the weights are those of ``train.tokens``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.volo import VOLO
from torch import Tensor
from torch.nn import functional as F

from lsa_study.config.settings import TokenLabels
from lsa_study.data import rng
from lsa_study.data.augment import soft


class Answers(NamedTuple):
    """What a network says of a batch in training."""

    images: Tensor
    """(N, K) logits."""
    tokens: Tensor
    """(N, T, K) logits; each token's own image is that of its row, wherever it was pasted."""
    box: tuple[int, int, int, int]
    """First row and column of the pasted tokens, and the ends of both."""


def prepare(model: VOLO, wanted: TokenLabels) -> None:
    """Have a network mix tokens in training as asked; evaluation stays as it is."""
    model.mix_token, model.beta = wanted.mix_token > 0, wanted.mix_token


def answer(model: VOLO, images: Tensor, *purpose: int | str) -> Answers:
    """Answer for images (N, 3, H, W) and tokens; ``purpose`` alone decides which box is mixed.

    The model is in training mode, and ``prepare`` was called on it.
    """
    # By its version, timm draws the box from numpy's or torch's global generator.
    with rng.seeded_global(*purpose):
        features, tokens, box = model.forward_train(images)
    # timm gives the class token's features where VOLO's own code gives their logits.
    return Answers(model.head(model.head_drop(features)), tokens, box)


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
    top, left, bottom, right = answers.box
    pasted = (bottom - top) * (right - left) / num_tokens
    mixed = torch.lerp(targets, targets.flip(0), pasted)
    of_images = F.cross_entropy(answers.images.float(), mixed)
    of_tokens = F.cross_entropy(answers.tokens.float().flatten(0, 1), tokens.flatten(0, 1))
    return wanted.class_weight * of_images + wanted.dense_weight * of_tokens
