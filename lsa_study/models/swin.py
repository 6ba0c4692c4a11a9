"""Swin's macro-architecture around any spatial operator.

Stem, patch merging, head, drop-path schedule and initialisation are timm's own; only the blocks are
:class:`~lsa_study.models.blocks.SpatialBlock`, each around an operator built for its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import calculate_drop_path_rates
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from lsa_study.config.networks import OWN_STEMS, Stem
from lsa_study.config.operators import Op
from lsa_study.models import operators
from lsa_study.models.stem import embed_layer

POSITION_TABLES = ("rel_k", "rel_q", "rel_bias")
"""Names of the learned tables of relative positions in an operator."""


@dataclass(frozen=True)
class SwinSize:
    """Depths and widths of a Swin. Channels double at every stage; ``heads`` is Fig. 2's 1x."""

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch: int = 4
    """Pixels per side of a token of the first stage."""
    stem: Stem = OWN_STEMS["swin"]
    """What it has where none is asked for."""


SIZES: dict[str, SwinSize] = {
    "swin_micro": SwinSize(16, (2, 1), (2, 4), patch=2),
    "swin_mini": SwinSize(16, (2, 2, 2), (1, 2, 4), patch=1),
    "swin_mini_p2": SwinSize(32, (2, 2), (2, 4), patch=2),
    "swin_micro4": SwinSize(16, (1, 2, 2, 1), (2, 4, 8, 16)),
    "swin_micro4_deep": SwinSize(16, (1, 2, 4, 1), (2, 4, 8, 16)),
    "swin_micro4_wide": SwinSize(24, (1, 2, 2, 1), (3, 6, 12, 24)),
    "swin_mini_conv": SwinSize(32, (2, 2), (2, 4), patch=2, stem=OWN_STEMS["swin_mini_conv"]),
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
"""Liu et al., 2021, Table 7, four small ones for 28x28 images, and three for scenes of about 100.

The four keep what the study turns on: areas of 7x7 pixels, a stage that holds several windows
and whose odd blocks are shifted, and a last stage that is one window (maps 28, 14, 7 of
``swin_mini``; 14, 7 of the others). ``swin_mini_conv`` is ``swin_mini_p2`` behind convolutions.
Those of ``swin_micro4`` have the four stages that detectors read, with maps of 24, 12, 6 and 3
pixels on images of 96.
"""


class Swin(SwinTransformer):  # type: ignore[misc]  # timm ships no types
    """Swin Transformer whose blocks hold the operator of a study.

    What of the operator depends on the stage, see :mod:`lsa_study.models.operators`.

    Args:
        stem: None: that of its size; one convolution, where published.
        img_size: side or sides of the image in pixels.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        options: anything else timm's ``SwinTransformer`` takes, such as ``num_classes``.
    """

    def __init__(
        self,
        size: SwinSize,
        op: Op,
        *,
        stem: Stem | None = None,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.1,
        **options: Any,
    ) -> None:
        # timm builds everything but the blocks: with depth 0 its stages are empty.
        super().__init__(
            img_size=img_size,
            patch_size=size.patch,
            embed_dim=size.embed_dim,
            depths=(0,) * len(size.depths),
            num_heads=size.heads,
            weight_init="skip",
            embed_layer=embed_layer(stem or size.stem),
            **options,
        )
        rates = calculate_drop_path_rates(drop_path_rate, size.depths, stagewise=True)
        for index, stage in enumerate(self.layers):
            stage.depth, stage.blocks = size.depths[index], nn.Sequential()
            for block, rate in enumerate(rates[index]):
                place = operators.BlockContext(
                    dim=size.embed_dim * 2**index,
                    heads=size.heads[index],
                    map_size=tuple(stage.output_resolution),
                    odd=block % 2 == 1,
                    last_stage=index == len(size.depths) - 1,
                )
                stage.blocks.append(operators.build_block(op, place, drop_path=rate))
        self.weight_init_mode = ""
        self.init_weights(needs_reset=False)

    def no_weight_decay(self) -> set[str]:
        """Name the position tables, which Swin's code does not decay (ELSA's does)."""
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name.rpartition(".")[2] in POSITION_TABLES}

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        **areas: Any,
    ) -> None:
        """Take images of another size; the operators keep their areas.

        Raises:
            ValueError: another window is asked for; an operator's area is fixed when built.
        """
        if areas:
            raise ValueError(
                f"set_input_size: {', '.join(areas)} cannot change once built; build the model "
                "with window_size instead"
            )
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
