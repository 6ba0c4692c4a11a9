"""The residual block that every spatial operator of the study is put into."""

from __future__ import annotations

from timm.layers import DropPath, Mlp
from torch import Tensor, nn


class ChannelsLastBatchNorm(nn.BatchNorm2d):
    """Batch norm of maps whose channels come last, (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel over images and pixels."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialBlock(nn.Module):
    r"""Mix pixels with an operator, then channels with a perceptron, each beside a shortcut.

    .. math:: x \leftarrow x + DP(op(norm_1(x))), \qquad x \leftarrow x + DP(mlp(norm_2(x)))

    It is Swin's block (Liu et al., 2021) with the attention replaced by ``op``; parameter names
    are those of ``timm.models.swin_transformer.SwinTransformerBlock``. DP drops the branch of a
    whole image with probability ``drop_path`` (stochastic depth).

    Args:
        dim: channels C.
        op: maps (B, H, W, C) to the same shape, which it reads through ``norm1``.
        norm2: what the perceptron reads through; both are layer norms unless given.
        mlp_ratio: hidden channels of the perceptron against C.
        drop_path: probability in [0, 1) to drop a branch in training.
    """

    def __init__(
        self,
        dim: int,
        op: nn.Module,
        *,
        norm1: nn.Module | None = None,
        norm2: nn.Module | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if norm1 is None else norm1
        self.attn = op
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim) if norm2 is None else norm2
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out
