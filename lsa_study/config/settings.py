"""The settings of one run: what they mean, what is allowed, and which make its identity.

A published method is a point in this space. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from lsa_study.config.networks import Stemmed, science_of_stem, why_not_network
from lsa_study.config.operators import Group, Op, Weight, science_of, shell_of
from lsa_study.config.optimizer import Optimised, science_of_optimizer
from lsa_study.config.start import Start

SCHEMA_VERSION = 1
"""Raised when the meaning of a setting changes; part of every identity."""

Tier = Literal["toy", "proxy", "paper"]
Backbone = Literal[
    "swin_micro", "swin_mini", "swin_mini_p2", "swin_tiny", "swin_small", "swin_base", "swin_large",
    "volo_d1", "volo_d2", "volo_d3", "volo_d4", "volo_d5",
    "deit_micro", "deit_mini", "deit_tiny", "deit_small", "deit_base",
    "resnet_micro", "resnet_micro_deep", "resnet_mini", "resnet_mini_deep",
    "resnet50", "resnet101", "resnet152",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1)]
MOST_SEED = 2**31 - 1
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
# Far above what anybody trains with: beyond lie slips of the keyboard and numbers that overflow.
Images = Annotated[int, Field(gt=0, le=1_000_000)]
Limit = Annotated[int, Field(gt=0, le=1_000_000_000)]
Epochs = Annotated[float, Field(ge=0, le=100_000)]
Rate = Annotated[float, Field(ge=0, le=1e30)]
Seconds = Annotated[float, Field(gt=0, le=1_000_000)]
MOST_SEEDS = 100_000


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"{list(pair)} is no range; give two numbers above 0, the smaller first")
    return pair


RANGE = (BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v), AfterValidator(_rising))


def _known_policy(policy: str) -> str:
    if not POLICY.fullmatch(policy):
        raise ValueError(
            f"{policy[:80]!r} is no RandAugment policy; write it as timm does, such as "
            "rand-m9-mstd0.5-inc1"
        )
    return policy


POLICY = re.compile(
    r"rand(-(m\d\d?|mmax\d\d?|mstd\d{1,3}(\.\d{1,9})?|n[1-9]|p(0(\.\d{1,9})?|1(\.0)?)|inc[01]"
    r"|t(weights|3aw|3a)))*"
)
"""The policies that timm reads; it skips over parts that it does not know."""
Policy = Annotated[str, AfterValidator(_known_policy)]


IMAGES = {
    "digits": (1_300, 497, 10), "cifar10": (50_000, 10_000, 10),
    "imagenet": (1_281_167, 50_000, 1000),
}  # fmt: skip
"""Training images, test images and classes of each data set."""


class Data(Group):
    """Which images, and how large."""

    name: Literal["digits", "cifar10", "imagenet"]
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

    backbone: Backbone
    op: Op
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


class TokenLabels(Group):
    """VOLO's recipe: every token answers for its own place, and tokens of two images are mixed."""

    labels: Literal["plain", "maps", "maps_and_truth"]
    """plain: every token gets its image's class; maps: a trained network's answers for each place,
    from the data's folder; maps_and_truth: the image's own target also takes in its class."""
    class_weight: Annotated[Weight, Field(gt=0)] = 1.0
    dense_weight: Weight = 0.5
    """Of the mean over all tokens."""
    boxes: Literal["upright", "transposed"] = "upright"
    """transposed: as the released code, which takes rows of the cut box for columns when it looks
    up its labels."""
    mix_token: Weight = 1.0
    """Both parameters of the beta draw of the pasted box's area; 0 mixes nothing."""


