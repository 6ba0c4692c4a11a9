"""The study's networks by name, here and in timm. To add one: add its line to MODELS.

A name is a point in the space of :class:`lsa_study.config.Model`; nothing can be named that a
settings file cannot say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from lsa_study.config import layers
from lsa_study.config.names import nearest
from lsa_study.config.networks import OWN_STEMS, Stem, other_stem, own_stem
from lsa_study.config.operators import (
    AttentionOp,
    DdfOp,
    DwConvOp,
    DwNetOp,
    ElsaOp,
    Op,
    OutlookOp,
    UnifiedOp,
)
from lsa_study.config.settings import Model
from lsa_study.config.values import Backbone
from lsa_study.errors import ConfigError
from lsa_study.models import deit, outside, resnet, swin, volo
from lsa_study.models.operators import LSA, BlockContext, build_operator
from lsa_study.vocabulary import Application, Term

DROP_PATH: dict[Backbone, float] = {
    "swin_tiny": 0.1, "swin_small": 0.3, "swin_base": 0.5, "swin_large": 0.2,
    "volo_d1": 0.1, "volo_d2": 0.2, "volo_d3": 0.5, "volo_d4": 0.5, "volo_d5": 0.75,
    "deit_tiny": 0.1, "deit_small": 0.1, "deit_base": 0.1,
    "resnet50": 0.0, "resnet101": 0.0, "resnet152": 0.0,
}  # fmt: skip
"""The released ELSA commands; Swin-L, VOLO and DeiT as their own configurations."""
SWINS, VOLOS = ([name for name in DROP_PATH if name.startswith(kind)] for kind in ("swin", "volo"))

NETS: dict[str, tuple[Term, ...]] = {
    "net1": ("qk",),
    "net2": ("q_rk",),
    "net3": ("rq_k",),
    "net4": ("bias",),
    "net5": ("q_rk", "rq_k"),
    "net6": ("q_rk", "rq_k", "bias"),
    "net7": ("qk", "q_rk", "rq_k", "bias"),
}
"""The summands of Eq. 4 in each network of Table 1."""


STEMS: dict[str, Stem] = {
    "conv": Stem(kind="conv", norm="none", act="none"),
    "conv_relu": Stem(kind="conv", norm="none"),
    "conv_bn": Stem(kind="conv", act="none"),
    "conv_bn_relu": Stem(kind="conv"),
}
"""The four of "Scaled ReLU Matters for Training Vision Transformers"."""


def _model(backbone: Backbone, op: Op, stem: Stem | None = None) -> Model:
    return Model(backbone=backbone, op=op, drop_path=DROP_PATH[backbone], stem=stem)


def _volo_stems(backbone: str) -> dict[str, Stem]:
    """Those that VOLO was not published with, as wide as its own."""
    wide = {"hidden": OWN_STEMS.get(backbone, OWN_STEMS["volo"]).hidden}
    others = {name: stem for name, stem in STEMS.items() if name != "conv_bn_relu"}
    wider = {name: stem.model_copy(update=wide) for name, stem in others.items()}
    return {"patchify": Stem(kind="patchify"), **wider}


def _net(terms: tuple[Term, ...], application: Application = "window") -> Model:
    return _model("swin_tiny", UnifiedOp(terms=terms, norm="softmax", application=application))


MODELS: dict[str, Model] = {
    **{f"lsa_{name}": _model(name, LSA) for name in SWINS},
    **{f"{net}_swin_tiny": _net(terms) for net, terms in NETS.items()},
    "swin_tiny_n": _net(LSA.terms, "neighboring"),
    "net6_swin_tiny_n": _net(NETS["net6"], "neighboring"),
    "net7_swin_tiny_n": _net(NETS["net7"], "neighboring"),
    **{f"elsa_{name}": _model(name, ElsaOp()) for name in SWINS},
    "elsa_swin_tiny": _model("swin_tiny", ElsaOp(group_width=4)),
    "elsa_swin_tiny_noghost": _model("swin_tiny", ElsaOp(group_width=4, ghost_add=0.0)),
    "dwconv_swin_tiny": _model("swin_tiny", DwNetOp()),
    "dwconv_eq4_swin_tiny": _model("swin_tiny", DwConvOp()),
    "ddwconv_swin_tiny": _model("swin_tiny", DwNetOp(kind="ddwconv")),
    "ddf_swin_tiny": _model("swin_tiny", DdfOp()),
    # The article does not say its settings. Of those tried, these alone have the parameters of its
    # three models.
    **{f"elsa_{name}": _model(name, ElsaOp(group_width=16)) for name in VOLOS},
    **{
        f"{name}_{stem}": _model(name, AttentionOp(), STEMS[stem])
        for name in DROP_PATH
        if name.startswith("deit")
        for stem in STEMS
    },
    **{f"lsa_{name}_{stem}": _model(name, LSA, STEMS[stem]) for name in SWINS for stem in STEMS},
    **{
        f"{name}_{stem}": _model(name, OutlookOp(), like)
        for name in VOLOS
        for stem, like in _volo_stems(name).items()
    },
    **{
        f"ddf_{name}": _model(name, DdfOp(kernel_size=3, shell="none"))
        for name in DROP_PATH
        if name.startswith("resnet")
    },
}
"""Name -> the settings it stands for.

