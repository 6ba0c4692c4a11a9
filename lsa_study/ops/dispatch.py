"""Which implementation computes an operator: ``auto`` takes the fastest that fits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

import lsa_kernels
from lsa_study.ops import functional
from lsa_study.ops import neighboring as neighborhoods
from lsa_study.ops.checks import Size, sides

IMPLEMENTATIONS = ("auto", "reference", "unfold", "sdc", "fused")


def window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: Size, shift: int, scale: float,
    implementation: str,
) -> Tensor:  # fmt: skip
    """Eq. 4 on windows of whole maps, shifted alike on both axes."""
    _known(implementation, ("unfold", "sdc"), "windows; give auto, reference or fused")
    height, width = v.shape[2:4]
    excluded = functional.shift_bands(height, width, size, (shift, shift), v.device)
    if shift:
        q, k, v = (None if t is None else t.roll((-shift, -shift), (2, 3)) for t in (q, k, v))  # type: ignore[assignment]
    out = rolled_window(
        q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, excluded, scale, implementation
    )
    return out.roll((shift, shift), (2, 3)) if shift else out


def rolled_window(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: Size, excluded: Tensor | None,
    scale: float, implementation: str,
) -> Tensor:  # fmt: skip
    """Eq. 4 on windows of maps that are rolled and padded already."""
    area = sides(size)
    plain = norm == "softmax" and use_qk and rel_k is None and rel_q is None
    by_sdpa = implementation == "auto" and plain and q is not None and k is not None
    if implementation in ("auto", "fused"):
        reason = lsa_kernels.why_not_window(q, k, v, rel_k, rel_q, rel_bias, excluded, size=area)
        if reason is None and (implementation == "fused" or _worth_it(v, area, by_sdpa)):
            return lsa_kernels.window_attention(
                q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=rel_bias, use_qk=use_qk, norm=norm,
                size=area, excluded=excluded, scale=scale,
            )  # fmt: skip
        if implementation == "fused":
            raise ValueError(f"implementation='fused' cannot run: {reason}")
    if by_sdpa:
        return window_by_sdpa(q, k, v, rel_bias, size, excluded, scale)  # type: ignore[arg-type]
    return functional.window(
        q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, excluded, scale
    )  # fmt: skip


def _worth_it(v: Tensor, area: tuple[int, int], by_sdpa: bool) -> bool:
    """Whether enough of the fused kernel's lanes, a window each, would be in use.

    The shares are measured: with a batch of 8 or more the kernel is 1.1 to 1.8 times as fast as
    torch's own attention, and about twice as fast as the plain definition. On a GPU lanes are
    pixels, and torch's own attention keeps what it can compute.
    """
    if v.is_cuda:
        # Unmeasured: neither the kernel nor this choice was run on a GPU.
        return not by_sdpa
    lanes = lsa_kernels.window_lanes()
    windows = v.shape[0] * (v.shape[2] // area[0]) * (v.shape[3] // area[1])
    in_use = windows / (-(-windows // lanes) * lanes) if windows else 1.0
    return in_use >= (0.7 if by_sdpa else 0.4)


def neighboring(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, size: int, border: str, scale: float,
    implementation: str,
) -> Tensor:  # fmt: skip
    """Eq. 4 on every pixel's own neighborhood."""
    _known(implementation)
    if implementation in ("auto", "fused"):
        reason = lsa_kernels.why_not_neighboring(q, k, v, rel_k, rel_q, rel_bias, size=size)
        if reason is None:
            return lsa_kernels.neighboring_attention(
                q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=rel_bias, use_qk=use_qk, norm=norm,
                size=size, border=border, scale=scale,
            )  # fmt: skip
        if implementation == "fused":
            raise ValueError(f"implementation='fused' cannot run: {reason}")
    if implementation == "sdc" and border != "mask":
        raise ValueError(
            f"implementation='sdc' excludes pixels outside the map, border={border!r} does not; "
            "give border='mask'"
        )
    ways = {"reference": functional.neighboring, "unfold": neighborhoods.unfold}
    way = ways.get(implementation, neighborhoods.tiled)
    return way(q, k, v, rel_k, rel_q, rel_bias, use_qk, norm, size, border, scale)


def apply(
    values: Tensor, filters: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None,
    kernel_size: int, implementation: str,
) -> Tensor:  # fmt: skip
    """Per-pixel filters, expanded by the ghost head, on values."""
    _known(implementation, ("sdc",), "filters; give auto, reference, unfold or fused")
    if implementation in ("auto", "fused"):
        mul, add = (None if t is None else t.flatten(1) for t in (ghost_mul, ghost_add))
        reason = lsa_kernels.why_not_filters(values, filters, mul, add, size=kernel_size)
        if reason is None:
            return lsa_kernels.apply_filters(values, filters, mul=mul, add=add, size=kernel_size)
        if implementation == "fused":
            raise ValueError(f"implementation='fused' cannot run: {reason}")
        if ghost_mul is None and ghost_add is not None:
            # Without the multiplied matrix the added one is a depthwise convolution.
            dynamic = functional.apply_reference(values, filters, None, None, kernel_size)
            return dynamic + functional.static_filters(values, ghost_add)
    way = neighborhoods.apply_unfold if implementation == "unfold" else functional.apply_reference
    return way(values, filters, ghost_mul, ghost_add, kernel_size)


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None, implementation: str) -> Tensor:
    """A convolution of channels-last maps (B, H, W, C) in groups, of the same size out."""
    if implementation in ("auto", "fused") and not lsa_kernels.why_not_grouped_conv(
        x, weight, bias
    ):
        return lsa_kernels.grouped_conv(x, weight, bias)
    channels, width, size = weight.shape[:3]
    maps = F.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, padding=size // 2, groups=channels // width
    )
    return maps.permute(0, 2, 3, 1)


def decoupled(
    values: Tensor, spatial: Tensor, channel: Tensor, combine: str, kernel_size: int, dilation: int
) -> Tensor:
    """Filters per pixel and head, times or plus filters per image and channel."""
    mul, add = (channel, None) if combine == "mul" else (None, channel)
    if dilation == 1 and not lsa_kernels.why_not_filters(
        values, spatial, mul, add, size=kernel_size
    ):
        return lsa_kernels.apply_filters(values, spatial, mul=mul, add=add, size=kernel_size)
    return functional.decoupled(values, spatial, channel, combine, kernel_size, dilation)


def static(values: Tensor, filters: Tensor) -> Tensor:
    """One filter per channel, the same at every pixel."""
    size = filters.shape[-1]
    if lsa_kernels.why_not_filters(values, None, None, filters, size=size):
        return functional.static_filters(values, filters)
    return lsa_kernels.apply_filters(values, None, add=filters.flatten(1), size=size)


def window_by_sdpa(
    q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None, size: Size, excluded: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """Softmax windows with q.k and bias, which torch's own attention computes."""
    height, width = v.shape[2:4]
    q, k, v = (functional.to_windows(t, size) for t in (q, k, v))
    mask = None
    if rel_bias is not None:
        mask = rel_bias[:, None, functional.window_offsets(size, v.device)].to(v.dtype)
    if excluded is not None:
        floor = v.new_zeros(excluded.shape).masked_fill(excluded, float("-inf"))
        mask = floor if mask is None else mask + floor
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return functional.from_windows(out, size, height, width)


def _known(implementation: str, refused: tuple[str, ...] = (), purpose: str = "") -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown; known: {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation in refused:
        raise ValueError(f"implementation={implementation!r} does not compute {purpose}")
