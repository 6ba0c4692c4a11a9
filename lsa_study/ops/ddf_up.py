"""DDF-Up: decoupled dynamic filters that enlarge a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsa_study.ops.checks import check_heads, check_known, check_maps, check_odd
from lsa_study.ops.ddf import Combine, apply_decoupled, channel_branch, spatial_filters

GAIN = 1.0
"""Of the filter norm: no ReLU follows."""


class DDFUp(nn.Module):
    r"""Enlarge a map ``scale`` times, every new pixel by filters of its own.

    .. math:: out_{c, s y + r, s x + q} = DDF_{s r + q}(x, guide)_{c,y,x}

    Each of the s^2 places inside an old pixel has its own spatial and its own channel branch.

    Args:
        dim: C.
        scale: s, 2 or more.
        kernel_size: K, odd.
        num_heads: spatial filters per new pixel, a divisor of C.
        combine: mul or add.
        reduction: hidden channels of the channel branches against C, rounded down.
        guide_dim: channels of a second map from which spatial filters are made, each by a 1 x 1
            convolution; None: from x, with a depthwise 3 x 3 convolution before it.

    Raises:
        ValueError: an option cannot be meant; the guide is missing, is not asked for, or is not of
            the size of x.

    Source: Zhou et al., Decoupled Dynamic Filter Networks (2021), DDFUpPack. Its released code
    cannot run; three slips are put right: the operator gets its heads in place of how filters are
    combined, the depthwise convolution the padding of the other kernel, and the guide's convolution
    the channels of x.
    """

    def __init__(
        self, dim: int, *, scale: int = 2, kernel_size: int = 3, num_heads: int = 1,
        combine: Combine = "mul", reduction: float = 0.2, guide_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_heads(dim, num_heads)
        check_odd(kernel_size)
        check_known("combine", combine, Combine)
        if scale < 2:
            raise ValueError(f"scale={scale} enlarges nothing; give 2 or more")
        if guide_dim is not None and guide_dim < 1:
            raise ValueError(f"guide_dim={guide_dim} must be at least 1, or None for no guide")
        self.dim, self.scale, self.kernel_size = dim, scale, kernel_size
        self.num_heads, self.combine, self.guide_dim = num_heads, combine, guide_dim
        made = num_heads * kernel_size**2
        self.spatial_branch = nn.ModuleList(
            nn.Sequential(nn.Conv2d(guide_dim, made, 1))
            if guide_dim is not None
            else nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
                nn.Sequential(nn.Conv2d(dim, made, 1)),
            )
            for _ in range(scale**2)
        )
        self.channel_branch = nn.ModuleList(
            channel_branch(
                dim, kernel_size=kernel_size, reduction=reduction, norm="filter", gain=GAIN
            )
            for _ in range(scale**2)
        )

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """Map (B, H, W, C), and a guide (B, H, W, guide_dim), to (B, s*H, s*W, C)."""
        check_maps(x, self.dim)
        maps = x.permute(0, 3, 1, 2)
        seen = self._seen(x, guide).permute(0, 3, 1, 2)
        places = [
            apply_decoupled(
                x,
                spatial_filters(spatial(seen), self.num_heads, gain=GAIN / self.kernel_size),
                channel(maps),
                combine=self.combine,
                kernel_size=self.kernel_size,
            )
            for spatial, channel in zip(self.spatial_branch, self.channel_branch, strict=True)
        ]
        batch, height, width, _ = x.shape
        side = self.scale
        apart = torch.stack(places, 3).reshape(batch, height, width, side, side, self.dim)
        return apart.transpose(2, 3).reshape(batch, height * side, width * side, self.dim)

    def _seen(self, x: Tensor, guide: Tensor | None) -> Tensor:
        if self.guide_dim is None:
            if guide is not None:
                raise ValueError("guide: built without guide_dim; drop it, or give guide_dim")
            return x
        want = (*x.shape[:3], self.guide_dim)
        if guide is None or tuple(guide.shape) != want:
            found = "is missing" if guide is None else f"{tuple(guide.shape)} does not fit x"
            raise ValueError(f"guide {found}: want {want}, as large as x")
        return guide