``dwconv_swin_tiny`` is Table 6's row, DWNet's released network; ``dwconv_eq4_swin_tiny`` is Eq. 4
with static filters in Swin's own block, the network of Table 5 and Fig. 2.
"""

TIMM_MODELS: dict[str, str] = {name: f"{name}_224" for name in VOLOS}
"""Short names of networks that are timm's own."""

WINDOW_FIELDS = {"size", "last_stage_window"}
"""Settings of an operator that timm calls ``window_size``."""


def from_settings(model: Model, *, image_size: int, num_classes: int) -> nn.Module:
    """Build the network that a run's settings ask for.

    Its images are squares of ``image_size`` pixels; 0 classes give features.

    Raises:
        ConfigError: the settings do not fit the backbone, such as heads that do not divide its
            channels, or a class from outside is not what it should be.
    """
    if ":" in model.backbone:
        return outside.build_backbone(
            model, lambda *place: build_operator(model.op, BlockContext(*place)),
            image_size=image_size, num_classes=num_classes,
        )  # fmt: skip
    kind, size = _backbone(model)
    network: nn.Module = kind(
        size,
        model.op,
        img_size=image_size,
        num_classes=num_classes,
        drop_path_rate=model.drop_path,
        **stem_of(model),
    )
    return network


def stem_of(model: Model) -> dict[str, Any]:
    """What a backbone is given for a stem that is not its own."""
    stem = other_stem(model.backbone, model.stem)
    return {} if stem is None else {"stem": stem}


FAMILIES: dict[type[nn.Module], Mapping[str, Any]] = {
    swin.Swin: swin.SIZES, volo.Volo: volo.SIZES, deit.Deit: deit.SIZES,
    resnet.Resnet: resnet.SIZES,
}  # fmt: skip
"""Kind of backbone -> its sizes by name."""


def _backbone(model: Model) -> tuple[type[nn.Module], Any]:
    return next(
        (kind, sizes[model.backbone]) for kind, sizes in FAMILIES.items() if model.backbone in sizes
    )


def build_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network by name; the same as ``timm.create_model(name, **overrides)``.

    Args:
        name: one of ``MODELS`` or ``TIMM_MODELS``.
        overrides: what timm's networks take (``num_classes``, ``img_size``, ``in_chans``,
            ``drop_path_rate``, ``features_only`` ...), settings of the operator by their name in
            :mod:`lsa_study.config` (``heads``, ``border``, ``implementation`` ...), and
            ``window_size`` for the window's side.

    Raises:
        ConfigError: no network has that name, or a setting of the operator will not do.
    """
    known = [*MODELS, *TIMM_MODELS]
    if name not in known:
        raise ConfigError(f"model {name!r} is not one of the study's; {nearest(name, known)}")
    network: nn.Module = timm.create_model(name, **overrides)
    return network


def _entry(name: str) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        if name in TIMM_MODELS:
            theirs: nn.Module = timm.create_model(TIMM_MODELS[name], pretrained, **options)
            return theirs
        point = MODELS[name]
        settings = type(point.op).model_fields.keys()
        changes = {key: options.pop(key) for key in settings & options.keys()}
        window = options.pop("window_size", None)
        if window is not None:
            fields = WINDOW_FIELDS & settings
            if not fields or point.backbone not in swin.SIZES:
                raise ConfigError(f"{name}: window_size={window}: it has no window; drop it")
            changes[fields.pop()] = window
        kind, size = _backbone(point)
        network: nn.Module = build_model_with_cfg(
            kind,
            name,
            pretrained,
            feature_cfg=dict(FEATURES[kind]),  # timm pops from it
            size=size,
            op=layers.validate(type(point.op), point.op.model_dump() | changes, lambda *_: name),
            **{"drop_path_rate": point.drop_path, **stem_of(point), **options},
        )
        return network

    entry.__name__ = name
    entry.__doc__ = f"Build {MODELS.get(name) or TIMM_MODELS[name]!r}."
    return entry


FEATURES: dict[type[nn.Module], dict[str, Any]] = {
    swin.Swin: {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
    volo.Volo: {"feature_cls": "getter", "out_indices": 3},
    deit.Deit: {"feature_cls": "getter", "out_indices": 3},
    resnet.Resnet: {"out_indices": (0, 1, 2, 3, 4)},
}
"""How timm takes the maps of the stages out of a backbone."""

_COMMON_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}
_CFGS: dict[type[nn.Module], dict[str, Any]] = {
    swin.Swin: {
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "classifier": "head.fc",
    },
    volo.Volo: {
        "pool_size": None,
        "crop_pct": 0.96,
        "classifier": ("head", "aux_head"),
    },
    deit.Deit: {
        "pool_size": None,
        "crop_pct": 0.875,
        "classifier": "head",
    },
    resnet.Resnet: {
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "first_conv": "conv1",
        "classifier": "fc",
        "fixed_input_size": False,
    },
}


def _first_conv(model: Model) -> dict[str, str]:
    stem = model.stem or own_stem(model.backbone)
    first = stem and {"conv": "conv.0", "patchify": "proj"}[stem.kind]
    return {"first_conv": f"patch_embed.{first}"} if first else {}


default_cfgs = generate_default_cfgs(
    {
        name: _COMMON_CFG | _CFGS[_backbone(point)[0]] | _first_conv(point)
        for name, point in MODELS.items()
    }
)
"""timm's description of each network; none has weights to download."""

for _name in (*MODELS, *TIMM_MODELS):
    register_model(_entry(_name))
