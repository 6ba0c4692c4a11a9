"""The feature pyramid of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.ops import DDFUp


class Pyramid(nn.Module):
    """Maps of four stages become five of equal channels, each but the last enriched from above.

    Lin et al., Feature Pyramid Networks (2017): a 1 x 1 convolution for each stage, to which the
    level above is added, enlarged; then a 3 x 3 convolution. The fifth level is every second pixel
    of the fourth. Weights are drawn as mmdet draws them, Xavier uniform.

    Args:
        stages: channels of the stages' maps.
        channels: of every level.
        upsample: nearest, or ddf_up: decoupled dynamic filters, see :class:`~lsa_study.ops.DDFUp`.
    """

    def __init__(
        self, stages: Sequence[int], channels: int, upsample: Literal["nearest", "ddf_up"]
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(stage, channels, 1) for stage in stages)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in stages)
        for conv in (*self.lateral, *self.output):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        filtered = len(stages) - 1 if upsample == "ddf_up" else 0
        self.enlarge = nn.ModuleList(DDFUp(channels) for _ in range(filtered))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map four (B, C_i, H_i, W_i), the largest first, to five (B, channels, ...)."""
        levels = [conv(one) for conv, one in zip(self.lateral, maps, strict=True)]
        for index in reversed(range(len(levels) - 1)):
            levels[index] = levels[index] + self._enlarged(levels[index + 1], levels[index], index)
        found = [conv(level) for conv, level in zip(self.output, levels, strict=True)]
        return [*found, found[-1][:, :, ::2, ::2]]

    def _enlarged(self, level: Tensor, below: Tensor, index: int) -> Tensor:
        height, width = below.shape[2:]
        if not self.enlarge:
            return F.interpolate(level, size=(height, width), mode="nearest")
        twice: Tensor = self.enlarge[index](level.permute(0, 2, 3, 1))
        return twice.permute(0, 3, 1, 2)[:, :, :height, :width]
