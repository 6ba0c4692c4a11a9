"""Depthwise convolution as a point of Eq. 4: static filters on every pixel's neighborhood."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lsa_study.ops import dispatch


class DwConv(nn.Module):
    r"""Static filters shared by the channels of a head, between two linear maps.

    .. math:: f'_i = \sum_{j} w_{j-i} v_j + b

    Eq. 1 of the article; Eq. 4 with the bias term alone, identity norm and the neighboring area.
    Their filter w is ``weight``, one per head, so that the head count can be set as for attention
    (Fig. 2); with one head per channel it is ``torch.nn.functional.conv2d(groups=C)``.

    Args:
        dim: C, channels in and out.
        num_heads: filters, a divisor of C; None means C. Channel c takes filter c // (C // heads).
        kernel_size: K, odd.

    Shape: (B, H, W, C) to (B, H, W, C), any H and W.

    Raises:
        ValueError: heads do not divide, or K is even.
    """

    def __init__(self, dim: int, *, num_heads: int | None = None, kernel_size: int = 7) -> None:
        super().__init__()
        heads = dim if num_heads is None else num_heads
        if heads < 1 or dim % heads:
            raise ValueError(f"num_heads={heads} does not divide dim={dim}; give a divisor")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that a pixel is central")
        self.dim, self.num_heads, self.kernel_size = dim, heads, kernel_size
        self.pre_proj = nn.Linear(dim, dim)
        self.weight = nn.Parameter(torch.empty(heads, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(dim))
        self.post_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Filters and bias as torch draws those of a depthwise convolution."""
        nn.init.kaiming_uniform_(self.weight.view(self.num_heads, 1, -1), a=math.sqrt(5))
        nn.init.uniform_(self.bias, -1 / self.kernel_size, 1 / self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if x.dim() != 4 or x.shape[-1] != self.dim:
            raise ValueError(f"x {tuple(x.shape)} must be (B, H, W, {self.dim})")
        filters = self.weight.repeat_interleave(self.dim // self.num_heads, 0)
        projected_back: Tensor = self.post_proj(
            dispatch.static(self.pre_proj(x), filters) + self.bias
        )
        return projected_back
