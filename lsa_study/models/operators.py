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
    AnyShell,
    DwConvOp,
    DwNetOp,
    ElsaOp,
    Heads,
    Op,
    OutsideOp,
    UnifiedOp,
)
from lsa_study.errors import ConfigError
from lsa_study.models import outside
from lsa_study.models.blocks import ChannelsLastBatchNorm, SpatialBlock

LSA = UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window")
"""Swin's own attention."""


@dataclass(frozen=True)
class BlockContext:
    """Where an operator stands.

    ``dim`` channels; ``heads`` of the backbone itself (Fig. 2's 1x); ``map_size``: height and
    width of the stage's map in pixels; ``odd``: every second block of a stage, whose windows are
    shifted; ``last_stage`` of the backbone; ``qkv_bias``: whether its projections have a bias;
    ``stride``: pixels between two that leave the operator, where that can stride.
    """

    dim: int
    heads: int
    map_size: tuple[int, int]
    odd: bool
    last_stage: bool
    qkv_bias: bool = True
    stride: int = 1


def build_block(
    op: Op, place: BlockContext, *, drop_path: float = 0.0, mlp_ratio: float = 4.0
) -> SpatialBlock:
    """Build the residual block around the operator that ``op`` asks for at ``place``.

    Layers in DWNet's shell are their own first norm, and batch norm stands before the perceptron.

    Raises:
        ConfigError: the heads asked for do not divide the channels there.
    """
    spatial = build_operator(op, place)
    shell = isinstance(spatial, ops.DwNetShell)
    return SpatialBlock(
        place.dim,
        spatial,
        norm1=nn.Identity() if shell else None,
        norm2=ChannelsLastBatchNorm(place.dim) if shell else None,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
    )


def build_operator(op: Op, place: BlockContext) -> nn.Module:
    """Build the operator that ``op`` asks for at ``place``; it maps (B, H, W, C) to the same.

    Raises:
        ConfigError: the heads asked for do not divide the channels there, or a class from outside
            is not what it should be.
    """
    if isinstance(op, OutsideOp):
        return outside.build_operator(op, dim=place.dim, heads=place.heads, map_size=place.map_size)
    if place.last_stage and isinstance(op, ElsaOp | DwConvOp) and op.last_stage == "lsa":
        size = op.last_stage_window if isinstance(op, ElsaOp) else LSA.size
        op = LSA.model_copy(update={"size": size, "heads": op.heads})
    return BUILDERS[op.kind](op, place)


def _unified(op: UnifiedOp, place: BlockContext) -> nn.Module:
    options = _options(op)
    if op.application == "window" or (place.last_stage and op.last_stage == "window"):
        # A side of the map shorter than the window is one window of that length, as in timm. On
        # maps of 3 pixels and fewer the shift of the other side shrinks too; timm keeps it.
        rows, columns = (min(op.size, side) for side in place.map_size)
        options |= {
            "application": "window",
            "border": "zero",
            "size": rows if rows == columns else (rows, columns),
            "shift": min(op.size // 2, rows - 1, columns - 1) if place.odd else 0,
        }
        # These are ways to gather neighborhoods; the last stage's window has no use for them.
        if op.implementation in ("unfold", "sdc", "flex"):
            options["implementation"] = "auto"
    return ops.UnifiedSpatialOp(
        place.dim, _heads(op.heads, place), qkv_bias=place.qkv_bias, **options
    )


def _options(op: Op) -> dict[str, Any]:
    """The settings that an operator takes as they are, under the same names."""
    return op.model_dump(exclude={"kind", "heads", "last_stage", "last_stage_window", "shell"})


def _heads(setting: Heads, place: BlockContext) -> int:
    heads = {"1": 1, "1x": place.heads, "2x": 2 * place.heads, "C": place.dim}[setting]
    if place.dim % heads:
        raise ConfigError(
            f"model.op.heads = {setting!r}: {heads} heads do not divide {place.dim} channels; "
            "give 1, 1x or C"
        )
    return heads


def _depthwise(op: DwConvOp | DwNetOp, place: BlockContext, heads: int) -> nn.Module:
    if op.shell == "dwnet":
        return ops.DwNetShell(place.dim, ops.DepthwiseConv(place.dim, **_options(op)))
    return ops.DwConv(place.dim, num_heads=heads, **_options(op))


SHELLS: dict[AnyShell, Callable[[int, nn.Module], nn.Module]] = {
    "linear": ops.LinearShell,
    "dwnet": ops.DwNetShell,
    "none": lambda dim, layer: layer,
}
"""What stands around a layer that brings no projections of its own."""
BUILDERS: dict[str, Callable[[Any, BlockContext], nn.Module]] = {
    "unified": _unified,
    "elsa": lambda op, place: ops.ELSA(
        place.dim, _heads(op.heads, place), qkv_bias=place.qkv_bias, **_options(op)
    ),
    "dwconv": lambda op, place: _depthwise(op, place, _heads(op.heads, place)),
    "dwnet": lambda op, place: _depthwise(op, place, place.dim),
    "ddwconv": lambda op, place: SHELLS[op.shell](
        place.dim, ops.DynamicDwConv(place.dim, **_options(op))
    ),
    "ddf": lambda op, place: SHELLS[op.shell](
        place.dim,
        ops.DDF(place.dim, num_heads=_heads(op.heads, place), stride=place.stride, **_options(op)),
    ),
    "conv": lambda op, place: SHELLS[op.shell](
        place.dim, ops.Conv(place.dim, stride=place.stride, **_options(op))
    ),
    "outlook": lambda op, place: ops.OutlookAttention(
        place.dim, _heads(op.heads, place), **_options(op)
    ),
}
"""``kind`` in the settings -> builder."""
