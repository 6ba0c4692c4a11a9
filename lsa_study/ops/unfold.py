"""More ways to compute the neighboring area: the article's unfold, and sliding chunks (SDC)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_kernels import Eq4Inputs
from lsa_study.ops.precision import rounded_once
from lsa_study.ops.reference import from_windows, normalise, outside, pair_logits


@rounded_once
def unfold(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """As the article trained Net7-N on two nodes: T copies of keys and values are stored."""
    q, k, v, rel_k, rel_q, rel_bias, use_qk = x
    batch, heads, height, width, depth = v.shape

    def copies(x: Tensor) -> Tensor:
        """(B, h, H, W, d) -> (B, h, H, W, T, d)."""
        maps = x.permute(0, 1, 4, 2, 3).reshape(batch, heads * depth, height, width)
        taps = F.unfold(maps, size, padding=size // 2)
        taps = taps.view(batch, heads, depth, size * size, height, width)
        return taps.permute(0, 1, 4, 5, 3, 2)

    logits = v.new_zeros(())
    if q is not None and rel_k is not None:
        logits = logits + scale * torch.einsum("bhyxd,htd->bhyxt", q, rel_k.to(q.dtype))
    if k is not None and (use_qk or rel_q is not None):
        reader = v.new_zeros(())
        if use_qk and q is not None:
            reader = reader + q.unsqueeze(-2)
        if rel_q is not None:
            reader = reader + rel_q.to(k.dtype)[:, None, None]
        logits = logits + scale * (reader * copies(k)).sum(-1)
    if rel_bias is not None:
        logits = logits + rel_bias[:, None, None]
    logits = logits.expand(batch, heads, height, width, size * size)
    excluded = outside(height, width, size, v.device) if border == "mask" else None
    weights = normalise(logits, norm, size, excluded).to(v.dtype)
    return (weights.unsqueeze(-1) * copies(v)).sum(-2)


@rounded_once
def sliding_chunks(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """Sliding chunks: tiles of side c = size // 2 attend to the 3c x 3c block around them.

    Pairs of a block that lie further apart than c are excluded, so that every pixel sees exactly
    its centred area of side 2c + 1 = size. With ``border="mask"`` pixels outside the map are
    excluded too: this is the article's SDC, the sliding chunk of Vision Longformer in its exact
    mode. With ``border="zero"`` it is another way to the same numbers as ``unfold``, without its
    T copies.
    """
    chunk, (height, width) = max(size // 2, 1), x.v.shape[2:4]
    down, right = -height % chunk, -width % chunk

    def cut(x: Tensor, around: int) -> Tensor:
        padded = F.pad(x, (0, 0, around, right + around, around, down + around))
        side = chunk + 2 * around
        tiles = padded.unfold(2, side, chunk).unfold(3, side, chunk)
        return tiles.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(2, 3)

    q = None if x.q is None else cut(x.q, 0)
    k = None if x.k is None else cut(x.k, chunk)
    around = Eq4Inputs(q, k, cut(x.v, chunk), *x[3:])
    index, apart = _block_offsets(chunk, size // 2, x.v.device)
    logits = pair_logits(around, index, scale)
    excluded = apart
    if border == "mask":
        beyond = cut(x.v.new_ones(1, 1, height, width, 1), chunk).squeeze(-1) == 0
        excluded = excluded | beyond.unsqueeze(-2)
        # A padded query may have no neighbor; let it see all, so that no row is empty. It is cut
        # off below.
        excluded = excluded & ~excluded.all(-1, keepdim=True)
    logits = logits.expand(*around.v.shape[:3], *logits.shape[-2:])
    out = normalise(logits, norm, size, excluded).to(x.v.dtype) @ around.v
    return from_windows(out, chunk, height + down, width + right)[:, :, :height, :width]


def _block_offsets(chunk: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For all pairs of a tile's and its block's pixels: the offset's index, and whether too far."""
    query = torch.arange(chunk, device=device)
    key = torch.arange(3 * chunk, device=device) - chunk
    delta = key[None, :] - query[:, None]
    rows = delta[:, None, :, None].expand(chunk, chunk, 3 * chunk, 3 * chunk)
    columns = delta[None, :, None, :].expand_as(rows)
    apart = (rows.abs() > reach) | (columns.abs() > reach)
    index = (rows + reach) * (2 * reach + 1) + columns + reach
    flat = (chunk * chunk, 9 * chunk * chunk)
    return index.masked_fill(apart, 0).reshape(flat), apart.reshape(flat)


@rounded_once
def apply_filters(
    values: Tensor, filters: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, size: int
) -> Tensor:
    """Filters applied to T stored copies of the values, with all C expanded filters in memory."""
    batch, height, width, channels = values.shape
    taps = F.unfold(values.permute(0, 3, 1, 2), size, padding=size // 2)
    taps = taps.view(batch, channels, size * size, height, width)
    weights = filters.repeat_interleave(channels // filters.shape[3], 3).permute(0, 3, 4, 1, 2)
    if ghost_mul is not None:
        weights = weights * ghost_mul.view(channels, -1, 1, 1)
    if ghost_add is not None:
        weights = weights + ghost_add.view(channels, -1, 1, 1)
    return (weights * taps).sum(2).permute(0, 2, 3, 1)
