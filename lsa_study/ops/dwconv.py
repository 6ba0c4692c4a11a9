"""Depthwise convolutions: a point of Eq. 4, and DWNet's layers, static or made from the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.ops.checks import check_heads, check_maps, check_odd
from lsa_study.ops.functional import static_filters
from lsa_study.ops.precision import rounded_once

REDUCTION = 4
"""Hidden channels of the filters' generator of DynamicDwConv: C / 4."""


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
        check_heads(dim, heads)
        check_odd(kernel_size)
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
        check_maps(x, self.dim)
        filters = self.weight.repeat_interleave(self.dim // self.num_heads, 0)
        mixed = static_filters(self.pre_proj(x), filters) + self.bias
        projected_back: Tensor = self.post_proj(mixed)
        return projected_back


class DepthwiseConv(nn.Conv2d):
    """One static K x K filter and bias per channel, zero outside; (B, H, W, C) to the same."""

    def __init__(self, dim: int, *, kernel_size: int = 7) -> None:
        check_odd(kernel_size)
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.in_channels)
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DynamicDwConv(nn.Module):
    r"""Depthwise convolution whose filters come from the image's mean: D-DwConv.

    .. math:: f'_{c,i} = \sum_j w_{c,j-i}(x) f_{c,j} + b_c, \quad
              w(x) = W_2 \, ReLU(BN(W_1 \, mean(x)))

    One filter per image and channel, not normalised; a static bias that starts at 0.
    Source: the dynamic depthwise convolution of "On the Connection between Local Attention and
    Dynamic Depth-wise Convolution", as it worked in 2021; later revisions of that code overwrite it
    by the static one.

    Args:
        dim: C, a multiple of 4.
        kernel_size: K, odd.

    In training the generator's batch norm sees one vector per image: a batch of one is refused by
    torch.
    """

    def __init__(self, dim: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        check_odd(kernel_size)
        if dim < REDUCTION:
            raise ValueError(f"dim={dim} is too small; give at least {REDUCTION} channels")
        self.dim, self.kernel_size = dim, kernel_size
        hidden = dim // REDUCTION
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, dim * kernel_size**2, 1)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        batch, dim = x.shape[0], x.shape[3]
        mean = x.mean((1, 2))[:, :, None, None]
        filters = self.conv2(F.relu(self.bn(self.conv1(mean))))
        if not batch:  # a convolution wants a group
            nothing: Tensor = x + filters.sum() + self.bias
            return nothing
        shape = batch * dim, 1, self.kernel_size, self.kernel_size
        return _one_filter_per_image(x, filters.reshape(shape), self.bias)


@rounded_once
def _one_filter_per_image(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    batch, height, width, dim = x.shape
    # One group for every channel of every image.
    maps = x.permute(0, 3, 1, 2).reshape(1, batch * dim, height, width)
    out = F.conv2d(maps, filters, padding=filters.shape[-1] // 2, groups=batch * dim)
    return out.view(batch, dim, height, width).permute(0, 2, 3, 1) + bias


class LinearShell(nn.Module):
    """A spatial layer between two linear maps, as attention stands; layer norm is the block's.

    Args:
        dim: C.
        conv: the spatial layer, (B, H, W, C) to the same.
    """

    def __init__(self, dim: int, conv: nn.Module) -> None:
        super().__init__()
        self.dim = dim
        self.pre_proj = nn.Linear(dim, dim)
        self.conv = conv
        self.post_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        projected_back: Tensor = self.post_proj(self.conv(self.pre_proj(x)))
        return projected_back


class DwNetShell(nn.Module):
    r"""DWNet's replacement of attention: 1 x 1 convolutions around a spatial layer, batch norms.

    .. math:: y = BN(W_2 \, ReLU(BN(conv(ReLU(BN(W_0 x))))))

    The block that holds it has no norm before it. Parameter names are those of the released code.

    Args:
        dim: C.
        conv: the spatial layer, (B, H, W, C) to the same.
    """

    def __init__(self, dim: int, conv: nn.Module) -> None:
        super().__init__()
        self.dim = dim
        self.conv0 = nn.Conv2d(dim, dim, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(dim)
        self.conv = conv
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        before = F.relu(self.bn0(self.conv0(x.permute(0, 3, 1, 2))))
        between = self.conv(before.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        after: Tensor = self.bn2(self.conv2(F.relu(self.bn(between))))
        return after.permute(0, 2, 3, 1)