class Train(Optimised):
    """The optimisation protocol; the same for every row of a table."""

    epochs: Annotated[int, Field(gt=0, le=100_000)]
    """All epochs: warm-up, cosine and cool-down together."""
    batch_size: Images
    """Effective batch: images per optimiser step over all devices and accumulation steps."""
    lr: Annotated[Rate, Field(gt=0)]
    """Peak learning rate at ``lr_batch`` images a step; scaled linearly to ``batch_size``."""
    lr_batch: Images = 1024
    min_lr: Rate
    warmup_lr: Rate
    warmup_epochs: Epochs
    """Linear. If it and the cool-down pass half of ``epochs``, both shrink in proportion."""
    cooldown_epochs: Epochs
    """Epochs at ``min_lr`` at the end."""
    schedule: Literal["epoch", "step"]
    """Whether the rate moves once an epoch (the article) or at every step."""
    weight_decay: Weight
    no_decay: Literal["timm", "swin"] = "timm"
    """timm: 1-D parameters, VOLO's position map and class token are not decayed (as the released
    code of ELSA and VOLO); swin: nor are position tables."""
    clip_grad: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    norm_batch: Images | None = None
    """Images over which batch norm takes its statistics in training, and which share a box of
    MixToken, such as what one GPU of the article held: on fewer or larger devices these stay the
    same, which have to compute whole groups (``config.parts``). null: all images of a part."""
    ema_decay: Share | None = None
    tokens: TokenLabels | None = None
    """Token labeling and MixToken, in place of mixup and cutmix; VOLO only."""
    start: Start | None = None
    """Fine-tuning: weights to begin from; null: random ones."""
    precision: Literal["float32", "amp", "fp16", "bf16"] = "float32"
    """bf16: bfloat16 autocast on every device; one whose processor does not compute in it itself
    refuses the run. On a GPU alone, and float32 on a CPU, are amp: the same bfloat16 autocast, and
    fp16: float16 autocast and a loss scale that skips steps whose gradients overflow, as released.
    A run records which it was."""


class Augment(Group):
    """What is done to training images and labels."""

    crop: Literal["none", "pad", "random_resized"]
    crop_pad: Annotated[int, Field(ge=0, le=1000)] = 4
    crop_scale: Annotated[tuple[Share, Share], *RANGE] = (0.08, 1.0)
    crop_ratio: Annotated[tuple[float, float], *RANGE] = (0.75, 1.3333333333333333)
    hflip: Share = 0.0
    rand_augment: Policy | None = None
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.0
    erasing: Share = 0.0
    mixup: Weight = 0.0
    cutmix: Weight = 0.0
    mix_prob: Share = 1.0
    mix_switch: Share = 0.5
    order: Literal["erase_first", "mix_first"] = "erase_first"
    """erase_first: normalised images are erased, then mixed (Swin's code); mix_first: pixels are
    mixed and rounded, then normalised and erased, so that erased boxes stay whole (ELSA's)."""
    label_smoothing: Share = 0.0

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Evaluation(Group):
    """How the reported accuracy is measured."""

    crop_share: Annotated[float, Field(ge=0.05, le=2)] = 1.0
    """Centre crop: the image is resized so that the crop is this share of its shorter side."""
    crop: Literal["centre", "none"] = "centre"
    """none: the whole image is resized to the square, whatever its shape (Swin at 384)."""
    weights: Literal["model", "ema"] = "model"
    """Which weights the reported accuracy belongs to."""
    epoch: Literal["last", "best"] = "last"
    batch_size: Images = 256

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
    workers: Annotated[int, Field(ge=0, le=1000)] = 0
    accumulate: Images = 1
    """Split every step in this many parts; the effective batch stays."""
    compile: bool = False
    log_seconds: Seconds = 30.0
    checkpoint_seconds: Seconds = 60.0
    trace_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Steps at an attempt's start to profile into ``attempts/NNN/trace.json``, for Perfetto."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """What ``lsa track`` mirrors the run in while it is trained, without network or login."""


class Settings(Group):
    """Everything that says what a run is."""

    tier: Tier
    seed: Seed = 0
    data: Data
    model: Model
    train: Train
    augment: Augment
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()

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

    def reads(self) -> tuple[Data, bool, tuple[str | None, ...]]:
        """What of the data folder is read: the set, whether its label maps, and a start's files."""
        tokens, start = self.train.tokens, self.train.start
        maps = tokens is not None and tokens.labels != "plain"
        return self.data, maps, () if start is None else (start.weights, start.map)

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
        if self.train.start is not None and self.train.start.map is None:
            del settings["train"]["start"]["map"]
        return settings

    def differing(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """The dotted science settings in which two runs differ, with both values.

        What stands around an operator counts, also where its kind implies it.
        """
        a, b = (
            flatten(one.science()) | {"model.op.shell": shell_of(one.model.op)}
            for one in (self, other)
        )
        return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}

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
