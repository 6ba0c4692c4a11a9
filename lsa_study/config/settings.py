"""The settings of one run: what they mean, what is allowed, and which make its identity.

A published method is a point in this space. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lsa_study.config.imports import ImportPath
from lsa_study.config.networks import Stemmed, science_of_stem, why_not_images, why_not_network
from lsa_study.config.operators import Group, Op, OutsideOp, science_of, shell_of
from lsa_study.config.optimizer import science_of_optimizer
from lsa_study.config.protocol import Augment, Train
from lsa_study.config.start import Stop
from lsa_study.config.task import IDLE, SETS, Classify, Task
from lsa_study.config.values import (
    IMAGES,
    AnyBackbone,
    AnyData,
    Images,
    Limit,
    MetricName,
    Seconds,
    Seed,
    Share,
)

SCHEMA_VERSION = 1
"""Raised when the meaning of a setting changes; part of every identity."""

Tier = Literal["toy", "proxy", "paper"]


class Data(Group):
    """Which images, and how large."""

    name: AnyData
    """The data set; digits comes with scikit-learn, the others lie under ``root``. Or
    ``package.module:Class``, a set from outside; see ``data.outside``."""
    image_size: Annotated[int, Field(ge=8, le=4096)]
    """Side of the square the network sees, in pixels."""
    train_limit: Limit | None = None
    """Use only the first N training images."""
    test_limit: Limit | None = None
    """Use only the first N test images, as rehearsals do."""
    validation: Limit | None = None
    """Hold out N of the training images, of each class alike and the same for every seed: epochs
    are judged by them, and the test set only once, by the weights that are reported."""
    root: str | None = None
    """Folder of the data sets; else the environment variable LSA_DATA. Not in the identity."""

    @model_validator(mode="after")
    def _can_spare(self) -> Self:
        if self.name not in IMAGES:  # how many there are is known where they are read
            return self
        size, _, classes = IMAGES[self.name]
        images = min(size, self.train_limit or size)
        if self.train_limit is not None and self.name == "imagenet":
            classes = 1  # as many as there are in the folder
        if self.validation is None or classes <= self.validation <= images - classes:
            return self
        few = f"has fewer than one image of each of the {classes} classes"
        many = f"leaves fewer than that many classes, {classes}, of {images:,} images to train on"
        wrong = few if self.validation < classes else many
        fits = (
            f"give {classes:,} to {images - classes:,}"
            if images >= 2 * classes
            else "raise data.train_limit"
        )
        raise ValueError(f"validation={self.validation} {wrong}; {fits}, or null to hold out none")


class Model(Stemmed):
    """The network: a backbone that receives an operator."""

    backbone: AnyBackbone
    """Which network, and its size; micro and mini are this project's, for small images. Or
    ``package.module:Class``: a network from outside, built around the operator."""
    op: Op
    """What stands where attention stood; its settings depend on its ``kind``."""
    drop_path: Share
    """Stochastic depth of the last block; grows linearly from 0 at the first."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if reason := why_not_network(self.backbone, self.op, self.stem):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _last_stage_is_read(self) -> Self:
        if self.backbone.startswith("volo"):
            for key in ("last_stage", "last_stage_window"):
                field = type(self.op).model_fields.get(key)
                if field is not None and getattr(self.op, key) != field.default:
                    raise ValueError(
                        f"op.{key}={getattr(self.op, key)!r} changes nothing: {self.backbone} "
                        "holds operators in its first stage only; drop it"
                    )
        return self


class Evaluation(Group):
    """How the reported numbers are measured."""

    crop_share: Annotated[float, Field(ge=0.05, le=2)] = 1.0
    """Centre crop: the image is resized so that the crop is this share of its shorter side."""
    crop: Literal["centre", "none"] = "centre"
    """centre: see ``crop_share``; none: the whole image is resized to the square, whatever its
    shape (Swin at 384)."""
    weights: Literal["model", "ema"] = "model"
    """Which weights the reported numbers belong to: the trained ones, or their average."""
    epoch: Literal["last", "best"] = "last"
    """Which epoch is reported; best of the images of ``data.validation``, else of the test set."""
    batch_size: Images = 256
    """Images at once; moves no number but by rounding."""
    metrics: dict[MetricName, ImportPath] = Field(default_factory=dict)
    """Further columns by name: functions from outside, ``package.module:function``, of all test
    images' logits and targets."""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if k != "metrics" or v}

    @model_validator(mode="after")
    def _share_of_a_crop(self) -> Self:
        if self.crop == "none" and self.crop_share != 1:
            raise ValueError(
                f"crop_share={self.crop_share} changes nothing with crop='none', which shows the "
                "whole image; give crop_share: 1.0, or crop: centre"
            )
        return self


