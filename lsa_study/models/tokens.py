"""How alike the tokens are that leave a stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.models.volo import Volo


@torch.no_grad()
def mean_cosine(tokens: Tensor) -> float:
    r"""Mean cosine of the angle between two tokens of an image, over all pairs and images.

    .. math:: \frac{1}{N (N - 1)} \sum_{i \ne j} \frac{t_i \cdot t_j}{|t_i| \, |t_j|}

    Args:
        tokens: (B, N, C), N at least 2; computed in float64.
    """
    count = tokens.shape[1]
    unit = F.normalize(tokens.double(), dim=-1)
    both = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return float((both / (count * (count - 1))).mean())


@torch.no_grad()
def stem_tokens(network: nn.Module, images: Tensor) -> Tensor:
    """The tokens (B, N, C) of images behind the stem of a Swin, VOLO or DeiT."""
    tokens: Tensor = network.get_submodule("patch_embed")(images)
    if isinstance(network, Volo):  # (B, C, H, W)
        return tokens.flatten(2).transpose(1, 2)
    return tokens.flatten(1, -2)
