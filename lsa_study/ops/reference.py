r"""Eq. 4 of the article, and filters: the definitions that everything else is held to.

.. math::
    f'_i = \sum_{j \in \Phi} Norm(s (q_i k_j + q_i r^k_{j-i} + r^q_{j-i} k_j) + r^b_{j-i}) v_j

Shape letters: B batch, h heads, d channels of a head, H x W the map, K the side of the area,
N = H * W pixels, T = K * K taps. Offsets are pos(j) - pos(i), row by row from the top left.
All of them sum and weigh in float32 at least, and round once, to the type of the values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_kernels import Eq4Inputs
from lsa_study.ops.checks import Size, sides
from lsa_study.ops.precision import at_least_float32, rounded_once, wide

GAIN = math.sqrt(2.0)
EPSILON = 1e-10


def filter_norm(x: Tensor, *, dim: int, gain: float) -> Tensor:
    r"""Standardise filters over their taps, as the decoupled dynamic filter does.

    .. math:: gain \cdot (x - mean(x)) / (std(x) + 10^{-10})

    The standard deviation is the unbiased one and the epsilon stands outside the root. Runs in
    float32 at least: the epsilon vanishes in half precision.

    Args:
        x: filters, any shape.
        dim: the axis of the taps.
        gain: DDF's sqrt(2)/K for filters of side K.
    """
    if not x.numel():  # torch warns of a deviation of nothing
        return x
    exact: Tensor = wide(x)
    centred = exact - exact.mean(dim, keepdim=True)
    deviation = exact.std(dim, keepdim=True)
    return (gain * centred / (deviation + EPSILON)).to(x.dtype)


def normalise(logits: Tensor, norm: str, size: Size, excluded: Tensor | None = None) -> Tensor:
    """Turn logits into weights over the last axis; excluded places get weight 0 and no say.

    Args:
        logits: (..., taps).
        norm: identity, filter_norm or softmax.
        size: side of the area, for the gain of filter norm.
        excluded: boolean, broadcastable to ``logits``; at least one tap of an area stays.
    """
    if norm == "softmax":
        if excluded is not None:
            logits = logits.masked_fill(excluded, -math.inf)
        return logits.softmax(-1)
    if norm == "identity":
        return logits if excluded is None else logits.masked_fill(excluded, 0)
    gain = GAIN / math.sqrt(math.prod(sides(size)))
    if excluded is None:
        return filter_norm(logits, dim=-1, gain=gain)
    kept = (~excluded).to(logits.dtype).expand_as(logits)
    count = kept.sum(-1, keepdim=True)
    mean = (logits * kept).sum(-1, keepdim=True) / count
    centred = (logits - mean) * kept
    # A pixel alone in its area has no deviation: its weight is 0 over epsilon, which is 0.
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    positive = variance > 0
    deviation = torch.where(positive, variance, 1.0).sqrt() * positive
    return gain * centred / (deviation + EPSILON)


def window_offsets(size: Size, device: torch.device | None = None) -> Tensor:
    """Index of pos(j) - pos(i) in a window's table, for all pairs of its pixels."""
    rows, columns = sides(size)
    down = torch.arange(rows, device=device)
    right = torch.arange(columns, device=device)
    delta_y = (down[None, :] - down[:, None] + rows - 1) * (2 * columns - 1)
    delta_x = right[None, :] - right[:, None] + columns - 1
    index = delta_y[:, None, :, None] + delta_x[None, :, None, :]
    return index.reshape(rows * columns, rows * columns)


def shift_bands(
    height: int, width: int, size: Size, shifts: tuple[int, int], device: torch.device | None
) -> Tensor | None:
    """Pairs of a rolled map's windows that were not neighbors before the roll.

    Returns:
        Boolean (windows, pixels, pixels), True where excluded; None without a shift.
    """
    if not any(shifts):
        return None
    bands = torch.zeros(height, width, dtype=torch.long, device=device)
    # Only the last window of an axis holds pixels that the roll brought from the other end.
    for axis, (extent, by) in enumerate(zip((height, width), shifts, strict=True)):
        if by:
            band = (torch.arange(extent, device=device) >= extent - by).long()
            bands = bands * 2 + band.unsqueeze(1 - axis)
    tiles = to_windows(bands[None, None, :, :, None], size).flatten(0, 2).squeeze(-1)
    return tiles[:, :, None] != tiles[:, None, :]


def to_windows(x: Tensor, size: Size) -> Tensor:
    """(B, h, H, W, d) -> (B, h, windows, pixels, d), windows row by row."""
    batch, heads, height, width, depth = x.shape
    rows, columns = sides(size)
    x = x.reshape(batch, heads, height // rows, rows, width // columns, columns, depth)
    return x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)