class Runtime(Group):
    """How a run is carried out; never part of its identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    workers: Annotated[int, Field(ge=0, le=1000)] = 0
    """Processes that load images; 0: the main process does."""
    accumulate: Images = 1
    """Split every step in this many parts; the effective batch stays."""
    compile: bool = False
    """Whether torch.compile makes the network."""
    log_seconds: Seconds = 30.0
    """Between two lines of the log."""
    checkpoint_seconds: Seconds = 60.0
    """Between two checkpoints; one is written at every epoch's end besides."""
    trace_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Steps at an attempt's start to profile into ``attempts/NNN/trace.json``, for Perfetto."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """What ``lsa track`` mirrors the run in while it is trained, without network or login."""
    stop: Stop | None = None
    """null: every run is trained to its end."""

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a rule a run is written as before there were any."""
        settings: dict[str, Any] = plain(self)
        if self.stop is None:
            settings.pop("stop", None)
        return settings


class Settings(Group):
    """Everything that says what a run is."""

    tier: Tier
    """toy: does the pipeline work; proxy: small images; paper: the article's recipe."""
    seed: Seed = 0
    """Of everything that is random: initial weights, order, crops, mixing, drop path."""
    task: Task = Classify()
    """What the network is to do: classify, detect or segment; its settings depend on its ``kind``.
    """
    data: Data
    model: Model
    train: Train
    augment: Augment
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    outside: dict[str, str] = Field(default_factory=dict)
    """Digests of the sources of each package from outside, by its name; filled in by itself."""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {"outside": {}, "task": {"kind": "classify"}}
        return {k: v for k, v in dump(self).items() if k not in usual or v != usual[k]}

    @model_validator(mode="after")
    def _data_fit_the_task(self) -> Self:
        kind, name = self.task.kind, self.data.name
        if name in SETS[kind] or (kind == "classify" and ":" in name):
            return self
        raise ValueError(
            f"data.name={name!r} holds nothing to {kind}; give {' or '.join(SETS[kind])}, or "
            "another task.kind"
        )

    @model_validator(mode="after")
    def _task_reads_all(self) -> Self:
        if self.task.kind == "classify":
            if self.augment.crop == "multi_scale":
                raise ValueError(
                    "augment.crop='multi_scale': belongs to task.kind detect or segment; give "
                    "random_resized"
                )
            return self
        given = {key: attrgetter(key)(self) for key in IDLE}
        wanted = {key: json.dumps(IDLE[key]) for key in IDLE if given[key] != IDLE[key]}
        if self.augment.crop not in ("none", "multi_scale"):
            given["augment.crop"], wanted["augment.crop"] = self.augment.crop, "none or multi_scale"
        if wanted:
            raise ValueError(
                f"{', '.join(f'{key}={given[key]!r}' for key in wanted)}: not read where "
                f"task.kind={self.task.kind!r}; give "
                f"{', '.join(f'{key}: {value}' for key, value in wanted.items())}"
            )
        small = ("swin_micro", "swin_mini", "swin_mini_p2")
        if not self.model.backbone.startswith("swin") or self.model.backbone in small:
            raise ValueError(
                f"model.backbone={self.model.backbone!r}: only a Swin gives the four maps that "
                f"task.kind={self.task.kind!r} needs; give a swin backbone of four stages, such as "
                "swin_micro4"
            )
        return self

    @model_validator(mode="after")
    def _stem_fits(self) -> Self:
        model = self.model
        if reason := why_not_images(model.backbone, model.stem, self.data.image_size):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.evaluation.weights == "ema" and self.train.ema_decay is None:
            raise ValueError(
                "evaluation.weights='ema' but train.ema_decay is null; give a decay such as 0.9999"
            )
        return self

    @model_validator(mode="after")
    def _fp16_has_a_gpu(self) -> Self:
        if self.train.precision == "fp16" and self.runtime.device == "cpu":
            raise ValueError(
                "train.precision='fp16' with runtime.device='cpu': float16 needs a GPU; give "
                "train.precision: float32, or runtime.device: auto"
            )
        return self

    @model_validator(mode="after")
    def _token_labels_fit(self) -> Self:
        tokens, augment = self.train.tokens, self.augment
        if tokens is None:
            return self
        maps = tokens.labels != "plain"
        for wrong, message in (
            (not self.model.backbone.startswith("volo"),
             f"model.backbone={self.model.backbone}: token labels need VOLO's token head; give a "
             "volo backbone, or drop train.tokens"),
            (augment.mixup > 0 or augment.cutmix > 0,
             f"augment.mixup={augment.mixup}, augment.cutmix={augment.cutmix}: mixed images have "
             "no token labels; set both to 0.0, or drop train.tokens"),
            (maps and self.data.name != "imagenet",
             f"train.tokens.labels={tokens.labels!r}: there are no label maps of "
             f"{self.data.name}; give labels: plain"),
            (maps and augment.crop != "random_resized",
             f"augment.crop={augment.crop!r}: label maps follow random_resized crops alone; give "
             "that, or train.tokens.labels: plain"),
            (self.runtime.compile,
             "runtime.compile=True: tokens are mixed in another box at every step, for each of "
             "which torch.compile would begin anew; set runtime.compile: false"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(message)
        return self

    def paths(self) -> dict[str, str]:
        """The import paths of what comes from outside, by the setting that holds each."""
        named = {"model.backbone": self.model.backbone, "data.name": self.data.name}
        found = {key: path for key, path in named.items() if ":" in path}
        if isinstance(self.model.op, OutsideOp):
            found["model.op.kind"] = self.model.op.kind
        metrics = self.evaluation.metrics.items()
        return found | {f"evaluation.metrics.{name}": path for name, path in metrics}

    def reads(self) -> tuple[str, Data, bool, tuple[str | None, ...]]:
        """What of the data is read: the task, the set, its label maps or not, a start's files."""
        tokens, start = self.train.tokens, self.train.start
        maps = tokens is not None and tokens.labels != "plain"
        files = () if start is None else (start.weights, start.map)
        return self.task.kind, self.data, maps, files

    def science(self) -> dict[str, Any]:
        """The settings that can move a number: all but how and where the run is carried out."""
        settings = self.model_dump(mode="json", exclude={"runtime": True, "tier": True})
        settings["model"]["op"] = science_of(self.model.op)
        settings["model"]["stem"] = science_of_stem(self.model.backbone, self.model.stem)
        settings["train"]["optimizer"] = science_of_optimizer(self.train.optimizer)
        del settings["data"]["root"]
        # Left out where they are off: the identities of runs made before there were such settings
        # stand.
        for group, name in (
            ("train", "tokens"), ("train", "start"), ("train", "norm_batch"),
            ("data", "test_limit"), ("data", "validation"), ("model", "stem"),
            ("train", "optimizer"),
        ):  # fmt: skip
            if settings[group][name] is None:
                del settings[group][name]
        if self.augment.order == "erase_first" or not self.augment.mixes:
            del settings["augment"]["order"]
        if self.evaluation.crop == "centre":
            del settings["evaluation"]["crop"]
        if (start := self.train.start) is not None:
            # Of another study's row its recipe is all: studies share rows under several names.
            idle = {"map": start.map is None, "study": start.study, "row": start.study}
            for name in idle:
                if idle[name]:
                    del settings["train"]["start"][name]
        return settings

    def differing(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """The dotted science settings in which two runs differ, with both values.

        What stands around an operator counts, also where its kind implies it.
        """
        a, b = (
            flatten(one.science()) | {"model.op.shell": shell_of(one.model.op)}
            for one in (self, other)
        )
        found = {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}
        # That only one row has a package follows from a setting that names it; two states of one
        # package do not.
        return {k: v for k, v in found.items() if None not in v or not k.startswith("outside.")}

    def identity(self) -> str:
        """Ten hex digits that two runs share if and only if their science settings are equal."""
        return self.identities([self.seed])[self.seed]

    def identities(self, seeds: Iterable[int]) -> dict[int, str]:
        """``identity()`` as it would be with each of these seeds."""
        identity = self.identify()
        return {seed: identity(seed) for seed in seeds}

    def identify(self) -> Callable[[int], str]:
        """``identity()`` as a function of the seed; the settings become text only once."""
        # Thousands of seeds are looked for in a moment.
        text = self._canonical()
        return lambda seed: _digits(text.replace('"seed":"?"', f'"seed":{seed}'))

    def recipe(self) -> str:
        """Ten hex digits that the runs of a row share, whatever their seed."""
        return _digits(self._canonical())

    def _canonical(self) -> str:
        settings = {"schema": SCHEMA_VERSION, **self.science(), "seed": "?"}
        return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into ``{"model.op.norm": ...}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
