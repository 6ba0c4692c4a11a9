"""The settings of operators: which layer stands where attention stood.

A published layer is a point in this space. Nothing here needs torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from lsa_study.config.imports import ImportPath, entry_point
from lsa_study.vocabulary import TERMS, Application, Border, Implementation, Norm, Term

Heads = Literal["1", "1x", "2x", "C"]
Shell = Literal["linear", "dwnet"]
"""What stands around a layer. linear: layer norm before it, a linear map on each side, layer norm
before the perceptron, as around attention. dwnet: DWNet's 1 x 1 convolutions with batch norms and
ReLUs, no norm before them, and batch norm before the perceptron."""

AnyShell = Literal["linear", "dwnet", "none"]
"""none: the layer alone, for blocks that have maps of channels around it themselves."""

Weight = Annotated[float, Field(ge=0, le=1000)]


def _centred(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size} is even; an area around a pixel needs an odd size")
    return size


Size = Annotated[int, Field(gt=0, le=255)]
OddSize = Annotated[Size, AfterValidator(_centred)]


class Group(BaseModel):
    """A group of settings: no unknown ones, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _article_order(terms: Any) -> Any:
    if isinstance(terms, list | tuple) and len(set(map(str, terms))) == len(terms):
        return tuple(sorted(terms, key=lambda t: TERMS.index(t) if t in TERMS else -1))
    return terms


