"""Eq. 4 of the article and filters as functions; ``auto`` takes the fastest way that fits.

The definitions are in :mod:`lsa_study.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_study.ops import choices, reference
from lsa_study.ops import unfold as unfolded
from lsa_study.ops.checks import Size, check_attention, check_filters, check_implementation, sides
from lsa_study.ops.flex import flex, why_not_flex
from lsa_study.ops.precision import rounded_once
from lsa_study.ops.reference import filter_norm as filter_norm
from lsa_study.ops.sdpa import why_not_fused, window_by_sdpa
from lsa_study.vocabulary import Application, Border, Norm

KERNELS = ("auto", "fused")
"""Implementations that ask for the kernels."""
QUICK_CONVOLUTION = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether torch convolves by oneDNN's kernels for AVX-512 here."""


def kernels_on(kind: str) -> str:
    """Name the fused kernels that ``auto`` takes on a kind of device, cpu or cuda; or why none."""
    if kind != "cuda":
        return str(lsa_kernels.build_info())
    missing = lsa_kernels.gpu.why_missing()
    if missing:
        return f"no Triton kernels: {missing}"
    areas = ("neighborhoods", "windows")
    reasons = {area: lsa_kernels.gpu.why_no_tensor_cores(area) for area in areas}
    taken = [area for area, reason in reasons.items() if reason is None]
    cores = "no tensor cores" if not taken else f"tensor cores for {taken[0]} alone"
    why = next((f": {reason}" for reason in reasons.values() if reason), None)
    table, _ = choices.table_of(torch.device("cuda"))
    by = f" by table {table.digest}" if table else ""
    return f"Triton kernels{by}, {cores}{why}" if why else f"Triton kernels{by}, tensor cores"


