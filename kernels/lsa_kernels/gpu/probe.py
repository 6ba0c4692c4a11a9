"""Eq. 4 as it is defined, to try kernels with on the device that they run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_kernels.operators import Eq4Inputs

SHAPE = (2, 2, 9, 18)
"""Images, heads, rows and columns of the map: six tiles, all borders, most of them partial."""
ALLOWED = 0.05
"""Share of the largest number: many times what 16 bits round, far below what a wrong tap brings."""


def definition(x: Eq4Inputs, norm: str, size: int, border: str, scale: float) -> Tensor:
    """Eq. 4, tap by tap."""
    reach = size // 2
    height, width = x.v.shape[2:4]

    def taps(t: Tensor) -> Tensor:
        wide = F.pad(t, (0, 0, *(reach,) * 4))
        places = ((dy, dx) for dy in range(size) for dx in range(size))
        return torch.stack([wide[:, :, dy : dy + height, dx : dx + width] for dy, dx in places], -2)

    logits = x.v.new_zeros(*x.v.shape[:4], size**2)
    keys = None if x.k is None else taps(x.k)
    if x.use_qk and x.q is not None and keys is not None:
        logits = logits + scale * (x.q.unsqueeze(-2) * keys).sum(-1)
    if x.rel_k is not None and x.q is not None:
        rows = x.rel_k[:, None, None]
        logits = logits + scale * (x.q.unsqueeze(-2) * rows).sum(-1)
    if x.rel_q is not None and keys is not None:
        logits = logits + scale * (x.rel_q[:, None, None] * keys).sum(-1)
    if x.rel_bias is not None:
        logits = logits + x.rel_bias[:, None, None]
    seen = taps(torch.ones_like(x.v[..., :1])).squeeze(-1)
    seen = seen if border == "mask" else torch.ones_like(seen)
    return (_weights(logits, seen, norm, size).unsqueeze(-1) * taps(x.v)).sum(-2)


def window_definition(
    x: Eq4Inputs, norm: str, size: int, excluded: Tensor | None, scale: float
) -> Tensor:  # fmt: skip
    """Eq. 4 on windows, pair by pair."""
    batch, heads, height, width, depth = x.v.shape
    rows, columns = height // size, width // size

    def cut(t: Tensor) -> Tensor:
        t = t.reshape(batch, heads, rows, size, columns, size, depth).transpose(3, 4)
        return t.reshape(batch, heads, rows * columns, size**2, depth)

    v = cut(x.v)
    away = torch.arange(size, device=v.device)
    away = away[None, :] - away[:, None] + size - 1
    offsets = (away[:, None, :, None] * (2 * size - 1) + away[None, :, None, :]).flatten(2)
    offsets = offsets.flatten(0, 1)
    q, k = (None if t is None else cut(t).unsqueeze(at) for t, at in ((x.q, -2), (x.k, -3)))
    logits = v.new_zeros(batch, heads, rows * columns, size**2, size**2)
    if x.use_qk and q is not None and k is not None:
        logits = logits + scale * (q * k).sum(-1)
    for numbers, table in ((q, x.rel_k), (k, x.rel_q)):
        if numbers is not None and table is not None:
            logits = logits + scale * (numbers * table[:, offsets].unsqueeze(1)).sum(-1)
    if x.rel_bias is not None:
        logits = logits + x.rel_bias[:, offsets].unsqueeze(1)
    seen = torch.ones_like(logits) if excluded is None else (~excluded).expand_as(logits).float()
    out = (_weights(logits, seen, norm, size) @ v).view(
        batch, heads, rows, columns, size, size, depth
    )
    return out.transpose(3, 4).reshape(x.v.shape)


def _weights(logits: Tensor, seen: Tensor, norm: str, size: int) -> Tensor:
    """Weights from logits, 0 where ``seen`` is."""
    if norm == "softmax":
        return logits.masked_fill(seen == 0, float("-inf")).softmax(-1)
    if norm == "filter_norm":
        count = seen.sum(-1, keepdim=True)
        apart = (logits - (logits * seen).sum(-1, keepdim=True) / count) * seen
        spread = (apart.square().sum(-1, keepdim=True) / (count - 1)).sqrt()
        return 2**0.5 / size * apart / (spread + 1e-10)
    return logits * seen


def compare(
    case: Any, device: torch.device, forward: Callable[..., Any],
    backward: Callable[..., Sequence[Tensor | None]],
) -> str | None:  # fmt: skip
    """Say which result of a pair of functions differs from the definition, or None."""
    draw = torch.Generator().manual_seed(0)
    (batch, heads, height, width), side, way = SHAPE, case.size, case.area
    right: Callable[..., Tensor] = definition
    if case.of_windows:
        height, width, side, right = 2 * side, 3 * side, 2 * side - 1, window_definition
        way = _some_excluded(case.size, device) if case.area == "shifted" else None

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device, case.kind)

    maps, tables = (batch, heads, height, width, case.depth), (heads, side**2, case.depth)
    shapes: list[tuple[int, ...]] = [maps, maps, maps, tables, tables, tables[:2]]
    *there, use_qk = case.terms
    present = (*there[:2], True, *there[2:])
    given = [normal(*s) if here else None for s, here in zip(shapes, present, strict=True)]
    grad, options = normal(*maps), (case.norm, case.size, way, case.depth**-0.5)
    x = _inputs(given, use_qk)
    out, kept, _ = forward(x, *options, True)
    found = [out, *backward(grad, kept, x, *options)]
    leaves = [None if t is None else t.float().requires_grad_() for t in given]
    want = right(_inputs(leaves, use_qk), *options)
    torch.autograd.backward(want, grad.float())
    wanted = [want, *(None if leaf is None else leaf.grad for leaf in leaves)]
    names = ("output", "dq", "dk", "dv", "drel_k", "drel_q", "dbias")
    for name, got, good in zip(names, found, wanted, strict=True):
        if got is not None and good is not None:
            error = (got.float() - good).abs().max().item() / good.abs().max().item()
            if not error <= ALLOWED:
                return f"{name} is off by {error:.1%} of its largest number"
    return None


def _some_excluded(size: int, device: torch.device) -> Tensor:
    """Pairs of pixels that windows after the first do not have, of six; every pixel has some."""
    pixel = torch.arange(6, device=device)[:, None] * torch.arange(size**2, device=device) % 2
    return pixel[:, :, None] != pixel[:, None, :]


def _inputs(given: Sequence[Any], use_qk: bool) -> Eq4Inputs:
    q, k, v, rel_k, rel_q, rel_bias = given
    return Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias, use_qk)