def from_windows(x: Tensor, size: Size, height: int, width: int) -> Tensor:
    """The inverse of ``to_windows``."""
    batch, heads, _, _, depth = x.shape
    rows, columns = sides(size)
    x = x.reshape(batch, heads, height // rows, width // columns, rows, columns, depth)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(batch, heads, height, width, depth)


@rounded_once
def window(x: Eq4Inputs, norm: str, size: Size, excluded: Tensor | None, scale: float) -> Tensor:
    """The definition for shared windows of a map that is rolled and padded already.

    ``excluded`` is what ``shift_bands`` gives for it.
    """
    height, width = x.v.shape[2:4]
    tiles = x.of_maps(lambda t: to_windows(t, size))
    logits = pair_logits(tiles, window_offsets(size, x.v.device), scale)
    logits = logits.expand(*tiles.v.shape[:3], *logits.shape[-2:])
    weights = normalise(logits, norm, size, excluded).to(x.v.dtype)
    return from_windows(weights @ tiles.v, size, height, width)


def pair_logits(x: Eq4Inputs, index: Tensor, scale: float) -> Tensor:
    """Logits of all pairs of a tile's queries and the keys it sees.

    Args:
        x: with q (B, h, tiles, queries, d) and k (B, h, tiles, keys, d).
        index: the offset of every pair, (queries, keys).

    Returns:
        (B, h, tiles, queries, keys), or what broadcasts to it where neither q nor k is read.
    """
    q, k, _, rel_k, rel_q, rel_bias, use_qk = x
    terms: list[Tensor] = []
    if use_qk and q is not None and k is not None:
        terms.append(scale * q @ k.transpose(-1, -2))
    if rel_k is not None and q is not None:
        table = rel_k[:, index].to(q.dtype)
        terms.append(scale * torch.einsum("bhtid,hijd->bhtij", q, table))
    if rel_q is not None and k is not None:
        table = rel_q[:, index].to(k.dtype)
        terms.append(scale * torch.einsum("bhtjd,hijd->bhtij", k, table))
    if rel_bias is not None:
        terms.append(rel_bias[:, None, index])
    return sum(terms[1:], start=terms[0])


def neighbors(x: Tensor, size: int) -> Tensor:
    """Every pixel's area, zero outside the map: (B, h, H, W, d) -> view (B, h, H, W, d, T)."""
    reach = size // 2
    padded = F.pad(x, (0, 0, reach, reach, reach, reach))
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(-2)


def outside(height: int, width: int, size: int, device: torch.device | None = None) -> Tensor:
    """Which taps of every pixel fall outside the map: boolean (H, W, T)."""
    inside = torch.ones(1, 1, height, width, 1, device=device)
    return neighbors(inside, size)[0, 0, :, :, 0] == 0


@at_least_float32
def neighboring_weights(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """Weights of every pixel's area, (B, h, H, W, T), in float32 at least."""
    q, k, v, rel_k, rel_q, rel_bias, use_qk = x
    batch, _, height, width, _ = v.shape
    terms: list[Tensor] = []
    patches = None if k is None else neighbors(k, size)
    if use_qk and q is not None and patches is not None:
        terms.append(scale * torch.einsum("bhyxd,bhyxdt->bhyxt", q, patches))
    if rel_k is not None and q is not None:
        terms.append(scale * torch.einsum("bhyxd,htd->bhyxt", q, rel_k.to(q.dtype)))
    if rel_q is not None and patches is not None:
        terms.append(scale * torch.einsum("htd,bhyxdt->bhyxt", rel_q.to(patches.dtype), patches))
    if rel_bias is not None:
        terms.append(rel_bias[:, None, None].expand(batch, -1, height, width, -1))
    logits = sum(terms[1:], start=terms[0])
    excluded = outside(height, width, size, v.device) if border == "mask" else None
    return normalise(logits, norm, size, excluded)


@rounded_once
def neighboring(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """The definition for every pixel's own neighborhood."""
    weights = neighboring_weights(x, norm, size, border, scale).to(x.v.dtype)
    return torch.einsum("bhyxt,bhyxdt->bhyxd", weights, neighbors(x.v, size))


@rounded_once
def apply_filters(
    values: Tensor, filters: Tensor, mul: Tensor | None, add: Tensor | None, size: int,
    dilation: int = 1, stride: int = 1,
) -> Tensor:  # fmt: skip
    """The definition of ``functional.apply_filters``, tap by tap: no T * C * N is stored.

    Static filters are (C, K, K), or (B, C, T) where each image has its own. Filters of pixels are
    given for those alone that a stride keeps.
    """
    _, height, width, channels = values.shape
    mul, add = (None if t is None else t.reshape(-1, 1, 1, channels, size**2) for t in (mul, add))
    reach = dilation * (size // 2)
    padded = F.pad(values, (0, 0, reach, reach, reach, reach))
    out = torch.zeros_like(values[:, ::stride, ::stride])
    for tap in range(size * size):
        row, column = (dilation * place for place in divmod(tap, size))
        there = padded[:, row : row + height : stride, column : column + width : stride]
        weight = filters[..., tap].repeat_interleave(channels // filters.shape[3], -1)
        if mul is not None:
            weight = weight * mul[..., tap]
        if add is not None:
            weight = weight + add[..., tap]
        out = out + weight * there
    return out


@rounded_once
def static_filters(values: Tensor, filters: Tensor) -> Tensor:
    """Depthwise convolution of (B, H, W, C) by one (C, K, K) filter per channel, zero outside."""
    maps = values.permute(0, 3, 1, 2)
    weight = filters.unsqueeze(1).to(values.dtype)
    out = F.conv2d(maps, weight, padding=filters.shape[-1] // 2, groups=values.shape[-1])
    return out.permute(0, 2, 3, 1)
