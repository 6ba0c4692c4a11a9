"""ResNets whose 3 x 3 convolutions are layers of a study; all else is timm's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import to_2tuple
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from lsa_study.config.operators import Op
from lsa_study.models import operators


@dataclass(frozen=True)
class ResnetSize:
    """Blocks of each stage, and channels inside them; ``small``: a stem for small images."""

    layers: tuple[int, int, int, int]
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    small: int | None = None
    """Channels of a stem of 3 x 3 convolutions without pooling."""


SIZES: dict[str, ResnetSize] = {
    "resnet_micro": ResnetSize((1, 1, 1, 1), (10, 16, 24, 32), small=8),
    "resnet_micro_deep": ResnetSize((1, 1, 2, 1), (10, 16, 24, 32), small=8),
    "resnet_mini": ResnetSize((1, 2, 2, 1), (16, 32, 64, 96), small=16),
    "resnet_mini_deep": ResnetSize((1, 2, 4, 1), (16, 32, 64, 96), small=16),
    "resnet50": ResnetSize((3, 4, 6, 3)),
    "resnet101": ResnetSize((3, 4, 23, 3)),
    "resnet152": ResnetSize((3, 8, 36, 3)),
}
"""He et al., 2016, Table 1, and four small ones for 28 x 28 images, with maps of 14, 7, 4 and 2
pixels."""

HEAD_DIM = 64
"""Channels of a head where heads are asked for as ``1x``."""


class OperatorBottleneck(Bottleneck):  # type: ignore[misc]  # timm ships no types
    """timm's bottleneck, whose ``conv2`` maps (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to what the block's stride keeps."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.conv2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.bn3(self.conv3(self.act2(self.bn2(x))))
        if self.drop_path is not None:
            x = self.drop_path(x)
        out: Tensor = self.act3(x + shortcut)
        return out


class Resnet(ResNet):  # type: ignore[misc]  # timm ships no types
    """ResNet whose blocks hold the operator of a study, in the place of their 3 x 3 convolution.

    The first block of every stage but one has a stride, so the operator must be one that can.

    Args:
        img_size: side or sides of the image in pixels; other sizes pass as well.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        zero_init_last: whether the last batch norm of every block starts at 0, as released.
    """

    def __init__(
        self, size: ResnetSize, op: Op, *, img_size: int | tuple[int, int] = 224,
        num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg",
        drop_rate: float = 0.0, drop_path_rate: float = 0.0, zero_init_last: bool = True,
    ) -> None:  # fmt: skip
        stem = {"stem_type": "deep", "stem_width": size.small} if size.small else {}
        super().__init__(
            OperatorBottleneck, size.layers, channels=size.channels, num_classes=num_classes,
            in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate,
            drop_path_rate=drop_path_rate, zero_init_last=zero_init_last, **stem,
        )  # fmt: skip
        sides = tuple(-(-side // 4) for side in to_2tuple(img_size))
        if size.small:
            self.maxpool = nn.Identity()
            sides = tuple(-(-side // 2) for side in to_2tuple(img_size))
        for index in range(len(size.layers)):
            for number, block in enumerate(self.get_submodule(f"layer{index + 1}")):
                sides = tuple(-(-side // block.stride) for side in sides)
                place = operators.BlockContext(
                    dim=size.channels[index],
                    heads=max(1, size.channels[index] // HEAD_DIM),
                    map_size=(sides[0], sides[1]),
                    odd=number % 2 == 1,
                    last_stage=index == len(size.layers) - 1,
                    stride=block.stride,
                )
                block.conv2 = operators.build_operator(op, place)
        self.init_weights(zero_init_last=zero_init_last)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last stage's maps, channels innermost in memory."""
        # Convolutions keep the layout of what they get, and operators want pixels' channels side by
        # side. In float32 on a GPU cuDNN's convolutions are made for the other layout.
        if x.device.type != "cuda" or torch.is_autocast_enabled("cuda"):
            x = x.contiguous(memory_format=torch.channels_last)
        maps: Tensor = super().forward_features(x)
        return maps
