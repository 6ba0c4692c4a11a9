"""Softmax windows by torch's own attention, and which of its ways computes them where."""

from __future__ import annotations

import contextlib
import functools
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsa_kernels import Eq4Inputs
from lsa_study.ops import reference
from lsa_study.ops.checks import Size
from lsa_study.ops.precision import without_autocast

FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
"""Torch's ways that do not store all logits."""


def why_not_fused(v: Tensor, bias: Tensor | None) -> str | None:
    """Say why torch's fused attention cannot serve windows with this bias, or None.

    Its other way, math, stores all logits twice; the plain definition is 1.0 to 1.4 times as fast.
    """
    learns = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if learns and not v.is_cuda:
        return "torch's fused attention has no gradient of a bias on a CPU"
    return None


@functools.cache
def way_on(kind: str, dtype: torch.dtype, *, learns: bool) -> str:
    """What computes softmax windows with a bias here where no kernel of ours does, and why.

    Torch is asked, with one small map.

    Args:
        kind: cpu or cuda.
        dtype: of the maps.
        learns: whether a gradient of the bias is wanted.
    """
    maps = torch.zeros(1, 1, 14, 14, 8, device=kind, dtype=dtype, requires_grad=learns)
    bias = torch.zeros(1, 169, device=kind, requires_grad=learns)
    with torch.set_grad_enabled(learns):
        if reason := why_not_fused(maps, bias):
            return f"the plain definition: {reason}"
        for way in FUSED:
            with warnings.catch_warnings(), contextlib.suppress(RuntimeError), sdpa_kernel(way):
                warnings.simplefilter("ignore")  # torch warns of why it cannot
                window_by_sdpa(Eq4Inputs(maps, maps, maps, rel_bias=bias), 7, None, 1.0)
                return f"torch's {way.name.lower().replace('_', ' ')}"
    return "torch's math: none of its fused attention takes these maps"


def window_by_sdpa(x: Eq4Inputs, size: Size, excluded: Tensor | None, scale: float) -> Tensor:
    """Softmax windows with q.k and bias, which torch's own attention computes."""
    assert x.q is not None
    assert x.k is not None
    height, width = x.v.shape[2:4]
    tiles = x.of_maps(lambda t: reference.to_windows(t, size))
    heads, windows = tiles.v.shape[1:3]
    # Torch's fused attention takes four axes: every window of a head is a head of its own, so
    # that bias and excluded pairs are the same for the whole batch.
    q, k, v = (t.flatten(1, 2) for t in (tiles.q, tiles.k, tiles.v) if t is not None)
    mask = None
    if x.rel_bias is not None:
        bias = x.rel_bias[:, None, reference.window_offsets(size, v.device)]
        mask = bias.to(_mask_type(v)).expand(-1, windows, -1, -1)
    if excluded is not None:
        floor = v.new_zeros(excluded.shape, dtype=_mask_type(v))
        floor = floor.masked_fill(excluded, float("-inf")).expand(heads, -1, -1, -1)
        mask = floor if mask is None else mask + floor
    if mask is not None:
        mask = mask.reshape(1, heads * windows, *mask.shape[2:])
    with without_autocast(v.device.type):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return reference.from_windows(torch.unflatten(out, 1, (heads, windows)), size, height, width)


def _mask_type(v: Tensor) -> torch.dtype:
    # On a GPU torch's fused attention takes a mask in the type of its queries alone.
    return v.dtype if v.is_cuda else torch.promote_types(v.dtype, torch.float32)
