"""What a network is to do, and by which metrics it is judged. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from lsa_study.config.operators import Group
from lsa_study.config.values import listed


class Classify(Group):
    """One class of each image."""

    kind: Literal["classify"] = "classify"
    """classify: one class for a whole image; detect: boxes, masks and classes of the things in it;
    segment: a class for every pixel."""


class Detect(Group):
    """Boxes and masks of the things in an image."""

    kind: Literal["detect"]
    """classify: one class for a whole image; detect: boxes, masks and classes of the things in it;
    segment: a class for every pixel."""
    framework: Literal["mask_rcnn", "cascade_mask_rcnn"] = "mask_rcnn"
    """mask_rcnn: one head behind the proposals; cascade_mask_rcnn: three, each of which betters the
    boxes of the last."""
    upsample: Literal["nearest", "ddf_up"] = "nearest"
    """How the pyramid enlarges a map before it is added to the next: nearest: each pixel repeated;
    ddf_up: by DDF-Up."""
    size: Literal["article", "micro"] = "article"
    """article: widths and numbers of boxes as published; micro: a small pyramid and small heads,
    for pictures of about 100 pixels."""


class Segment(Group):
    """The class of every pixel."""

    kind: Literal["segment"]
    """classify: one class for a whole image; detect: boxes, masks and classes of the things in it;
    segment: a class for every pixel."""
    framework: Literal["upernet"] = "upernet"
    """upernet: a pyramid with pooled context, and a second head on stage 3 in training."""
    size: Literal["article", "micro"] = "article"
    """article: widths as published; micro: narrow, for pictures of about 100 pixels."""
    test_scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=16)], ...],
        BeforeValidator(listed),
        Field(min_length=1),
    ] = (1.0,)
    """Sizes at which each test image is seen, relative to ``data.image_size``; shares are averaged.
    """
    test_flip: bool = False
    """Whether it is seen mirrored as well, at each of them."""


Task = Annotated[Classify | Detect | Segment, Field(discriminator="kind")]
TASK_KINDS: Mapping[str, type[Group]] = {
    "classify": Classify, "detect": Detect, "segment": Segment,
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A number by which networks are judged; more is better."""

    short: str
    """Of its column where space is short, and before a number."""
    title: str
    """Of its column in a table."""
    axis: str
    """Of its axis in a figure."""
    text: str
    """Within a sentence."""
    article: str
    """Of its axis where the article's numbers stand."""
    first: str
    """That begins a sentence."""

    def shown(self, value: float, digits: int = 2) -> str:
        """A value with its unit, such as ``81.30 %``; AP has none."""
        return f"{value:.{digits}f}{' %' * ('(%)' in self.title)}"


METRICS: Mapping[str, Metric] = {
    "acc1": Metric(
        "top-1", "Acc@1 (%)", "Top-1 accuracy on the test set (%)", "top-1 accuracy",
        "Top-1 accuracy on ImageNet-1K (%)", "Accuracy",
    ),
    "box_ap": Metric(
        "box AP", "Box AP", "Box AP on the test set (points)", "box AP", "Box AP on COCO (points)",
        "Box AP",
    ),
    "mask_ap": Metric(
        "mask AP", "Mask AP", "Mask AP on the test set (points)", "mask AP",
        "Mask AP on COCO (points)", "Mask AP",
    ),
    "miou": Metric(
        "mIoU", "mIoU (%)", "mIoU on the test set (%)", "mIoU", "mIoU on ADE20K (%)", "mIoU"
    ),
}  # fmt: skip
"""By their names in files of data: percent or, of AP, points of 100."""
OF_TASK: Mapping[str, tuple[str, ...]] = {
    "classify": ("acc1",), "detect": ("box_ap", "mask_ap"), "segment": ("miou",),
}  # fmt: skip
"""The metrics of each task's tables; rows are ordered and epochs chosen by the first."""
IDLE: Mapping[str, object] = {
    "data.validation": None, "train.tokens": None, "train.norm_batch": None,
    "augment.rand_augment": None, "augment.color_jitter": 0.0, "augment.erasing": 0.0,
    "augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.label_smoothing": 0.0,
    "augment.order": "erase_first", "evaluation.metrics": {}, "evaluation.crop": "centre",
    "evaluation.crop_share": 1.0, "evaluation.batch_size": 256, "runtime.compile": False,
}  # fmt: skip
"""Settings that only classification reads, as they have to stand in a run of another task."""
SETS: Mapping[str, tuple[str, ...]] = {
    "classify": ("digits", "cifar10", "imagenet"), "detect": ("scenes", "coco"),
    "segment": ("scenes", "ade20k"),
}  # fmt: skip
"""The data sets that hold what a task learns from."""


NEEDS: Mapping[str, str] = {"detect": "pycocotools", "segment": "segmentation_models_pytorch"}
"""The package that a task needs beside those that are always installed."""


def curve_key(metric: str) -> str:
    """The name of a metric in the records of a run's epochs."""
    return metric if metric == "acc1" else f"metrics.{metric}"
