"""Enhanced local self-attention (ELSA): Hadamard attention and the ghost head."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_kernels import Eq4Inputs
from lsa_study.ops.checks import check_heads, check_maps, check_odd
from lsa_study.ops.functional import apply_filters, grouped_conv
from lsa_study.ops.reference import neighboring_weights


class ELSA(nn.Module):
    r"""Hadamard attention over every pixel's neighborhood, its heads expanded by the ghost head.

    Eq. 5-7 of the article:

    .. math::
        h_{j-i} = Softmax((q_i \odot k_i) r^k_{j-i} + r^q_{j-i} (q_j \odot k_j) + r^b_{j-i}), \quad
        f'_i = \sum_j (mul^\lambda h_{j-i} + \gamma \, add) \, v_j

    ``variant="eq7"`` is this formula, with C channels of q and k and tables per head.
    ``variant="conv"`` is the released module, which the article's parameter counts belong to:
    a K x K grouped convolution of q * k, GELU, and a 1 x 1 convolution to heads * K*K logits, with
    about 2C/3 channels of q and k. In both, all taps take part in the softmax, also outside ones.

    Args:
        dim: C, channels in and out.
        num_heads: h, a divisor of C; channel c belongs to head c // (C // h).
        variant: conv or eq7.
        kernel_size: K, odd.
        group_width: channels per group of the grouped convolution (conv only). The article's
            Swin-T has 4, larger Swins 8.
        ghost_mul: their lambda, the power of the multiplied matrix; 0 means absent. Whole numbers
            only: the matrix has negative entries, and their fractional powers are not real.
        ghost_add: their gamma, the weight of the added matrix; 0 means absent.
        qkv_bias: whether the input projection has a bias.
        scale: on q * k. The released blocks use 1.
        implementation: see ``functional.apply_filters``.

    Shape: (B, H, W, C) to (B, H, W, C), any H and W.

    Source: the released code (linear maps to q, k, v, in this order) and Alg. 1; where the two
    differ in the channel-to-head mapping this follows the code.

    Raises:
        ValueError: heads do not divide, K is even, lambda is fractional, an option is unknown.
    """

    def __init__(
        self, dim: int, num_heads: int, *, variant: Literal["conv", "eq7"] = "conv",
        kernel_size: int = 7, group_width: int = 8, ghost_mul: float = 0.0, ghost_add: float = 1.0,
        qkv_bias: bool = True, scale: float | None = 1.0, implementation: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        if variant not in ("conv", "eq7"):
            raise ValueError(f"variant={variant!r} is unknown; known: conv, eq7")
        check_heads(dim, num_heads)
        check_odd(kernel_size)
        if ghost_mul != int(ghost_mul) or ghost_mul < 0:
            raise ValueError(
                f"ghost_mul={ghost_mul}: a fractional power of a matrix with negative entries is "
                "not real; give a whole number such as 0 or 1"
            )
        self.dim, self.num_heads, self.kernel_size = dim, num_heads, kernel_size
        self.variant, self.implementation = variant, implementation
        self.ghost_mul, self.ghost_add = ghost_mul, ghost_add
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        taps = kernel_size**2
        if variant == "conv":
            self.dim_qk = math.ceil(2 * (dim // 3) / group_width) * group_width
            self.attn = nn.Sequential(
                nn.Conv2d(
                    self.dim_qk, self.dim_qk, kernel_size, padding=kernel_size // 2,
                    groups=self.dim_qk // group_width,
                ),
                nn.GELU(),
                nn.Conv2d(self.dim_qk, num_heads * taps, 1),
            )  # fmt: skip
        else:
            self.dim_qk = dim
            depth = dim // num_heads
            self.rel_k = nn.Parameter(torch.empty(num_heads, taps, depth))
            self.rel_q = nn.Parameter(torch.empty(num_heads, taps, depth))
            self.rel_bias = nn.Parameter(torch.empty(num_heads, taps))
        self.pre_proj = nn.Conv2d(dim, 2 * self.dim_qk + dim, 1, bias=qkv_bias)
        self.post_proj = nn.Linear(dim, dim)
        matrices = bool(ghost_mul) + bool(ghost_add)
        shape = (matrices, dim, kernel_size, kernel_size)
        self.ghost_head = nn.Parameter(torch.empty(shape)) if matrices else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ghost matrices as Alg. 1 draws them; tables as Swin's; convolutions keep torch's own."""
        if self.variant == "eq7":
            for table in (self.rel_k, self.rel_q, self.rel_bias):
                nn.init.trunc_normal_(table, std=0.02)
        mul, add = self._ghost_matrices()
        with torch.no_grad():
            if mul is not None:
                mul.normal_()
            if add is not None:
                nn.init.trunc_normal_(add, std=0.02)

    def _ghost_matrices(self) -> tuple[Tensor | None, Tensor | None]:
        """The two matrices, (C, K, K) each, as views of the parameter; None where absent."""
        if self.ghost_head is None:
            return None, None
        mul = self.ghost_head[0] if self.ghost_mul else None
        return mul, self.ghost_head[-1] if self.ghost_add else None

    def ghost(self) -> tuple[Tensor | None, Tensor | None]:
        """Powers mul ** lambda and gamma * add, (C, K, K) each; None where absent."""
        mul, add = self._ghost_matrices()
        power = None if mul is None else mul if self.ghost_mul == 1 else mul**self.ghost_mul
        return power, None if add is None else self.ghost_add * add

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        projected = F.linear(x, self.pre_proj.weight.flatten(1), self.pre_proj.bias)
        q, k, v = torch.split(projected, [self.dim_qk, self.dim_qk, self.dim], -1)
        product = q * k
        filters = self.attention_maps(product if self.scale == 1 else product * self.scale)
        mul, add = self.ghost()
        out = apply_filters(
            v, filters, ghost_mul=mul, ghost_add=add, kernel_size=self.kernel_size,
            implementation=self.implementation,
        )  # fmt: skip
        projected_back: Tensor = self.post_proj(out)
        return projected_back

    def attention_maps(self, product: Tensor) -> Tensor:
        """Hadamard attention: from q * k (B, H, W, dim_qk) to (B, H, W, h, K*K), summing to 1.

        They are in float32 at least, also where q and k are not.
        """
        if self.variant == "conv":
            layers: Any = self.attn
            conv, activation, last = layers
            hidden = grouped_conv(product, conv.weight, conv.bias, self.implementation)
            logits = F.linear(activation(hidden), last.weight.flatten(1), last.bias)
            by_heads: Tensor = torch.unflatten(logits, -1, (self.num_heads, -1))
            return by_heads.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        heads = torch.unflatten(product, -1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        given = Eq4Inputs(heads, heads, heads, self.rel_k, self.rel_q, self.rel_bias, use_qk=False)
        weights = neighboring_weights(given, "softmax", self.kernel_size, "zero", 1.0)
        return weights.permute(0, 2, 3, 1, 4)
