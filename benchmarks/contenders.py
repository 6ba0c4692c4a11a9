"""The operators and their peers at one stage: what is called, on what, and that they agree.

LSA (SDPA) is softmax window attention by torch's scaled_dot_product_attention. A contender that
computes something else, or is spared something, is marked with an asterisk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_study.ops import functional, reference
from lsa_study.ops.ddf import apply_decoupled

STAGES = ((56, 3), (28, 6), (14, 12))
DEPTH, SIZE = 32, 7
BASE = "LSA (SDPA)"
Inputs = list[Tensor]
SLOW = (
    "Net7-N, unfold", "Net7-N, torch.compile of shifts", "Net7-N, loop of shifts",
    "Net7-N, sliding chunks*", "Net7-N, qk + bias, FlexAttention*", "filters, unfold",
)  # fmt: skip
"""Timed apart, so that the others' medians rest on many rounds."""


def projected(batch: int, side: int, heads: int, device: torch.device) -> Inputs:
    """Queries, keys and values as one projection leaves them: views of (B, H, W, 3, h, d)."""
    qkv = torch.randn(batch, side, side, 3, heads, DEPTH, device=device)
    return list(qkv.permute(3, 0, 4, 1, 2, 5).unbind(0))


def attention(application: str, implementation: str) -> Callable[..., Tensor]:
    """Eq. 4 with softmax on (q, k, v, tables...)."""

    def call(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        rel_k, rel_q, bias = (*[None] * (3 - len(tables)), *tables)
        return functional.spatial_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax",
            application=application, size=SIZE, implementation=implementation,
        )  # fmt: skip

    return call


def tables(heads: int, offsets: int, terms: str, device: torch.device) -> Inputs:
    """The parameters that a set of terms reads."""
    made = [torch.randn(heads, offsets, DEPTH, device=device) * 0.1 for _ in range(2)]
    bias = torch.randn(heads, offsets, device=device) * 0.1
    return [*made, bias] if terms == "all" else [bias]


def shifts(q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, rel_q: Tensor, bias: Tensor) -> Tensor:
    """A loop over the 49 shifts, for torch.compile."""
    reach, (height, width) = SIZE // 2, v.shape[2:4]
    keys, values = (F.pad(t, (0, 0, reach, reach, reach, reach)) for t in (k, v))
    offsets = [(dy, dx) for dy in range(SIZE) for dx in range(SIZE)]

    def there(x: Tensor, dy: int, dx: int) -> Tensor:
        return x[:, :, dy : dy + height, dx : dx + width]

    logits = torch.stack(
        [
            ((q + rel_q[:, t, None, None]) * there(keys, *at) + q * rel_k[:, t, None, None]).sum(-1)
            * DEPTH**-0.5
            + bias[:, t, None, None]
            for t, at in enumerate(offsets)
        ],
        -1,
    ).softmax(-1)
    return sum(logits[..., t, None] * there(values, *at) for t, at in enumerate(offsets))


