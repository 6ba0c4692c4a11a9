"""Neighboring areas by torch's FlexAttention, which needs no kernel of ours.

Pixels are sorted into tiles of 8 x 8, and keys lie ``size // 2`` further down and right than
queries: so all that a tile of queries sees is in a few tiles of keys, 2 x 2 for areas up to 9 x 9,
and a block mask leaves out the others. What the tables add to the logits is made before, for every
pixel and tap, and looked up by the offset of a pair. No place is looked up by two pairs that count,
so its gradient is the same each time although FlexAttention adds it up by atomics.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_kernels import Eq4Inputs
from lsa_kernels.operators import wants_gradients
from lsa_study.ops import reference
from lsa_study.ops.precision import wide, without_autocast

TILE = 8
PIXELS = TILE * TILE
NARROWEST = 16
"""Channels of a head that FlexAttention takes at least on a GPU."""
# Blocks of the mask are a tile each, half of what FlexAttention has by itself, so that its own
# choices would not fit. Maps of one tile would be left to another kernel, for decoding.
OPTIONS = {
    "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32,
    "FORCE_USE_FLEX_ATTENTION": True,
}  # fmt: skip
BACKENDS = {"cuda": "inductor", "cpu": "eager"}
"""What compiles it on which kind of device."""


def why_not_flex(x: Eq4Inputs, norm: str) -> str | None:
    """Say why FlexAttention cannot take these inputs, or None if it can."""
    if norm != "softmax":
        return f"FlexAttention computes a softmax, norm={norm!r} is none"
    if x.v.device.type not in ("cpu", "cuda"):
        return f"values are on {x.v.device}, FlexAttention is taken on a CPU and on CUDA"
    if x.v.is_cuda and x.v.shape[-1] < NARROWEST:
        return f"heads have {x.v.shape[-1]} channels, FlexAttention takes {NARROWEST} and more"
    if not x.v.is_cuda and wants_gradients(x):
        return "torch's FlexAttention has no backward on a CPU"
    return None


def flex(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """The neighboring area of Eq. 4 with softmax, as ``reference.neighboring``.

    It is compiled on the first call for a shape, which takes a while. On a CPU it serves to compare
    with: it is not compiled there, and all logits of all pairs are stored.
    """
    if why_not := why_not_flex(x, norm):
        raise ValueError(f"implementation='flex' cannot run: {why_not}")
    if not x.v.numel():
        return reference.neighboring(x, norm, size, border, scale)
    height, width = x.v.shape[2:4]
    down, right = -height % TILE, -width % TILE
    reach = size // 2
    # All that the last tile's queries see.
    below, beyond = (-(-2 * reach // TILE) * TILE - reach + more for more in (down, right))

    def tiles(t: Tensor, *around: int) -> Tensor:
        padded = F.pad(t.to(x.v.dtype), (0, 0, *around))
        return reference.to_windows(padded, TILE).flatten(2, 3)

    with without_autocast(x.v.device.type):
        v = tiles(x.v, reach, beyond, reach, below)
        k = torch.zeros_like(v) if x.k is None else tiles(x.k, reach, beyond, reach, below)
        q = tiles(torch.zeros_like(x.v) if x.q is None else x.q, 0, right, 0, down)
        of_queries = _looked_up(q, x.rel_k, x.rel_bias, scale)
        of_keys = _looked_up(k, x.rel_q, None, scale)
        if not x.use_qk:
            q = torch.zeros_like(q)
        place = _Place(height, width, size, border)
        out = _attend(q, k, v, of_queries, of_keys, place, scale)
    out = torch.unflatten(out, 2, (-1, PIXELS))
    return reference.from_windows(out, TILE, height + down, width + right)[:, :, :height, :width]


def _looked_up(t: Tensor, rel: Tensor | None, bias: Tensor | None, scale: float) -> Tensor | None:
    """What a table adds to the logits of every pixel's taps, (B, h, pixels, taps)."""
    if rel is None and bias is None:
        return None
    found: Tensor | None = None
    if rel is not None:
        pixels = wide(t)
        found = scale * torch.einsum("bhnd,htd->bhnt", pixels, rel.to(pixels.dtype))
    if bias is not None:
        added = bias[:, None].to(torch.promote_types(t.dtype, torch.float32))
        # Not broadcast: all pixels of a head would add to the gradient of one place.
        found = added.expand(*t.shape[:3], -1).contiguous() if found is None else found + added
    return found