def spatial_attention(
    q: Tensor | None, k: Tensor | None, v: Tensor, *, rel_k: Tensor | None = None,
    rel_q: Tensor | None = None, rel_bias: Tensor | None = None, use_qk: bool = True, norm: Norm,
    application: Application, size: Size, shift: int = 0, border: Border = "zero",
    scale: float | None = None, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Apply Eq. 4 to projected queries, keys and values.

    Their Phi is ``application`` with ``size``; their Norm is ``norm``; their r^k, r^q and r^b are
    ``rel_k``, ``rel_q`` and ``rel_bias``, per head.

    Args:
        q, k, v: (B, h, H, W, d), any strides. q or k may be None where no chosen term reads it.
        rel_k, rel_q: (h, offsets, d). None leaves the term out.
        rel_bias: (h, offsets). None leaves the term out.
        use_qk: whether the term q.k is in.
        norm: identity, filter_norm (gain sqrt(2)/size) or softmax.
        application: window, where H and W are multiples of ``size`` and there are
            (2*size-1)**2 offsets; or neighboring, where ``size`` is odd and there are size**2.
        size: side of the area; a window may have (rows, columns).
        shift: window only; the map is rolled by it on both axes before it is cut and back after.
            Pixels that were not neighbors before the roll get weight 0, outside the norm.
        border: neighboring only. zero: taps outside the map stay in the norm with a key of 0
            and add nothing to the sum; mask: they are left out of the norm too.
        scale: on all three dot products, none on the bias; None means d**-0.5.
        implementation: auto, reference, unfold, sdc (border mask only), flex (softmax only; on a
            CPU without gradients) or fused. auto takes the fastest that fits, on a GPU as a table
            of choices says (``lsa_study.ops.choices``).

    Returns:
        (B, h, H, W, d).

    Raises:
        ValueError: the shapes do not fit together, an option is unknown, or the implementation
            cannot take these inputs (the message says why).
    """
    x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias, use_qk)
    check_attention(x, norm, application, size, shift, border)
    scale = v.shape[-1] ** -0.5 if scale is None else scale
    if application == "neighboring":
        return neighboring(x, norm, sides(size)[0], border, scale, implementation)
    known = "windows; give auto, reference or fused"
    check_implementation(implementation, ("unfold", "sdc", "flex"), known)
    height, width = v.shape[2:4]
    excluded = reference.shift_bands(height, width, size, (shift, shift), v.device)
    if shift:
        x = x.of_maps(lambda t: t.roll((-shift, -shift), (2, 3)))
    out = rolled_window(x, norm, size, excluded, scale, implementation)
    return out.roll((shift, shift), (2, 3)) if shift else out


def rolled_window(
    x: Eq4Inputs, norm: str, size: Size, excluded: Tensor | None, scale: float, implementation: str
) -> Tensor:
    """Eq. 4 on windows of maps that are rolled and padded already.

    Args:
        excluded: pairs that are left out, as ``reference.shift_bands`` gives them.
    """
    area = sides(size)
    if implementation == "auto":
        implementation = _window_way(x, norm, area, excluded)
    if implementation == "fused":
        _takes(implementation, lsa_kernels.why_not_window(*x[:6], excluded, size=area))
        return lsa_kernels.window_attention(
            *x[:3], rel_k=x.rel_k, rel_q=x.rel_q, rel_bias=x.rel_bias, use_qk=x.use_qk,
            norm=norm, size=area, excluded=excluded, scale=scale,
        )  # fmt: skip
    if implementation == "sdpa":
        return window_by_sdpa(x, size, excluded, scale)
    return reference.window(x, norm, size, excluded, scale)


def _window_way(x: Eq4Inputs, norm: str, area: tuple[int, int], excluded: Tensor | None) -> str:
    """What ``auto`` takes: as it was measured on this device, else what is known to be safe."""
    plain = norm == "softmax" and x.use_qk and x.rel_k is None and x.rel_q is None
    fused = lsa_kernels.why_not_window(*x[:6], excluded, size=area) is None
    # Where torch's attention cannot be its fused one, the plain definition is faster.
    sdpa = plain and not why_not_fused(x.v, x.rel_bias)
    if choices.wanted(x.v.device.type, x.v.device.index):
        case = choices.eq4_case(x, norm, area, "whole" if excluded is None else "shifted")
        chosen = choices.way_of(case, x.v.device)
        if {"fused": fused, "sdpa": sdpa, "reference": True}.get(chosen or ""):
            return str(chosen)
    if fused and _worth_it(x, area, plain):
        return "fused"
    return "sdpa" if sdpa else "reference"


def _worth_it(x: Eq4Inputs, area: tuple[int, int], plain: bool) -> bool:
    """Whether enough of the fused kernel's lanes, a window each, would be in use.

    Measured on a CPU: where tables are read, the kernel is twice as fast as the definition with one
    window already. Without them it is faster than the definition and torch's fused attention once
    four fifths of its lanes are in use. On a GPU lanes are pixels, and torch's own attention keeps
    the softmax of q.k and bias (``plain``), which it can compute.
    """
    if x.v.is_cuda:
        # Unmeasured: neither the kernel nor this choice was run on a GPU.
        return not plain
    if x.rel_k is not None or x.rel_q is not None:
        return True
    windows = x.v.shape[0] * (x.v.shape[2] // area[0]) * (x.v.shape[3] // area[1])
    lanes = lsa_kernels.window_lanes(windows, tables=False)
    return windows == 0 or windows / (-(-windows // lanes) * lanes) >= 0.8


def neighboring(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, implementation: str
) -> Tensor:
    """Eq. 4 on every pixel's own neighborhood; see ``spatial_attention``."""
    check_implementation(implementation)
    if implementation == "auto" and choices.wanted(x.v.device.type, x.v.device.index):
        chosen = choices.way_of(choices.eq4_case(x, norm, size, border), x.v.device)
        if chosen == "reference" or (chosen == "flex" and not why_not_flex(x, norm)):
            implementation = chosen
    if implementation in KERNELS and _takes(
        implementation, lsa_kernels.why_not_neighboring(*x[:6], size=size)
    ):
        return lsa_kernels.neighboring_attention(
            *x[:3], rel_k=x.rel_k, rel_q=x.rel_q, rel_bias=x.rel_bias, use_qk=x.use_qk, norm=norm,
            size=size, border=border, scale=scale,
        )  # fmt: skip
    if implementation == "sdc" and border != "mask":
        raise ValueError(
            f"implementation='sdc' excludes pixels outside the map, border={border!r} does not; "
            "give border='mask'"
        )
    ways: dict[str, Callable[..., Tensor]] = {
        "reference": reference.neighboring, "unfold": unfolded.unfold, "flex": flex
    }  # fmt: skip
    return ways.get(implementation, unfolded.sliding_chunks)(x, norm, size, border, scale)


def apply_filters(
    values: Tensor, filters: Tensor, *, ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None, kernel_size: int, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    r"""Weigh every pixel's neighborhood by its own filters, expanded by the ghost head.

    .. math:: out_{c,p} = \sum_t (mul_{c,t} \, filters_{h(c),t,p} + add_{c,t}) \, values_{c,p+o_t}

    Source: Eq. 5 of the article. Their G is the bracket; ``ghost_mul`` is their mul_matrix already
    raised to lambda, ``ghost_add`` their add_matrix already times gamma. Channel c belongs to head
    h(c) = c // (C // heads), contiguously, as the released code has it.

    Args:
        values: (B, H, W, C).
        filters: (B, H, W, heads, K*K), used as given; heads divides C.
        ghost_mul, ghost_add: (C, K, K); None means absent (1 and 0).
        kernel_size: K, odd.
        implementation: auto, reference, unfold or fused.

    Returns:
        (B, H, W, C). Outside the map values read as zero.

    Raises:
        ValueError: the shapes do not fit together, or the implementation cannot take them.
    """
    check_filters(values, filters, ghost_mul, ghost_add, kernel_size)
    known = "filters; give auto, reference, unfold or fused"
    check_implementation(implementation, ("sdc", "flex"), known)
    if implementation == "auto" and choices.wanted(values.device.type, values.device.index):
        case = choices.filter_case(values, filters, ghost_mul, ghost_add, kernel_size)
        implementation = (
            "reference" if choices.way_of(case, values.device) == "reference" else "auto"
        )
    if implementation in KERNELS:
        mul, add = (None if t is None else t.flatten(1) for t in (ghost_mul, ghost_add))
        reason = lsa_kernels.why_not_filters(values, filters, mul, add, size=kernel_size)
        if _takes(implementation, reason):
            return lsa_kernels.apply_filters(values, filters, mul=mul, add=add, size=kernel_size)
        if ghost_mul is None and ghost_add is not None:
            # Without the multiplied matrix the added one is a depthwise convolution.
            return _added_apart(values, filters, ghost_add, kernel_size)
    way = unfolded.apply_filters if implementation == "unfold" else reference.apply_filters
    return way(values, filters, ghost_mul, ghost_add, kernel_size)


@rounded_once
def _added_apart(values: Tensor, filters: Tensor, add: Tensor, size: int) -> Tensor:
    dynamic = reference.apply_filters(values, filters, None, None, size)
    return dynamic + reference.static_filters(values, add)


def static_filters(values: Tensor, filters: Tensor) -> Tensor:
    """One (K, K) filter per channel, the same at every pixel of (B, H, W, C)."""
    size = filters.shape[-1]
    why_not = lsa_kernels.why_not_filters(values, None, None, filters, size=size)
    if why_not or _torch_is_faster(values, filters):
        return reference.static_filters(values, filters)
    return lsa_kernels.apply_filters(values, None, add=filters.flatten(1), size=size)


def _torch_is_faster(values: Tensor, filters: Tensor) -> bool:
    """Whether torch's convolution computes static filters in less time than the kernel.

    Measured on CPUs: its forward is 1.4 to 3 times as fast with AVX-512, not with AVX2, nor with
    filters longer than 9. Its backward is slower, and it rounds filters to the values' type.
    """
    learns = torch.is_grad_enabled() and (values.requires_grad or filters.requires_grad)
    plain = values.dtype == filters.dtype == torch.float32 and not values.is_cuda
    return QUICK_CONVOLUTION and plain and not learns and filters.shape[-1] <= 9


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None, implementation: str) -> Tensor:
    """A convolution of channels-last maps (B, H, W, C) in groups, of the same size out."""
    if implementation in KERNELS and not lsa_kernels.why_not_grouped_conv(x, weight, bias):
        return lsa_kernels.grouped_conv(x, weight, bias)
    channels, width, size = weight.shape[:3]
    maps = F.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, padding=size // 2, groups=channels // width
    )
    return maps.permute(0, 2, 3, 1)


def _takes(implementation: str, reason: str | None) -> bool:
    """Whether the kernel takes the inputs: there is no reason why not; refuse if it has to."""
    if reason and implementation == "fused":
        raise ValueError(f"implementation='fused' cannot run: {reason}")
    return reason is None
