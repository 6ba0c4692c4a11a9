"""Decoupled dynamic filters (DDF): one filter per pixel and head, one per image and channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import lsa_kernels
from lsa_study.ops import reference
from lsa_study.ops.checks import check_heads, check_maps, check_odd
from lsa_study.ops.precision import wide
from lsa_study.ops.reference import GAIN, filter_norm


def apply_decoupled(
    values: Tensor, spatial: Tensor, channel: Tensor, *, combine: Literal["mul", "add"],
    kernel_size: int, dilation: int = 1,
) -> Tensor:  # fmt: skip
    r"""Weigh every pixel's neighborhood by its combined spatial and channel filters.

    .. math:: out_{c,p} = \sum_t (D_{c,t} \circ S_{h(c),t,p}) \, values_{c,p+o_t}

    with the product or the sum for the circle. Zero outside the map. Their channel filter is D,
    their spatial filter S; taps run row by row.

    Args:
        values: (B, H, W, C).
        spatial: (B, H, W, heads, K*K); heads divides C.
        channel: (B, C, K*K).
        combine: mul or add.
        kernel_size: K, odd.
        dilation: pixels between two taps.

    Raises:
        ValueError: the shapes do not fit together.
    """
    batch, height, width, channels = values.shape
    taps, heads = kernel_size**2, spatial.shape[3]
    if tuple(spatial.shape) != (batch, height, width, heads, taps) or channels % heads:
        raise ValueError(
            f"spatial {tuple(spatial.shape)} does not fit values {tuple(values.shape)}: want "
            f"({batch}, {height}, {width}, heads, {taps}) with heads a divisor of {channels}"
        )
    if tuple(channel.shape) != (batch, channels, taps):
        raise ValueError(
            f"channel {tuple(channel.shape)} does not fit values {tuple(values.shape)}: want "
            f"({batch}, {channels}, {taps})"
        )
    mul, add = (channel, None) if combine == "mul" else (None, channel)
    if dilation == 1 and not lsa_kernels.why_not_filters(
        values, spatial, mul, add, size=kernel_size
    ):
        return lsa_kernels.apply_filters(values, spatial, mul=mul, add=add, size=kernel_size)
    return reference.apply_filters(values, spatial, mul, add, kernel_size, dilation)


class ChannelFilterNorm(nn.Module):
    """Filter norm of the channel filters: standardised over the taps, then scaled as learnt.

    ``std`` is one factor per channel and tap; it starts at N(0, 1) * gain / K, signs included.
    """

    def __init__(self, dim: int, *, kernel_size: int) -> None:
        super().__init__()
        self.dim, self.kernel_size = dim, kernel_size
        self.std = nn.Parameter(torch.empty(dim * kernel_size**2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random signs and sizes, as released."""
        nn.init.normal_(self.std, std=GAIN / self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C*K*K, 1, 1) to (B, C, K*K), in float32 at least."""
        filters = torch.unflatten(wide(x.flatten(1)), 1, (self.dim, -1))
        return filter_norm(filters, dim=-1, gain=1.0) * self.std.view(self.dim, -1)


class DDF(nn.Module):
    r"""Decoupled dynamic filter layer: makes both filters from its input and applies them.

    S is a 1 x 1 convolution, filter-normalised with gain sqrt(2)/K; D comes from the image's mean
    through a bottleneck and a learnt filter norm. No projections around it: ``DwNetShell`` adds
    those in the article's Swin-T row.

    Args:
        dim: C.
        num_heads: spatial filters per pixel, a divisor of C.
        kernel_size: K, odd.
        combine: mul (released default) or add.
        reduction: hidden channels of the bottleneck against C, rounded down.

    Source: Zhou et al., Decoupled Dynamic Filter Networks (2021), DDFPack.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 1, kernel_size: int = 7,
        combine: Literal["mul", "add"] = "mul", reduction: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        check_heads(dim, num_heads)
        check_odd(kernel_size)
        if combine not in ("mul", "add"):
            raise ValueError(f"combine={combine!r} is unknown; known: mul, add")
        hidden = int(reduction * dim)
        if hidden < 1:
            raise ValueError(f"reduction={reduction} leaves no hidden channel of dim={dim}")
        self.dim, self.num_heads, self.kernel_size = dim, num_heads, kernel_size
        self.combine = combine
        taps = kernel_size**2
        self.spatial_branch = nn.Sequential(nn.Conv2d(dim, num_heads * taps, 1))
        self.channel_branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, dim * taps, 1),
            ChannelFilterNorm(dim, kernel_size=kernel_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        maps = x.permute(0, 3, 1, 2)
        spatial = self.spatial_branch(maps).permute(0, 2, 3, 1)
        spatial = torch.unflatten(spatial, -1, (self.num_heads, -1))
        spatial = filter_norm(wide(spatial), dim=-1, gain=GAIN / self.kernel_size)
        return apply_decoupled(
            x, spatial, self.channel_branch(maps), combine=self.combine,
            kernel_size=self.kernel_size,
        )  # fmt: skip
