"""Involution: filters from a bottleneck at every pixel, shared by the channels of a group."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.ops.checks import check_maps, check_odd
from lsa_study.ops.functional import apply_filters
from lsa_study.ops.precision import rounded_once

REDUCTION = 4


class Involution(nn.Module):
    r"""Apply to every pixel's neighborhood the filters that its own feature makes.

    .. math:: f'_i = \sum_j (W_2 \, ReLU(BN(W_1 f_i)))_{j-i} \, f_j

    Identity norm, no projections. It is Eq. 4 with the term q.r^k alone, but for the bottleneck in
    the generator and v = x.

    Args:
        dim: C.
        kernel_size: K, odd.
        group_channels: channels that share a filter; a divisor of C.
        stride: of the output; the generator then sees the mean of every stride x stride pixels.

    Shape: (B, H, W, C) to (B, H/stride, W/stride, C).

    Source: Li et al., Involution (2021), the plain torch module.
    """

    def __init__(
        self, dim: int, *, kernel_size: int = 7, group_channels: int = 16, stride: int = 1
    ) -> None:
        super().__init__()
        if group_channels < 1 or dim % group_channels:
            raise ValueError(f"group_channels={group_channels} does not divide dim={dim}")
        check_odd(kernel_size)
        if dim < REDUCTION or stride < 1:
            raise ValueError(f"dim={dim}, stride={stride}: give dim >= {REDUCTION}, stride >= 1")
        self.dim, self.kernel_size, self.stride = dim, kernel_size, stride
        self.groups = dim // group_channels
        self.reduce = nn.Conv2d(dim, dim // REDUCTION, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim // REDUCTION)
        self.span = nn.Conv2d(dim // REDUCTION, self.groups * kernel_size**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H/stride, W/stride, C)."""
        check_maps(x, self.dim)
        if x.shape[1] % self.stride or x.shape[2] % self.stride:
            raise ValueError(f"x {tuple(x.shape)}: stride {self.stride} must divide both sides")
        maps = x.permute(0, 3, 1, 2)
        seen = F.avg_pool2d(maps, self.stride) if self.stride > 1 else maps
        filters = self.span(F.relu(self.norm(self.reduce(seen)))).permute(0, 2, 3, 1)
        filters = torch.unflatten(filters, -1, (self.groups, -1))
        if self.stride == 1:
            return apply_filters(x, filters, kernel_size=self.kernel_size)
        return _every_few_pixels(x, filters, self.kernel_size, self.stride)


@rounded_once
def _every_few_pixels(x: Tensor, filters: Tensor, size: int, stride: int) -> Tensor:
    reach = size // 2
    padded = F.pad(x, (0, 0, reach, reach, reach, reach))
    patches = padded.unfold(1, size, stride).unfold(2, size, stride).flatten(-2)
    patches = patches[:, : filters.shape[1], : filters.shape[2]]
    grouped = torch.unflatten(patches, 3, (filters.shape[3], -1))
    return torch.einsum("byxgct,byxgt->byxgc", grouped, filters).flatten(-2)