class UnifiedOp(Group):
    """Eq. 4 of the article: logits from ``terms``, normalised by ``norm``, applied to an area."""

    kind: Literal["unified"] = "unified"
    """Which operator."""
    terms: Annotated[tuple[Term, ...], BeforeValidator(_article_order), Field(min_length=1)]
    """Which summands make the logits: q.k, q.r^k, r^q.k, bias r^b."""
    norm: Norm
    """What makes weights of the logits of an area."""
    application: Application
    """window: the pixels of a tile share one area; neighboring: every pixel has its own."""
    border: Border = "zero"
    """neighboring only. zero: taps outside the map stay in the norm; mask: they are excluded."""
    size: Size = 7
    """Side of the area in pixels of the stage's map."""
    heads: Heads = "1x"
    """Heads per stage against the backbone's own (Fig. 2): 1, 1x, 2x, or one per channel."""
    last_stage: Literal["window", "same"] = "window"
    """Table 3 switches the area in all stages but the last, which stays a window."""
    scale: Annotated[float, Field(gt=0, le=1000)] | None = None
    """On the dot products, all of them, not on the bias; null: d^-1/2 with d channels of a head."""
    implementation: Implementation = "auto"
    """auto: the fastest way that fits; the others by name, refused where they cannot run."""

    @model_validator(mode="after")
    def _scale_is_read(self) -> Self:
        if self.scale is not None and self.terms == ("bias",):
            raise ValueError(
                f"scale={self.scale:g} changes nothing: the bias alone is no product; drop it, or "
                "give another of terms"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.application == "neighboring" and self.size % 2 == 0:
            raise ValueError(
                f"size={self.size}: 'neighboring' centres an area on every pixel; "
                "give an odd size (window accepts even sizes)"
            )
        if self.application == "window":
            for key, idle in (("border", ("mask",)), ("implementation", ("unfold", "sdc", "flex"))):
                if getattr(self, key) in idle:
                    raise ValueError(
                        f"{key}={getattr(self, key)!r} changes nothing in a window; drop it, "
                        "or set application: neighboring"
                    )
        if self.implementation == "sdc" and self.border != "mask":
            raise ValueError(
                "implementation='sdc' excludes pixels outside the map; set border: mask beside it"
            )
        if self.implementation == "flex" and self.norm != "softmax":
            raise ValueError(
                f"implementation='flex' computes a softmax, norm={self.norm!r} is none; set "
                "norm: softmax, or drop it"
            )
        return self


class ElsaOp(Group):
    """Enhanced local self-attention: Hadamard attention and the ghost head."""

    kind: Literal["elsa"] = "elsa"
    """Which operator."""
    variant: Literal["conv", "eq7"] = "conv"
    """conv: the released module, with the article's parameter counts; eq7: the printed formula."""
    kernel_size: OddSize = 7
    """Side of the neighborhood in pixels of the stage's map."""
    group_width: Size = 8
    """Channels of a group of the convolution that makes the filters."""
    ghost_mul: Weight = 0.0
    """The article's lambda, the power of the multiplied ghost matrix; 0 means absent."""
    ghost_add: Weight = 1.0
    """The article's gamma, the weight of the added ghost matrix; 0 means absent."""
    heads: Heads = "1x"
    """Filters per pixel: 1, as the backbone has heads (1x), twice that, or one per channel."""
    last_stage: Literal["lsa", "same"] = "lsa"
    """The article keeps window attention in Swin's last stage."""
    last_stage_window: Size = 7
    """Side of that attention's window; 12 at an image size of 384."""
    implementation: Literal["auto", "reference", "unfold", "fused"] = "auto"
    """auto: the fastest way that fits; the others by name, refused where they cannot run."""

    @model_validator(mode="after")
    def _window_is_read(self) -> Self:
        if self.last_stage == "same" and self.last_stage_window != 7:
            raise ValueError(
                f"last_stage_window={self.last_stage_window} changes nothing where the last stage "
                "holds the operator itself; drop it, or set last_stage: lsa"
            )
        return self


class DwConvOp(Group):
    """Eq. 4 with the bias term alone, identity norm, neighboring area: depthwise convolution."""

    kind: Literal["dwconv"] = "dwconv"
    """Which operator."""
    kernel_size: OddSize = 7
    """Side of the neighborhood in pixels of the stage's map."""
    heads: Heads = "C"
    """Channels of one head share a filter; C gives every channel its own."""
    last_stage: Literal["same", "lsa"] = "same"
    """lsa: window attention stands in the last stage."""
    shell: Shell = "linear"
    """What stands around the layer: linear maps, as around attention, or DWNet's batch norms."""

    @model_validator(mode="after")
    def _shell_holds_it(self) -> Self:
        if self.shell == "dwnet" and self.heads != "C":
            raise ValueError(
                f"shell='dwnet' with heads={self.heads!r}: DWNet gives every channel its own "
                "filter; give heads: C, or shell: linear"
            )
        return self


class DwNetOp(Group):
    """Depthwise convolution as DWNet has it; ``dwconv`` in the shell ``dwnet`` is the same."""

    kind: Literal["dwnet", "ddwconv"] = "dwnet"
    """dwnet: the same filters for every image; ddwconv: filters made from the image, one per image
    and channel (D-DwConv)."""
    kernel_size: OddSize = 7
    """Side of the neighborhood in pixels of the stage's map."""
    shell: Shell = "dwnet"
    """What stands around the layer: linear maps, as around attention, or DWNet's batch norms."""


class DdfOp(Group):
    """Decoupled dynamic filters, one per pixel times one per channel."""

    kind: Literal["ddf"] = "ddf"
    """Which operator."""
    kernel_size: OddSize = 7
    """Side of the neighborhood in pixels of the stage's map."""
    heads: Heads = "1"
    """Filters per pixel; the channels of one head share it."""
    combine: Literal["mul", "add"] = "mul"
    """How a pixel's filter and a channel's become one."""
    reduction: Annotated[float, Field(ge=0.0625, le=1)] = 0.2
    """Hidden channels of the channel filters' generator against all."""
    branches: Literal["both", "spatial", "channel"] = "both"
    """Which filters there are: of pixels, of channels, or both combined."""
    norm: Literal["filter", "batch", "sigmoid"] = "filter"
    """Of both filters, before they are combined."""
    shell: AnyShell = "dwnet"
    """What stands around the layer: linear maps, DWNet's batch norms, or nothing; the article names
    none."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        idle = {"both": [], "spatial": ["combine", "reduction"], "channel": ["combine", "heads"]}
        for key in idle[self.branches]:
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}={value!r} changes nothing with branches={self.branches!r}; drop it, or "
                    "give branches: both"
                )
        return self


class ConvOp(Group):
    """A full convolution, a filter for every pair of channels: what stands in ResNets."""

    kind: Literal["conv"] = "conv"
    """conv: a full convolution."""
    kernel_size: OddSize = 3
    """Side of its filters, in pixels of the map."""
    shell: AnyShell = "none"
    """What stands around the layer: linear maps, DWNet's batch norms, or nothing."""


class AttentionOp(Group):
    """Attention of every token to all, of the backbone's own heads: what stands in DeiT."""

    kind: Literal["attention"] = "attention"
    """attention: of every token to all."""


class OutlookOp(Group):
    """VOLO's outlook attention: every coarse place writes to the pixels around it."""

    kind: Literal["outlook"] = "outlook"
    """Which operator."""
    kernel_size: OddSize = 3
    """Side of the patch that a coarse place writes to, in pixels."""
    stride: Size = 2
    """Pixels between two places that make weights."""
    heads: Heads = "1x"
    """Heads per stage against the backbone's own."""


class OutsideOp(Group):
    """An operator from outside, built as ``Class(dim, num_heads, **arguments)``.

    Beside ``kind`` stand the keyword arguments of its class; what they may be, its signature says.
    """

    model_config = ConfigDict(extra="allow")

    kind: ImportPath
    """``package.module:Class``, or a name of the entry point group ``lsa_study.ops``."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of its class."""
        return dict(self.model_extra or {})


OwnOp = UnifiedOp | ElsaOp | DwConvOp | DwNetOp | DdfOp | OutlookOp | ConvOp | AttentionOp
OP_KINDS: dict[str, type[Group]] = {
    kind: op for op in get_args(OwnOp) for kind in get_args(op.model_fields["kind"].annotation)
}
"""``kind`` in the YAML -> settings of that operator."""
OWN, OUTSIDE = "(own)", "(outside)"
"""Tags of what the package brings and of what an import path names."""


def _whose(op: Any) -> str:
    kind = op.get("kind") if isinstance(op, dict) else getattr(op, "kind", None)
    if not isinstance(kind, str) or kind in OP_KINDS:
        return OWN
    return OUTSIDE if ":" in kind or entry_point(kind) else OWN


Op = Annotated[
    Annotated[OwnOp, Field(discriminator="kind"), Tag(OWN)] | Annotated[OutsideOp, Tag(OUTSIDE)],
    Discriminator(_whose),
]
YOUNGER = {"shell", "scale", "branches", "norm"}
"""Settings that identities of the first results do not hold."""


def shell_of(op: Op) -> AnyShell:
    """What stands around an operator; attention and all that is not named otherwise is linear."""
    return getattr(op, "shell", "linear")


def science_of(op: Op) -> dict[str, Any]:
    """The settings of an operator as an identity holds them.

    One layer that can be written in two ways is written in one, and what is younger than the first
    results is left out where it is as it was then.
    """
    if isinstance(op, DwConvOp) and op.shell == "dwnet" and op.last_stage == "same":
        op = DwNetOp(kernel_size=op.kernel_size)
    elif isinstance(op, DwNetOp) and op.kind == "dwnet" and op.shell == "linear":
        op = DwConvOp(kernel_size=op.kernel_size)
    found = op.model_dump(mode="json")
    for name in YOUNGER & found.keys():
        if found[name] == type(op).model_fields[name].default:
            del found[name]
    return found
