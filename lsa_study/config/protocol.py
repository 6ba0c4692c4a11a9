"""How a network is trained: optimisation, token labels, augmentation; the article's protocol.

Nothing here needs torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lsa_study.config.operators import Group, Weight
from lsa_study.config.optimizer import Optimizer
from lsa_study.config.start import Start
from lsa_study.config.values import RANGE, Epochs, Images, Policy, Rate, Share, listed


class TokenLabels(Group):
    """VOLO's recipe: every token answers for its own place, and tokens of two images are mixed."""

    labels: Literal["plain", "maps", "maps_and_truth"]
    """plain: every token gets its image's class; maps: a trained network's answers for each place,
    from the data's folder; maps_and_truth: the image's own target also takes in its class."""
    class_weight: Annotated[Weight, Field(gt=0)] = 1.0
    """Of the loss of the whole image's class."""
    dense_weight: Weight = 0.5
    """Of the loss of the tokens, the mean over all."""
    boxes: Literal["upright", "transposed"] = "upright"
    """upright: labels are cut where the picture is; transposed: as the released code, which takes
    rows of the cut box for columns when it looks up its labels."""
    mix_token: Weight = 1.0
    """Both parameters of the beta draw of the pasted box's area; 0 mixes nothing."""


class Decay(Group):
    """How the learning rate falls from its peak."""

    kind: Literal["cosine", "steps", "poly"] = "cosine"
    """cosine: to ``min_lr``; steps: to a tenth after each of ``milestones``; poly: to ``min_lr`` by
    a power of what is left of the training."""
    milestones: Annotated[
        tuple[Annotated[int, Field(gt=0, le=100_000)], ...], BeforeValidator(listed)
    ] = ()
    """Of steps: the epochs after which the rate falls."""
    power: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of poly; 1: linearly."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        if (self.kind == "steps") != bool(self.milestones):
            raise ValueError(
                f"milestones={list(self.milestones)} with kind={self.kind!r}: steps need some, "
                "such as [8, 11], and nothing else reads them"
            )
        if list(self.milestones) != sorted({*self.milestones}):
            raise ValueError(f"milestones={list(self.milestones)}: give rising epochs")
        if self.kind != "poly" and self.power != 1.0:
            raise ValueError(f"power={self.power:g} changes nothing with kind={self.kind!r}")
        return self


