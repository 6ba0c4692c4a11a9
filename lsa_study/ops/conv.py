"""A full convolution, the layer that dynamic filters stand in for."""

from __future__ import annotations

from torch import Tensor, nn

from lsa_study.ops.checks import check_maps, check_odd, check_positive


class Conv(nn.Conv2d):
    """One static K x K filter for every pair of channels, no bias, zero outside.

    Args:
        dim: C, channels in and out.
        kernel_size: K, odd.
        stride: pixels between two that are kept.

    Shape: (B, H, W, C) to (B, ceil(H/stride), ceil(W/stride), C).
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, stride: int = 1) -> None:
        check_odd(kernel_size)
        check_positive("stride", stride)
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H/stride), ceil(W/stride), C)."""
        check_maps(x, self.in_channels)
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