def flexing(side: int, device: torch.device) -> Callable[..., Tensor]:
    """Eq. 4 with q.k and bias by torch's FlexAttention, compiled; the border is masked."""
    reach = SIZE // 2

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        down, right = j // side - i // side, j % side - i % side
        return (down.abs() <= reach) & (right.abs() <= reach)

    compiled = torch.compile(flex_attention)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            down = (j // side - i // side + reach).clamp(0, SIZE - 1)
            right = (j % side - i % side + reach).clamp(0, SIZE - 1)
            return logit + bias[h, down * SIZE + right]

        flat = (t.flatten(2, 3) for t in (q, k, v))
        return compiled(*flat, score_mod=score, block_mask=mask).unflatten(2, (side, side))

    mask = create_block_mask(near, None, None, side**2, side**2, device=device)
    return call


def contenders(
    batch: int, side: int, heads: int, device: torch.device, *, slow: bool, forward: bool
) -> dict:
    """(call, inputs, gradient) by name, with the slow peers or without."""
    channels, taps = heads * DEPTH, SIZE**2
    qkv, gradient = (
        projected(batch, side, heads, device),
        torch.randn(batch, heads, side, side, DEPTH, device=device),
    )
    window, area = (2 * SIZE - 1) ** 2, taps
    # On a GPU ``auto`` leaves these windows to SDPA, which is timed already.
    own = "fused" if device.type == "cuda" else "auto"
    lsa = [*qkv, *tables(heads, window, "bias", device)]
    near = [*qkv, *tables(heads, area, "all", device)]
    full = [*qkv, *tables(heads, window, "all", device)]
    found = {
        BASE: (_sdpa, lsa, gradient),
        "SDPA, ready windows*": (_ready, [*map(_windows, qkv), lsa[-1]], _windows(gradient)),
        "LSA": (attention("window", own), lsa, gradient),
        "Net7 window, plain": (attention("window", "reference"), full, gradient),
        "Net7 window": (attention("window", "auto"), full, gradient),
        "Net7-N": (attention("neighboring", "auto"), near, gradient),
        "Net7-N, qk + bias": (attention("neighboring", "auto"),
                              [*qkv, *tables(heads, area, "bias", device)], gradient),
    }  # fmt: skip
    if slow:
        compiled = torch.compile(shifts)
        found["Net7-N, unfold"] = (attention("neighboring", "unfold"), near, gradient)
        found["Net7-N, torch.compile of shifts"] = (compiled, near, gradient)
        found["Net7-N, loop of shifts"] = (shifts, near, gradient)
        found["Net7-N, sliding chunks*"] = (_chunks, near, gradient)
        if forward:
            found["Net7-N, qk + bias, FlexAttention*"] = (
                flexing(side, device),
                [*qkv, near[-1]],
                gradient,
            )
    values = torch.randn(batch, side, side, channels, device=device)
    filters = torch.randn(batch, side, side, heads, taps, device=device).softmax(-1)
    one = torch.randn(batch, side, side, 1, taps, device=device).softmax(-1)
    static = torch.randn(channels, SIZE, SIZE, device=device)
    per_image = torch.randn(batch, channels, taps, device=device)
    flat = torch.randn(batch, side, side, channels, device=device)
    found |= {
        "filters": (_apply("auto"), [values, filters], flat),
        "filters + ghost add": (_apply("auto"), [values, filters, static], flat),
        "DDF": (_ddf, [values, one, per_image], flat),
        "static filters": (_static, [values, static], flat),
        "depthwise conv, channels-last": (reference.static_filters, [values, static], flat),
    }
    if slow:
        found["filters, unfold"] = (_apply("unfold"), [values, filters], flat)
    hidden = channels * 2 // 3  # ELSA's channels of q and k
    product = torch.randn(batch, side, side, hidden, device=device)
    taps_of_four = torch.randn(hidden, 4, SIZE, SIZE, device=device)
    for name, way in (
        ("grouped conv", "auto"),
        ("grouped conv, torch, channels-last", "reference"),
    ):
        found[name] = (_grouped(way), [product, taps_of_four], product)
    return found


def _grouped(implementation: str) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return functional.grouped_conv(x, weight, None, implementation)

    return call


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    given = Eq4Inputs(q, k, v, rel_bias=bias)
    return functional.window_by_sdpa(given, SIZE, None, DEPTH**-0.5)


def _windows(x: Tensor) -> Tensor:
    tiles = reference.to_windows(x, (SIZE, SIZE))
    return tiles.flatten(1, 2).contiguous()


def _mask(q: Tensor, bias: Tensor) -> Tensor:
    whole = bias[:, None, reference.window_offsets((SIZE, SIZE), bias.device)]
    return whole.expand(-1, q.shape[1] // len(bias), -1, -1).flatten(0, 1)[None]


def _ready(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(q, bias), scale=DEPTH**-0.5)


def backend(batch: int, side: int, heads: int, device: torch.device, *, learns: bool) -> str:
    """Which of its ways torch takes for LSA (SDPA), as it names them."""
    q, k, v = map(_windows, projected(batch, side, heads, device))
    bias = torch.zeros(heads, (2 * SIZE - 1) ** 2, device=device, requires_grad=learns)
    with torch.set_grad_enabled(learns):
        given = (t.requires_grad_(learns) for t in (q, k, v))
        chosen = torch._fused_sdp_choice(*given, attn_mask=_mask(q, bias), scale=DEPTH**-0.5)
    return SDPBackend(chosen).name.lower().replace("_", " ")


def _chunks(q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
    rel_k, rel_q, bias = parameters
    return functional.spatial_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax", size=SIZE,
        application="neighboring", border="mask", implementation="sdc",
    )  # fmt: skip


def _apply(implementation: str) -> Callable[..., Tensor]:
    def call(values: Tensor, filters: Tensor, add: Tensor | None = None) -> Tensor:
        return functional.apply_filters(
            values, filters, ghost_add=add, kernel_size=SIZE, implementation=implementation
        )

    return call


def _ddf(values: Tensor, filters: Tensor, channel: Tensor) -> Tensor:
    return apply_decoupled(values, filters, channel, combine="mul", kernel_size=SIZE)


def _static(values: Tensor, filters: Tensor) -> Tensor:
    return lsa_kernels.apply_filters(values, None, add=filters.flatten(1), size=SIZE)


def compare(found: dict) -> None:
    """Hold every contender of a group to its first one before anything is timed."""
    groups = (
        (BASE, "LSA"),
        ("Net7 window", "Net7 window, plain"),
        ("Net7-N", "Net7-N, unfold", "Net7-N, loop of shifts", "Net7-N, torch.compile of shifts"),
        ("filters", "filters, unfold"),
        ("static filters", "depthwise conv, channels-last"),
        ("grouped conv", "grouped conv, torch, channels-last"),
    )
    for first, *others in groups:
        with torch.no_grad():
            call, inputs, _ = found[first]
            want = call(*inputs)
            for other in others:
                if other in found:
                    call, inputs, _ = found[other]
                    worst = (call(*inputs) - want).abs().max().item()
                    if worst > 1e-3:
                        sys.exit(f"{other} differs from {first} by {worst:.2g}; nothing was timed")


COMPILED = ("Net7-N, torch.compile of shifts", "Net7-N, qk + bias, FlexAttention*")


def leave_out_failures(found: dict) -> None:
    """Drop peers that torch cannot compile at this size, and say so."""
    for name in COMPILED:
        if name not in found:
            continue
        call, inputs, _ = found[name]
        try:
            with torch.no_grad():
                call(*inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            print(f"{name}: left out, torch cannot compile it ({reason})")
            del found[name]


# Whose work cannot be counted takes the bound of its like: torch counts a backward of grouped
# convolutions as if they were dense, element-wise products not at all, and compiles nothing while
# it counts.
LIKE = {
    "SDPA, ready windows*": BASE,
    "Net7-N, loop of shifts": "Net7-N",
    "Net7-N, torch.compile of shifts": "Net7-N",
    "Net7-N, qk + bias, FlexAttention*": "Net7-N, qk + bias",
    "depthwise conv, channels-last": "static filters",
    "grouped conv, torch, channels-last": "grouped conv",
}
