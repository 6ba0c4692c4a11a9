"""From settings to an operator at its place in a backbone. To add one: add its line to BUILDERS.

Which terms, norms and areas exist is said in :mod:`lsa_study.config`; what they compute, in
:mod:`lsa_study.ops`. Here stands what depends on the place: channels, heads, shift, last stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lsa_study import ops
from lsa_study.config.operators import (
    DdfOp,
    DwConvOp,
    DwNetOp,
    DynamicDwConvOp,
    ElsaOp,
    Heads,
    Op,
    OutlookOp,
    UnifiedOp,
)
from lsa_study.errors import ConfigError
from lsa_study.models.blocks import ChannelsLastBatchNorm, SpatialBlock


@dataclass(frozen=True)
class Place:
    """Where an operator stands.

    ``dim`` channels; ``heads`` of the backbone itself (Fig. 2's 1x); ``map_size``: height and
    width of the stage's map in pixels; ``odd``: every second block of a stage, whose windows are
    shifted; ``last_stage`` of the backbone; ``qkv_bias``: whether its projections have a bias.
    """

    dim: int
    heads: int
    map_size: tuple[int, int]
    odd: bool
    last_stage: bool
    qkv_bias: bool = True


def build(op: Op, place: Place) -> nn.Module:
    """Build the operator that ``op`` asks for at ``place``.

    Raises:
        ConfigError: the heads asked for do not divide the channels there.
    """
    return BUILDERS[op.kind](op, place)


def build_block(
    op: Op, place: Place, *, drop_path: float = 0.0, mlp_ratio: float = 4.0
) -> SpatialBlock:
    """Build the residual block around the operator that ``op`` asks for at ``place``.

    Layers in DWNet's shell are their own first norm, and batch norm stands before the perceptron.
    """
    spatial = build(op, place)
    shell = isinstance(spatial, ops.DwNetShell)
    return SpatialBlock(
        place.dim,
        spatial,
        norm1=nn.Identity() if shell else None,
        norm2=ChannelsLastBatchNorm(place.dim) if shell else None,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
    )


def _unified(op: UnifiedOp, place: Place) -> nn.Module:
    if op.application == "window" or (place.last_stage and op.last_stage == "window"):
        return _window(op, place)
    return ops.UnifiedSpatialOp(
        place.dim,
        _heads(op.heads, place),
        terms=op.terms,
        norm=op.norm,
        application="neighboring",
        size=op.size,
        border=op.border,
        qkv_bias=place.qkv_bias,
        implementation=op.implementation,
    )


def _window(op: UnifiedOp, place: Place) -> nn.Module:
    # A side of the map shorter than the window is one window of that length, as in timm. On maps of
    # 3 pixels and fewer the shift of the other side shrinks too; timm keeps it.
    rows, columns = (min(op.size, side) for side in place.map_size)
    # unfold and sdc are ways to gather neighborhoods; the last stage's window has no use for them.
    implementation = op.implementation if op.implementation not in ("unfold", "sdc") else "auto"
    return ops.UnifiedSpatialOp(
        place.dim,
        _heads(op.heads, place),
        terms=op.terms,
        norm=op.norm,
        application="window",
        size=rows if rows == columns else (rows, columns),
        shift=min(op.size // 2, rows - 1, columns - 1) if place.odd else 0,
        qkv_bias=place.qkv_bias,
        implementation=implementation,
    )


def _swin_attention(op: ElsaOp | DwConvOp, place: Place, size: int) -> nn.Module:
    terms = UnifiedOp(
        terms=("qk", "bias"), norm="softmax", application="window", size=size, heads=op.heads
    )
    return _window(terms, place)


def _elsa(op: ElsaOp, place: Place) -> nn.Module:
    if place.last_stage and op.last_stage == "lsa":
        return _swin_attention(op, place, op.last_stage_window)
    return ops.ELSA(
        place.dim,
        _heads(op.heads, place),
        variant=op.variant,
        kernel_size=op.kernel_size,
        group_width=op.group_width,
        ghost_mul=op.ghost_mul,
        ghost_add=op.ghost_add,
        qkv_bias=place.qkv_bias,
        implementation=op.implementation,
    )


def _dwconv(op: DwConvOp, place: Place) -> nn.Module:
    if place.last_stage and op.last_stage == "lsa":
        return _swin_attention(op, place, size=7)
    return ops.DwConv(place.dim, num_heads=_heads(op.heads, place), kernel_size=op.kernel_size)


def _dwnet(op: DwNetOp, place: Place) -> nn.Module:
    conv = ops.DepthwiseConv(place.dim, kernel_size=op.kernel_size)
    return ops.DwNetShell(place.dim, conv)


def _ddwconv(op: DynamicDwConvOp, place: Place) -> nn.Module:
    conv = ops.DynamicDwConv(place.dim, kernel_size=op.kernel_size)
    return ops.DwNetShell(place.dim, conv)


def _ddf(op: DdfOp, place: Place) -> nn.Module:
    layer = ops.DDF(
        place.dim,
        num_heads=_heads(op.heads, place),
        kernel_size=op.kernel_size,
        combine=op.combine,
        reduction=op.reduction,
    )
    return ops.DwNetShell(place.dim, layer)


def _outlook(op: OutlookOp, place: Place) -> nn.Module:
    heads = _heads(op.heads, place)
    return ops.OutlookAttention(place.dim, heads, kernel_size=op.kernel_size, stride=op.stride)


def _heads(setting: Heads, place: Place) -> int:
    heads = {"1": 1, "1x": place.heads, "2x": 2 * place.heads, "C": place.dim}[setting]
    if place.dim % heads:
        raise ConfigError(
            f"model.op.heads = {setting!r}: {heads} heads do not divide {place.dim} channels; "
            "give 1, 1x or C"
        )
    return heads


BUILDERS: dict[str, Callable[[Any, Place], nn.Module]] = {
    "unified": _unified,
    "elsa": _elsa,
    "dwconv": _dwconv,
    "dwnet": _dwnet,
    "ddwconv": _ddwconv,
    "ddf": _ddf,
    "outlook": _outlook,
}
"""``kind`` in the settings -> builder."""
