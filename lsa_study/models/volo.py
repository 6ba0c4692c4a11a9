"""VOLO's macro-architecture with any spatial operator in its first stage.

Everything but the blocks of the first stage, 28 x 28 pixels at an image size of 224, is timm's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import to_2tuple
from timm.models import checkpoint
from timm.models.volo import VOLO
from torch import Tensor, nn

from lsa_study.config.networks import Stem
from lsa_study.config.operators import Op
from lsa_study.models import operators
from lsa_study.models.stem import embed_layer


@dataclass(frozen=True)
class VoloSize:
    """Blocks of the first stage and of the three groups of transformers; widths of both maps."""

    layers: tuple[int, int, int, int]
    dims: tuple[int, int]
    heads: tuple[int, int]
    mlp_ratio: float = 3.0
    stem_dim: int = 64


SIZES: dict[str, VoloSize] = {
    "volo_d1": VoloSize((4, 4, 8, 2), (192, 384), (6, 12)),
    "volo_d2": VoloSize((6, 4, 10, 4), (256, 512), (8, 16)),
    "volo_d3": VoloSize((8, 8, 16, 4), (256, 512), (8, 16)),
    "volo_d4": VoloSize((8, 8, 16, 4), (384, 768), (12, 16)),
    "volo_d5": VoloSize((12, 12, 20, 4), (384, 768), (12, 16), mlp_ratio=4.0, stem_dim=128),
}
"""Yuan et al., 2021, Table 2."""

PATCH = 8
"""Pixels per side of a token of the first stage."""


class Volo(VOLO):  # type: ignore[misc]  # timm ships no types
    """Vision Outlooker whose first stage holds the operator of a study.

    As in VOLO's own builder, stochastic depth starts after the first stage, and projections to
    queries, keys and values have no bias. ``img_size`` is the side or sides of the image in pixels,
    multiples of 16; ``stem`` is None for VOLO's own; ``options`` is anything else timm's ``VOLO``
    takes, such as ``num_classes``.
    """

    def __init__(
        self, size: VoloSize, op: Op, *, stem: Stem | None = None,
        img_size: int | tuple[int, int] = 224, **options: Any,
    ) -> None:  # fmt: skip
        height, width = to_2tuple(img_size)
        first, later = size.dims
        heads, later_heads = size.heads
        super().__init__(
            layers=size.layers,
            img_size=img_size,
            embed_dims=(first, later, later, later),
            num_heads=(heads, later_heads, later_heads, later_heads),
            mlp_ratio=size.mlp_ratio,
            stem_hidden_dim=size.stem_dim,
            **options,
        )
        if stem is not None:
            self.patch_embed = embed_layer(stem)(
                img_size=img_size, patch_size=PATCH, in_chans=options.get("in_chans", 3),
                embed_dim=first, flatten=False,
            )  # fmt: skip
        places = (
            operators.BlockContext(
                dim=first,
                heads=heads,
                map_size=(height // PATCH, width // PATCH),
                odd=block % 2 == 1,
                last_stage=False,
                qkv_bias=False,
            )
            for block in range(size.layers[0])
        )
        self.network[0] = nn.Sequential(
            *(operators.build_block(op, place, mlp_ratio=size.mlp_ratio) for place in places)
        )
        self.network[0].apply(self._init_weights)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to tokens (B, N, C); timm's own takes no batch of 0."""
        for index, block in enumerate(self.network):
            if index == 2:
                x = self.pos_drop(x + self.pos_embed)
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x.flatten(1, 2)
