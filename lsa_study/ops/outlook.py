"""VOLO's outlook attention, with timm's names of parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.ops.checks import check_heads, check_maps, check_odd
from lsa_study.ops.precision import rounded_once


class OutlookAttention(nn.Module):
    """Every coarse place makes weights for K x K outputs, which are summed where they overlap.

    The parameters and the steps are timm's, without importing it; ours are the checks, and that
    weights and sums of overlapping outputs are in float32 at least. It is no filter in the sense of
    Eq. 2: the weights that reach a pixel come from several places and do not sum to one.

    Args:
        dim: C.
        num_heads: a divisor of C.
        kernel_size: K, odd.
        stride: pixels between two coarse places.

    Shape: (B, H, W, C) to (B, H, W, C), any H and W.
    """

    def __init__(self, dim: int, num_heads: int, *, kernel_size: int = 3, stride: int = 2) -> None:
        check_heads(dim, num_heads)
        check_odd(kernel_size)
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.kernel_size, self.stride = kernel_size, stride
        self.v = nn.Linear(dim, dim, bias=False)
        self.attn = nn.Linear(dim, kernel_size**4 * num_heads)
        self.proj = nn.Linear(dim, dim)
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        values = self.v(x).permute(0, 3, 1, 2)
        seen = self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = _spread(values, self.attn(seen), self.num_heads, self.kernel_size, self.stride)
        projected_back: Tensor = self.proj(out)
        return projected_back


@rounded_once
def _spread(values: Tensor, logits: Tensor, heads: int, size: int, stride: int) -> Tensor:
    """Weigh (B, C, H, W) by logits of (B, h, w, heads * K**4), and add up where outputs overlap."""
    batch, channels, height, width = values.shape
    taps, places = size * size, logits.shape[1] * logits.shape[2]
    patches = F.unfold(values, size, padding=size // 2, stride=stride)
    patches = patches.reshape(batch, heads, channels // heads, taps, places).permute(0, 1, 4, 3, 2)
    pairs = logits.reshape(batch, places, heads, taps, taps).permute(0, 2, 1, 3, 4)
    weights = (pairs * (channels // heads) ** -0.5).softmax(-1)
    out = (weights @ patches).permute(0, 1, 4, 3, 2).reshape(batch, channels * taps, places)
    summed = F.fold(out, (height, width), size, padding=size // 2, stride=stride)
    return summed.permute(0, 2, 3, 1)
