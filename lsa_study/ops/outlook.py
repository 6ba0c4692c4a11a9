"""VOLO's outlook attention, with the study's manners around timm's module."""

from __future__ import annotations

from timm.models import volo
from torch import Tensor

from lsa_study.ops.checks import check_heads, check_maps, check_odd


class OutlookAttention(volo.OutlookAttention):  # type: ignore[misc]  # timm carries no types
    """Every coarse place makes weights for K x K outputs, which are summed where they overlap.

    The layer is timm's; only the checks are ours. It is no filter in the sense of Eq. 2: the
    weights that reach a pixel come from several places and do not sum to one.

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
        super().__init__(
            dim, num_heads, kernel_size=kernel_size, padding=kernel_size // 2, stride=stride
        )
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        out: Tensor = super().forward(x)
        return out
