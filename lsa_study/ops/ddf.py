"""Decoupled dynamic filters (DDF): one filter per pixel and head, one per image and channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lsa_kernels
from lsa_study.ops import reference
from lsa_study.ops.checks import check_heads, check_known, check_maps, check_odd, check_positive
from lsa_study.ops.precision import rounded_once, wide
from lsa_study.ops.reference import GAIN, filter_norm

Combine = Literal["mul", "add"]
Branches = Literal["both", "spatial", "channel"]
FilterNorm = Literal["filter", "batch", "sigmoid"]


def apply_decoupled(
    values: Tensor, spatial: Tensor | None, channel: Tensor | None, *, combine: Combine = "mul",
    kernel_size: int, stride: int = 1, dilation: int = 1,
) -> Tensor:  # fmt: skip
    r"""Weigh every pixel's neighborhood by its combined spatial and channel filters.

    .. math:: out_{c,p} = \sum_t (D_{c,t} \circ S_{h(c),t,p}) \, values_{c,s p+o_t}

    with the product or the sum for the circle. Zero outside the map. Their channel filter is D,
    their spatial filter S; taps run row by row. A stride s keeps every s-th pixel of each side, the
    first included, and computes these alone.

    Args:
        values: (B, H, W, C).
        spatial: (B, ceil(H/s), ceil(W/s), heads, K*K); heads divides C. None: D alone.
        channel: (B, C, K*K). None: S alone.
        combine: mul or add.
        kernel_size: K, odd.
        stride: pixels between two that are kept.
        dilation: pixels between two taps.

    Raises:
        ValueError: the shapes do not fit together, or there is no filter.
    """
    _check_filters(values, spatial, channel, kernel_size, stride)
    if spatial is None:
        assert channel is not None  # as checked
        return _channel_alone(values, channel, kernel_size, stride, dilation)
    if stride == dilation == 1:
        return _whole(values, spatial, channel, combine, kernel_size)
    if stride == 1 and min(values.shape) > 0:
        return _by_phases(values, spatial, channel, combine, kernel_size, dilation)
    mul, add = (channel, None) if combine == "mul" else (None, channel)
    if not lsa_kernels.why_not_strided(values, spatial, mul, add):
        return lsa_kernels.apply_strided(
            values, spatial, mul=mul, add=add, size=kernel_size, stride=stride, dilation=dilation
        )
    return reference.apply_filters(values, spatial, mul, add, kernel_size, dilation, stride)


def _check_filters(
    values: Tensor, spatial: Tensor | None, channel: Tensor | None, size: int, stride: int
) -> None:
    batch, height, width, channels = values.shape
    taps, kept = size**2, (-(-height // stride), -(-width // stride))
    if spatial is None and channel is None:
        raise ValueError("neither spatial nor channel filters; give one of them, or both")
    if spatial is not None and (
        tuple(spatial.shape) != (batch, *kept, spatial.shape[3], taps)
        or channels % spatial.shape[3]
    ):
        raise ValueError(
            f"spatial {tuple(spatial.shape)} does not fit values {tuple(values.shape)}: want "
            f"({batch}, {kept[0]}, {kept[1]}, heads, {taps}) with heads a divisor of {channels}"
        )
    if channel is not None and tuple(channel.shape) != (batch, channels, taps):
        raise ValueError(
            f"channel {tuple(channel.shape)} does not fit values {tuple(values.shape)}: want "
            f"({batch}, {channels}, {taps})"
        )


def _whole(
    values: Tensor, spatial: Tensor, channel: Tensor | None, combine: Combine, size: int
) -> Tensor:
    """Every pixel, side by side taps: what the fused kernel computes."""
    mul, add = (channel, None) if combine == "mul" else (None, channel)
    if lsa_kernels.why_not_filters(values, spatial, mul, add, size=size):
        return reference.apply_filters(values, spatial, mul, add, size)
    return lsa_kernels.apply_filters(values, spatial, mul=mul, add=add, size=size)


def _by_phases(
    values: Tensor, spatial: Tensor, channel: Tensor | None, combine: Combine, size: int,
    dilation: int,
) -> Tensor:  # fmt: skip
    """Every dilation-th row and column are a map of their own, whose taps lie side by side."""
    height, width = values.shape[1:3]
    maps = [_phases(one, dilation) for one in (values, spatial)]
    if channel is not None:
        channel = channel.repeat_interleave(dilation**2, 0)
    out = _whole(maps[0], maps[1], channel, combine, size)
    return _from_phases(out, dilation)[:, :height, :width]


def _phases(maps: Tensor, step: int) -> Tensor:
    """(B, H, W, ...) to (B * step**2, H', W', ...), padded with zeros to multiples of ``step``."""
    batch, height, width = maps.shape[:3]
    bottom, right = -height % step, -width % step
    padded = F.pad(maps.flatten(3), (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // step, (width + right) // step
    apart = padded.reshape(batch, rows, step, columns, step, -1).permute(0, 2, 4, 1, 3, 5)
    return apart.reshape(batch * step**2, rows, columns, *maps.shape[3:])


def _from_phases(maps: Tensor, step: int) -> Tensor:
    _, rows, columns, channels = maps.shape
    apart = maps.reshape(-1, step, step, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    return apart.reshape(-1, rows * step, columns * step, channels)


@rounded_once
def _channel_alone(
    values: Tensor, channel: Tensor, size: int, stride: int, dilation: int
) -> Tensor:
    """One filter for all pixels of a channel of an image."""
    batch, _, _, channels = values.shape
    maps = values.permute(0, 3, 1, 2)
    if not batch:  # a convolution wants a group
        return values[:, ::stride, ::stride] + channel.sum()
    filters = channel.reshape(batch * channels, 1, size, size).to(values.dtype)
    out = F.conv2d(
        maps.reshape(1, batch * channels, *maps.shape[2:]), filters, stride=stride,
        dilation=dilation, padding=dilation * (size // 2), groups=batch * channels,
    )  # fmt: skip
    return out.view(batch, channels, *out.shape[2:]).permute(0, 2, 3, 1)


class ChannelFilterNorm(nn.Module):
    """Filter norm of the channel filters: standardised over the taps, then scaled as learnt.

    ``std`` is one factor per channel and tap; it starts at N(0, 1) * gain / K, signs included.
    """

    def __init__(self, dim: int, *, kernel_size: int, gain: float = GAIN) -> None:
        super().__init__()
        self.dim, self.kernel_size, self.gain = dim, kernel_size, gain
        self.std = nn.Parameter(torch.empty(dim * kernel_size**2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random signs and sizes, as released."""
        nn.init.normal_(self.std, std=self.gain / self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C*K*K, 1, 1) to (B, C, K*K), in float32 at least."""
        filters = torch.unflatten(wide(x.flatten(1)), 1, (self.dim, -1))
        return filter_norm(filters, dim=-1, gain=1.0) * self.std.view(self.dim, -1)


def channel_branch(
    dim: int, *, kernel_size: int, reduction: float, norm: FilterNorm, gain: float = GAIN
) -> nn.Sequential:
    """What makes one filter per image and channel, (B, C, H, W) to (B, C, K*K).

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """
    hidden, taps = int(reduction * dim), kernel_size**2
    if hidden < 1:
        raise ValueError(
            f"reduction={reduction} leaves no hidden channel of dim={dim}; give at least 1/{dim}"
        )
    norms: dict[FilterNorm, list[nn.Module]] = {
        "filter": [ChannelFilterNorm(dim, kernel_size=kernel_size, gain=gain)],
        "batch": [nn.BatchNorm2d(dim * taps), nn.Flatten(), nn.Unflatten(1, (dim, taps))],
        "sigmoid": [nn.Sigmoid(), nn.Flatten(), nn.Unflatten(1, (dim, taps))],
    }
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(dim, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, dim * taps, 1),
        *norms[norm],
    )


def spatial_filters(made: Tensor, num_heads: int, *, gain: float | None) -> Tensor:
    """Filters of pixels (B, h*K*K, H, W) to (B, H, W, h, K*K), with a gain filter-normalised."""
    filters = torch.unflatten(made.permute(0, 2, 3, 1), -1, (num_heads, -1))
    return filters if gain is None else filter_norm(wide(filters), dim=-1, gain=gain)


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
        stride: pixels between two that are kept; S is made at these alone, D from the whole map.
        dilation: pixels between two taps.
        branches: both, or the spatial or the channel filters alone (Zhou et al., Table 3).
        norm: filter; or batch, a batch norm of both filters; or sigmoid of both.

    Shape: (B, H, W, C) to (B, ceil(H/stride), ceil(W/stride), C).

    Source: Zhou et al., Decoupled Dynamic Filter Networks (2021), DDFPack.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 1, kernel_size: int = 7, combine: Combine = "mul",
        reduction: float = 0.2, stride: int = 1, dilation: int = 1, branches: Branches = "both",
        norm: FilterNorm = "filter",
    ) -> None:  # fmt: skip
        super().__init__()
        check_heads(dim, num_heads)
        check_odd(kernel_size)
        check_known("combine", combine, Combine)
        check_known("branches", branches, Branches)
        check_known("norm", norm, FilterNorm)
        check_positive("stride", stride)
        check_positive("dilation", dilation)
        self.dim, self.num_heads, self.kernel_size = dim, num_heads, kernel_size
        self.combine, self.stride, self.dilation = combine, stride, dilation
        self.branches, self.norm = branches, norm
        made = num_heads * kernel_size**2
        after: dict[FilterNorm, list[nn.Module]] = {
            "filter": [], "batch": [nn.BatchNorm2d(made)], "sigmoid": [nn.Sigmoid()],
        }  # fmt: skip
        if branches != "channel":
            generator = nn.Conv2d(dim, made, 1, stride)
            self.spatial_branch = nn.Sequential(generator, *after[norm])
        if branches != "spatial":
            self.channel_branch = channel_branch(
                dim, kernel_size=kernel_size, reduction=reduction, norm=norm
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H/stride), ceil(W/stride), C)."""
        check_maps(x, self.dim)
        maps = x.permute(0, 3, 1, 2)
        spatial = channel = None
        if self.branches != "channel":
            gain = GAIN / self.kernel_size if self.norm == "filter" else None
            spatial = spatial_filters(self.spatial_branch(maps), self.num_heads, gain=gain)
        if self.branches != "spatial":
            channel = self.channel_branch(maps)
        return apply_decoupled(
            x, spatial, channel, combine=self.combine, kernel_size=self.kernel_size,
            stride=self.stride, dilation=self.dilation,
        )  # fmt: skip
