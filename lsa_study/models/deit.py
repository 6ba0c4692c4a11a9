"""DeiT, timm's vision transformer, behind any stem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from lsa_study.config.networks import Stem
from lsa_study.config.operators import AttentionOp
from lsa_study.models.stem import embed_layer


@dataclass(frozen=True)
class DeitSize:
    """Width, depth and heads; ``patch`` pixels per side of a token."""

    embed_dim: int
    heads: int
    depth: int = 12
    patch: int = 16


SIZES: dict[str, DeitSize] = {
    "deit_micro": DeitSize(24, 2, depth=2, patch=4),
    "deit_mini": DeitSize(64, 2, depth=4, patch=4),
    "deit_tiny": DeitSize(192, 3),
    "deit_small": DeitSize(384, 6),
    "deit_base": DeitSize(768, 12),
}
"""Touvron et al., 2021, Table 1, and two small ones for 28 x 28 images, of 7 x 7 tokens."""


class Deit(VisionTransformer):  # type: ignore[misc]  # timm ships no types
    """Vision transformer with a class token and learned positions.

    Args:
        op: attention of all tokens, which is timm's own here.
        stem: None: one convolution, as published.
        options: what timm's ``VisionTransformer`` takes, such as ``num_classes``; ``img_size`` is
            the side or sides of the image in pixels.
    """

    def __init__(
        self, size: DeitSize, op: AttentionOp, *, stem: Stem | None = None, **options: Any
    ) -> None:
        super().__init__(
            patch_size=size.patch,
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.heads,
            embed_layer=embed_layer(stem or Stem(kind="patchify")),
            **options,
        )
