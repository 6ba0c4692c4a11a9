"""The study's networks by name, here and in timm. To add one: add its line to MODELS.

A name is a point in the space of :class:`lsa_study.config.Model`; nothing can be named that a
settings file cannot say.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from lsa_study import compose
from lsa_study.config import DwConvOp, ElsaOp, Model, Op, Term, UnifiedOp
from lsa_study.errors import ConfigError
from lsa_study.models.swin import SIZES, Swin

DROP_PATH = {"tiny": 0.1, "small": 0.3, "base": 0.5, "large": 0.2}
"""The released ELSA commands; L as Swin's own configuration."""

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

LSA = UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window")


def _swin(size: str, op: Op) -> Model:
    return Model(
        backbone=f"swin_{size}",  # type: ignore[arg-type]  # checked when the model is made
        op=op,
        drop_path=DROP_PATH[size],
    )


def _net(terms: tuple[Term, ...], application: str = "window") -> Model:
    return _swin("tiny", UnifiedOp(terms=terms, norm="softmax", application=application))  # type: ignore[arg-type]


MODELS: dict[str, Model] = {
    **{f"lsa_swin_{size}": _swin(size, LSA) for size in DROP_PATH},
    **{f"{net}_swin_tiny": _net(terms) for net, terms in NETS.items()},
    "swin_tiny_n": _net(LSA.terms, "neighboring"),
    "net6_swin_tiny_n": _net(NETS["net6"], "neighboring"),
    "net7_swin_tiny_n": _net(NETS["net7"], "neighboring"),
    "elsa_swin_tiny": _swin("tiny", ElsaOp(group_width=4)),
    **{f"elsa_swin_{size}": _swin(size, ElsaOp()) for size in ("small", "base", "large")},
    "elsa_swin_tiny_noghost": _swin("tiny", ElsaOp(group_width=4, ghost_add=0.0)),
    "dwconv_eq4_swin_tiny": _swin("tiny", DwConvOp()),
}
"""Name -> the settings it stands for."""

WINDOW_FIELD = {"unified": "size", "elsa": "last_stage_window"}
"""What timm calls ``window_size``, by operator."""


def from_settings(
    model: Model, *, image_size: int, num_classes: int, in_chans: int = 3
) -> nn.Module:
    """Build the network that a run's settings ask for.

    Args:
        model: backbone, operator and stochastic depth.
        image_size: side of the square image in pixels.
        num_classes: classes of the head; 0 gives features.
        in_chans: channels of the image.

    Raises:
        ConfigError: the settings do not fit the backbone, such as heads that do not divide its
            channels.
    """
    network: nn.Module = Swin(
        SIZES[model.backbone],
        model.op,
        img_size=image_size,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=model.drop_path,
    )
    return network


def build_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network by name; the same as ``timm.create_model(name, **overrides)``.

    Args:
        name: one of ``MODELS``.
        overrides: what timm's networks take (``num_classes``, ``img_size``, ``in_chans``,
            ``drop_path_rate``, ``features_only`` ...), settings of the operator by their name in
            :mod:`lsa_study.config` (``heads``, ``border``, ``implementation`` ...), and
            ``window_size`` for the window's side.

    Raises:
        ConfigError: no network has that name, or a setting of the operator will not do.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(MODELS)}"
        raise ConfigError(f"model {name!r} is not one of the study's; {hint}")
    network: nn.Module = timm.create_model(name, **overrides)
    return network


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    point = MODELS[name]
    changes = {key: options.pop(key) for key in list(options) if key in type(point.op).model_fields}
    window = options.pop("window_size", None)
    if window is not None:
        if point.op.kind not in WINDOW_FIELD:
            raise ConfigError(f"{name}: window_size={window}: it has no window; drop it")
        changes[WINDOW_FIELD[point.op.kind]] = window
    network: nn.Module = build_model_with_cfg(
        Swin,
        name,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
        size=SIZES[point.backbone],
        op=compose.validate(type(point.op), point.op.model_dump() | changes, lambda _: name),
        **{"drop_path_rate": point.drop_path, **options},
    )
    return network


def _entry(name: str) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(name, pretrained, options)

    entry.__name__ = name
    entry.__doc__ = f"Build {name}: {MODELS[name]!r}."
    return entry


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        }
        for name in MODELS
    }
)
"""timm's description of each network; none has weights to download."""

for _name in MODELS:
    register_model(_entry(_name))