class Train(Group):
    """The optimisation protocol; the same for every row of a table."""

    epochs: Annotated[int, Field(gt=0, le=100_000)]
    """All epochs: warm-up, cosine or other decay, and cool-down together."""
    decay: Decay = Decay()
    """How the rate falls."""
    optimizer: Optimizer = Optimizer()
    """Which rule moves the weights, and its momentum."""
    batch_size: Images
    """Effective batch: images per optimiser step over all devices and accumulation steps."""
    lr: Annotated[Rate, Field(gt=0)]
    """Peak learning rate at ``lr_batch`` images a step; scaled linearly to ``batch_size``."""
    lr_batch: Images = 1024
    """Images a step at which the peak rate is ``lr`` itself."""
    min_lr: Rate
    """Rate at the end of the cosine, whatever the batch."""
    warmup_lr: Rate
    """Rate that warm-up begins with, whatever the batch."""
    warmup_epochs: Epochs
    """Linear. If it and the cool-down pass half of ``epochs``, both shrink in proportion."""
    cooldown_epochs: Epochs
    """Epochs at ``min_lr`` at the end."""
    schedule: Literal["epoch", "step"]
    """Whether the rate moves once an epoch (the article) or at every step."""
    weight_decay: Weight
    """AdamW's, on all that ``no_decay`` does not spare."""
    no_decay: Literal["timm", "swin", "mmdet"] = "timm"
    """timm: 1-D parameters, VOLO's position map and class token are not decayed (as the released
    code of ELSA and VOLO); swin: nor are position tables; mmdet: parameters of norms and Swin's
    position tables alone (as the released code of detection: biases and ELSA's tables are)."""
    clip_grad: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Largest norm of all gradients of a step together; null: as they are."""
    norm_batch: Images | None = None
    """Images over which batch norm takes its statistics in training, and which share a box of
    MixToken, such as what one GPU of the article held: on fewer or larger devices these stay the
    same, which have to compute whole groups (``config.parts``). null: all images of a part."""
    ema_decay: Share | None = None
    """Of the moving average of the weights, at every step; null: no average is kept."""
    tokens: TokenLabels | None = None
    """Token labeling and MixToken, in place of mixup and cutmix; VOLO only."""
    start: Start | None = None
    """Fine-tuning: weights to begin from; null: random ones."""
    precision: Literal["float32", "tf32", "amp", "fp16", "bf16"] = "float32"
    """bf16: bfloat16 autocast on every device; one whose processor does not compute in it itself
    refuses the run. On a GPU alone, and float32 on a CPU, are tf32: float32 whose matrix products
    and convolutions round their factors to 10 bits, on tensor cores; amp: the same bfloat16
    autocast; and fp16: float16 autocast and a loss scale that skips steps whose gradients overflow,
    as released. A run records which it was."""

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if late := [one for one in self.decay.milestones if one >= self.epochs]:
            raise ValueError(
                f"decay.milestones={list(self.decay.milestones)} with epochs={self.epochs}: "
                f"the rate never falls at {late[0]}; give smaller milestones, or more epochs"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_usual(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {"decay": self.decay.kind == "cosine", "optimizer": self.optimizer.kind == "adamw"}
        return {k: v for k, v in dump(self).items() if not usual.get(k)}


class Augment(Group):
    """What is done to training images and labels."""

    crop: Literal["none", "pad", "random_resized", "multi_scale"]
    """none: the centre, or where things are detected or pixels labelled the whole image; pad: any
    square of the image and a border around it; random_resized: a part of the image, resized;
    multi_scale: for the last two tasks alone, as the released code of each trains."""
    crop_pad: Annotated[int, Field(ge=0, le=1000)] = 4
    """Pixels of that border; for ``crop: pad``."""
    crop_scale: Annotated[tuple[Share, Share], *RANGE] = (0.08, 1.0)
    """Least and largest share of the image's area; for ``crop: random_resized``."""
    crop_ratio: Annotated[tuple[float, float], *RANGE] = (0.75, 1.3333333333333333)
    """Least and largest width over height; for ``crop: random_resized``."""
    hflip: Share = 0.0
    """How often an image is mirrored."""
    rand_augment: Policy | None = None
    """A policy as timm writes it, such as rand-m9-mstd0.5-inc1."""
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Strength of random brightness, contrast and saturation; not read beside ``rand_augment``."""
    erasing: Share = 0.0
    """How often a box of the image is replaced by noise."""
    mixup: Weight = 0.0
    """Both parameters of the beta draw of two images' shares; 0: off."""
    cutmix: Weight = 0.0
    """Both parameters of the beta draw of the pasted box's area; 0: off."""
    mix_prob: Share = 1.0
    """How often a step is mixed at all."""
    mix_switch: Share = 0.5
    """How often by cutmix where mixup is on too."""
    order: Literal["erase_first", "mix_first"] = "erase_first"
    """erase_first: normalised images are erased, then mixed (Swin's code); mix_first: pixels are
    mixed and rounded, then normalised and erased, so that erased boxes stay whole (ELSA's)."""
    label_smoothing: Share = 0.0
    """Share of a target that is spread over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        mixing = bool(self.mixup or self.cutmix)
        for name, read, right in (
            ("crop_pad", self.crop == "pad", "augment.crop: pad"),
            ("crop_scale", self.crop == "random_resized", "augment.crop: random_resized"),
            ("crop_ratio", self.crop == "random_resized", "augment.crop: random_resized"),
            ("mix_prob", mixing, "augment.mixup or augment.cutmix above 0"),
            ("mix_switch", self.mixup and self.cutmix, "both augment.mixup and augment.cutmix"),
        ):
            value, usual = getattr(self, name), type(self).model_fields[name].default
            if value != usual and not read:
                usual = list(usual) if isinstance(usual, tuple) else usual
                raise ValueError(f"{name}={value}: read with {right} alone; leave it at {usual}")
        return self
