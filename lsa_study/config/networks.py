"""Which operators and stems a backbone takes. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lsa_study.config.operators import AttentionOp, ConvOp, DdfOp, Group, Op, shell_of

PATCHES = {
    "swin_micro": 2, "swin_mini": 1, "swin_mini_p2": 2, "swin_mini_conv": 2, "swin": 4, "volo": 8,
    "deit_micro": 4, "deit_mini": 4, "deit": 16,
}  # fmt: skip
"""Backbone, or its family -> pixels per side of a token."""
STEM_STRIDE = 2
"""Of the first convolution of a conv stem: patches have to be a multiple of it."""


class Stem(Group):
    """How an image becomes tokens."""

    kind: Literal["patchify", "conv"]
    """patchify: one convolution, a patch wide; conv: three more before it, as VOLO's stem."""
    hidden: Annotated[int, Field(gt=0, le=4096)] = 64
    """Channels of the three convolutions."""
    norm: Literal["bn", "none"] = "bn"
    """After each of the three."""
    act: Literal["relu", "none"] = "relu"
    """Likewise; both together are what is called scaled ReLU."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        idle = [
            f"{name}={getattr(self, name)!r}"
            for name, field in type(self).model_fields.items()
            if name != "kind" and getattr(self, name) != field.default
        ]
        if self.kind == "patchify" and idle:
            raise ValueError(
                f"{', '.join(idle)} changes nothing in a stem of one convolution; drop it, or give "
                "kind: conv"
            )
        return self


class Stemmed(Group):
    """A group of settings with a stem, which is left out where it is the backbone's own."""

    stem: Stem | None = None
    """null: the backbone's own."""

    @model_serializer(mode="wrap")
    def _without_own(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if k != "stem" or v is not None}


OWN_STEMS = {
    "swin": Stem(kind="patchify"), "deit": Stem(kind="patchify"), "volo": Stem(kind="conv"),
    "volo_d5": Stem(kind="conv", hidden=128), "swin_mini_conv": Stem(kind="conv", hidden=32),
}  # fmt: skip
"""Backbone, or its family -> the stem it was published with."""


def family(backbone: str) -> str:
    """The kind of a backbone: swin, volo, deit or resnet."""
    return "resnet" if backbone.startswith("resnet") else backbone.partition("_")[0]


def patch_of(backbone: str) -> int:
    """Pixels per side of a token of the first stage."""
    return PATCHES.get(backbone) or PATCHES[family(backbone)]


def own_stem(backbone: str) -> Stem | None:
    """The stem of a backbone as published; a ResNet's is no choice."""
    return OWN_STEMS.get(backbone) or OWN_STEMS.get(family(backbone))


def other_stem(backbone: str, stem: Stem | None) -> Stem | None:
    """The stem where it is not the backbone's own."""
    return None if stem == own_stem(backbone) else stem


def science_of_stem(backbone: str, stem: Stem | None) -> dict[str, Any] | None:
    """A stem as an identity holds it: nothing where it is the backbone's own."""
    other = other_stem(backbone, stem)
    if other is None:
        return None
    return other.model_dump(include={"kind"} if other.kind == "patchify" else None)


def why_not_network(backbone: str, op: Op, stem: Stem | None) -> str | None:
    """Why a backbone cannot hold an operator or a stem, with what would be right."""
    if ":" in backbone:  # from outside
        return (
            None
            if stem is None
            else f"stem.kind={stem.kind!r}: {backbone} has a stem of its own; drop stem"
        )
    kind, around = family(backbone), shell_of(op)
    if kind == "resnet" and (not isinstance(op, ConvOp | DdfOp) or around != "none"):
        found = f"op.kind={op.kind!r}" if not isinstance(op, ConvOp | DdfOp) else (
            f"op.shell={around!r}"
        )  # fmt: skip
        return (
            f"{found}: in the blocks of {backbone} stands a layer that can stride, between its own "
            "convolutions; give {kind: conv} or {kind: ddf, kernel_size: 3, shell: none}"
        )
    if (kind == "deit") != isinstance(op, AttentionOp):
        right = "{kind: attention}" if kind == "deit" else "another kind, or a deit backbone"
        holds = "attention of all tokens" if kind == "deit" else "layers that see an area"
        return f"op.kind={op.kind!r}: {backbone} holds {holds}; give {right}"
    if stem is None:
        return None
    if kind == "resnet":
        return f"stem.kind={stem.kind!r}: {backbone} has a stem of its own alone; drop stem"
    if stem.kind == "conv" and (patch := patch_of(backbone)) % STEM_STRIDE:
        return (
            f"stem.kind='conv': its first convolution halves the image, and a token of {backbone} "
            f"is {patch} pixel wide; give kind: patchify, or a backbone of even patches"
        )
    return None


def why_not_images(backbone: str, stem: Stem | None, side: int) -> str | None:
    """Why a conv stem cannot see images of ``side`` pixels, with what would be right."""
    if other_stem(backbone, stem) is None or stem is None or stem.kind != "conv":
        return None
    patch = patch_of(backbone)
    if side % patch == 0:
        return None
    fits = side // patch * patch or patch
    return (
        f"data.image_size={side}: a conv stem cuts whole patches of {patch} x {patch} pixels for "
        f"{backbone}; give {fits} or {fits + patch}"
    )


def has_batch_norms(backbone: str, op: Op, stem: Stem | None) -> bool:
    """Whether a network has batch norms.

    ResNets have, a conv stem with ``norm: bn``, DWNet's shell around a layer, what makes D-DwConv's
    filters, and DDF's filters with ``norm: batch``; what comes from outside may.
    """
    if ":" in backbone or ":" in op.kind:
        return True
    stem = stem or own_stem(backbone)
    return (
        family(backbone) == "resnet"
        or (stem is not None and stem.kind == "conv" and stem.norm == "bn")
        or shell_of(op) == "dwnet"
        or op.kind == "ddwconv"
        or (isinstance(op, DdfOp) and op.norm == "batch")
    )
