"""The article's Eq. 4 as a layer: project, attend, project back."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_kernels import Eq4Inputs
from lsa_study.ops.checks import Size, check_heads, check_maps, check_options, num_offsets, sides
from lsa_study.ops.functional import rolled_window, spatial_attention
from lsa_study.ops.reference import shift_bands
from lsa_study.vocabulary import TERMS, Application, Border, Implementation, Norm


class UnifiedSpatialOp(nn.Module):
    r"""One point of the article's Eq. 4, between an input and an output projection.

    .. math:: f'_i = \sum_{j\in\Phi} Norm(q_i k_j + q_i r^k_{j-i} + r^q_{j-i} k_j + r^b_{j-i}) v_j

    Only the projections and tables that the chosen terms read are built: v always, q for ``qk``
    and ``q_rk``, k for ``qk`` and ``rq_k``. Tables are per head and indexed by j - i, row by row.

    Swin's attention is ``terms={"qk", "bias"}, norm="softmax", application="window"``.

    Args:
        dim: C, channels in and out.
        num_heads: h, a divisor of C.
        terms: summands of the logits, any of qk, q_rk, rq_k, bias.
        norm: identity, filter_norm or softmax, over the area.
        application: window (pixels of a tile share it) or neighboring (each pixel its own).
        size: side of the area; a window may have (rows, columns).
        shift: window only: cyclic shift of the tiling. Dropped on an axis that one window covers.
        border: neighboring only, zero or mask; see ``functional.spatial_attention``.
        qkv_bias: whether the input projection has a bias.
        scale: on the three dot products; None means (C/h)**-0.5.
        implementation: see ``functional.spatial_attention``.

    Shape: (B, H, W, C) to (B, H, W, C), any H and W. Maps that are not whole windows are rolled,
    then padded with zeros at the bottom and right, as timm does; the other way round, as in Swin's
    and ELSA's detectors, where the attribute ``pads_first`` is true.

    Raises:
        ValueError: heads do not divide, an even neighborhood, an unknown option.
    """

    def __init__(
        self, dim: int, num_heads: int, *, terms: Collection[str], norm: Norm,
        application: Application, size: Size = 7, shift: int = 0, border: Border = "zero",
        qkv_bias: bool = True, scale: float | None = None, implementation: Implementation = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        if not terms or isinstance(terms, str) or set(terms) - set(TERMS):
            raise ValueError(f"terms={terms!r}: give one or more of {', '.join(TERMS)}")
        check_heads(dim, num_heads)
        check_options(norm, application, border, size, shift)
        self.dim, self.num_heads, self.terms = dim, num_heads, frozenset(terms)
        self.norm, self.application, self.border = norm, application, border
        self.size, self.shift, self.implementation = size, shift, implementation
        self.pads_first = False
        self.depth = depth = dim // num_heads
        self.scale = depth**-0.5 if scale is None else scale
        self.reads_q = bool(self.terms & {"qk", "q_rk"})
        self.reads_k = bool(self.terms & {"qk", "rq_k"})
        self.qkv = nn.Linear(dim, (1 + self.reads_q + self.reads_k) * dim, bias=qkv_bias)
        offsets = num_offsets(application, size)
        self.rel_k = self._table("q_rk", num_heads, offsets, depth)
        self.rel_q = self._table("rq_k", num_heads, offsets, depth)
        self.rel_bias = self._table("bias", num_heads, offsets)
        self.proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def _table(self, term: str, *shape: int) -> nn.Parameter | None:
        return nn.Parameter(torch.empty(shape)) if term in self.terms else None

    def reset_parameters(self) -> None:
        """Tables as Swin's, truncated normal 0.02; static filters (bias alone) as convolutions."""
        only_static = self.terms == {"bias"} and self.norm == "identity"
        for table in (self.rel_k, self.rel_q, self.rel_bias):
            if table is None:
                continue
            if only_static:
                bound = table.shape[-1] ** -0.5
                nn.init.uniform_(table, -bound, bound)
            else:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        check_maps(x, self.dim)
        mixed = self._neighboring(x) if self.application == "neighboring" else self._windows(x)
        out: Tensor = self.proj(mixed)
        return out

    def _neighboring(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        mixed = spatial_attention(
            q, k, v, rel_k=self.rel_k, rel_q=self.rel_q, rel_bias=self.rel_bias,
            use_qk="qk" in self.terms, norm=self.norm, application="neighboring", size=self.size,
            border=self.border, scale=self.scale, implementation=self.implementation,
        )  # fmt: skip
        return mixed.permute(0, 2, 3, 1, 4).reshape(x.shape)

    def _windows(self, x: Tensor) -> Tensor:
        # Each axis is rolled by itself, and padded before the projection, so that padded keys and
        # values are the projection's bias: all of it as timm does.
        height, width = x.shape[1:3]
        rows, columns = sides(self.size)
        shifts = self.shift * (height > rows), self.shift * (width > columns)
        padding = (0, 0, 0, -width % columns, 0, -height % rows)
        if self.pads_first and any(padding):
            x = F.pad(x, padding)
        if any(shifts):
            x = x.roll((-shifts[0], -shifts[1]), (1, 2))
        if not self.pads_first and any(padding):
            x = F.pad(x, padding)
        q, k, v = self._project(x)
        tall, wide = x.shape[1:3]
        excluded = shift_bands(tall, wide, self.size, shifts, x.device)
        given = Eq4Inputs(q, k, v, self.rel_k, self.rel_q, self.rel_bias, "qk" in self.terms)
        out = rolled_window(given, self.norm, self.size, excluded, self.scale, self.implementation)
        out = out.permute(0, 2, 3, 1, 4).flatten(3)
        if not self.pads_first:
            out = out[:, :height, :width]
        return (out.roll(shifts, (1, 2)) if any(shifts) else out)[:, :height, :width]

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        parts = torch.unflatten(self.qkv(x), -1, (-1, self.num_heads, self.depth))
        found = iter(parts.permute(3, 0, 4, 1, 2, 5).unbind(0))
        q = next(found) if self.reads_q else None
        k = next(found) if self.reads_k else None
        return q, k, next(found)

    def extra_repr(self) -> str:
        """What makes this point of Eq. 4."""
        terms = "+".join(term for term in TERMS if term in self.terms)
        return (
            f"{terms}, {self.norm}, {self.application} {self.size}, "
            f"heads={self.num_heads}, shift={self.shift}, border={self.border}"
        )