class _Place:
    """Which pixels pairs of FlexAttention's places are, and whether they count."""

    def __init__(self, height: int, width: int, size: int, border: str) -> None:
        self.height, self.width, self.size, self.masked = height, width, size, border == "mask"
        self.down, self.right = -(-height // TILE), -(-width // TILE)
        more = -(-2 * (size // 2) // TILE)
        self.keys_down, self.keys_right = self.down + more, self.right + more

    def offset(self, i: Any, j: Any) -> tuple[Any, Any]:
        """Rows and columns from the first tap of query i to key j."""
        (y, x), (ky, kx) = _pixel(i, self.right), _pixel(j, self.keys_right)
        return ky - y, kx - x

    def counts(self, b: Any, h: Any, i: Any, j: Any) -> Any:
        """Whether key j is a tap of query i that stays in the norm."""
        dy, dx = self.offset(i, j)
        seen = (dy >= 0) & (dy < self.size) & (dx >= 0) & (dx < self.size)
        if not self.masked:
            return seen
        (y, x), (ky, kx) = _pixel(i, self.right), _pixel(j, self.keys_right)
        ky, kx = ky - self.size // 2, kx - self.size // 2
        on_map = (ky >= 0) & (ky < self.height) & (kx >= 0) & (kx < self.width)
        # Queries that fill up a tile see all, so that no row is empty; they are cut off.
        return seen & (on_map | (y >= self.height) | (x >= self.width))

    def tap(self, i: Any, j: Any) -> Any:
        """Index of key j in the tables of query i; some tap where it is none."""
        dy, dx = (d.clamp(0, self.size - 1) for d in self.offset(i, j))
        return dy * self.size + dx


def _pixel(index: Any, tiles_right: int) -> tuple[Any, Any]:
    tile, at = index // PIXELS, index % PIXELS
    return tile // tiles_right * TILE + at // TILE, tile % tiles_right * TILE + at % TILE


@functools.lru_cache(maxsize=64)
def _block_mask(height: int, width: int, size: int, border: str, device: torch.device) -> Any:
    """Which tiles of keys every tile of queries sees."""
    from torch.nn.attention.flex_attention import BlockMask

    place = _Place(height, width, size, border)
    more = place.keys_down - place.down
    tile, key = (
        torch.arange(down * right, device=device)
        for down, right in ((place.down, place.right), (place.keys_down, place.keys_right))
    )
    below = key[None] // place.keys_right - tile[:, None] // place.right
    beyond = key[None] % place.keys_right - tile[:, None] % place.right
    seen = (below >= 0) & (below <= more) & (beyond >= 0) & (beyond <= more)
    first = seen.int().argsort(dim=1, descending=True, stable=True)
    number, first = seen.sum(1).int()[None, None], first.int()[None, None].contiguous()
    return BlockMask.from_kv_blocks(number, first, BLOCK_SIZE=PIXELS, mask_mod=place.counts)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, of_queries: Tensor | None, of_keys: Tensor | None,
    place: _Place, scale: float,
) -> Tensor:  # fmt: skip
    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        tap = place.tap(i, j)
        if of_queries is not None:
            logit = logit + of_queries[b, h, i, tap]
        if of_keys is not None:
            logit = logit + of_keys[b, h, j, tap]
        return logit

    border = "mask" if place.masked else "zero"
    mask = _block_mask(place.height, place.width, place.size, border, v.device)
    given = (q, k, v, of_queries, of_keys)
    learns = tuple(t is not None and t.requires_grad for t in given)
    absent = tuple(t is None for t in given)
    area = (place.height, place.width, place.size, border, scale)
    # All that would make torch compile anew.
    key = (v.device.type, v.device.index, v.dtype, q.shape, area, absent, learns)
    out: Tensor = _compiled((*key, torch.is_grad_enabled()))(q, k, v, score, mask, scale)
    return out


@functools.lru_cache(maxsize=256)
def _compiled(key: Any) -> Any:
    """FlexAttention compiled for one case alone."""
    from torch.nn.attention.flex_attention import flex_attention

    def call(q: Tensor, k: Tensor, v: Tensor, score: Any, mask: Any, scale: float) -> Any:
        options: Any = dict(OPTIONS)
        return flex_attention(q, k, v, score, mask, scale, kernel_options=options)

    # A code of its own, since torch compiles a code for eight cases and no more.
    call.__code__ = call.__code__.replace()
    compiled = torch.compile(call, backend=BACKENDS[key[0]], dynamic=False, fullgraph=True)
    done: list[bool] = []

    def quiet(*given: Any) -> Any:
        if done:
            return compiled(*given)
        with warnings.catch_warnings():
            # Torch looks at gradients of tensors that are no leaves, and warns of that.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
            out = compiled(*given)
        done.append(True)
        return out

    return quiet
