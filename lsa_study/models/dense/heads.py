"""What a detector or segmenter is around its backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from lsa_study.config.task import Detect, Segment

Framework = Literal["mask_rcnn", "cascade_mask_rcnn", "upernet"]

MICRO: dict[str, dict[str, Any]] = {
    "detect": {
        "channels": 32, "anchor_scale": 4.0, "proposals": 100, "rois": 32, "box_width": 64,
        "mask_size": 14, "convs": 1,
    },
    "segment": {"channels": 64, "first_std": 0.1},
}  # fmt: skip
"""Of a task, what is smaller for pictures of about 100 pixels."""


@dataclass(frozen=True)
class Heads:
    """The networks of the article's Tables 9 and 10; smaller ones by smaller numbers."""

    framework: Framework
    upsample: Literal["nearest", "ddf_up"] = "nearest"
    """How a detector's feature pyramid enlarges a map."""
    channels: int | None = None
    """Of the pyramid; null: 256 for detectors, 512 for segmenters."""
    anchor_scale: float = 8.0
    """Side of an anchor against the stride of its level."""
    proposals: int | None = None
    """Of an image in training; null: 1000, 2000 for the cascade. In evaluation 1000 at most."""
    rois: int = 512
    """Of an image in training, of which a quarter can be positive."""
    box_width: int = 1024
    """Of the fully connected layers that judge a box."""
    mask_size: int = 28
    """Side of a mask in its box, an even number."""
    convs: int = 4
    """Convolutions of a mask head, and of a box head of the cascade."""
    first_std: float = 0.01
    """Deviation of the first weights that judge pixels. Of few channels, the published one gives
    logits so even that a small segmenter stays at the background for its first thousand steps."""

    @classmethod
    def of(cls, heads: Detect | Segment) -> Self:
        """Those that the settings of a task ask for."""
        upsample = heads.upsample if isinstance(heads, Detect) else "nearest"
        smaller = MICRO[heads.kind] if heads.size == "micro" else {}
        return cls(heads.framework, upsample, **smaller)

    @property
    def kind(self) -> Literal["detect", "segment"]:
        """Boxes and masks of objects, or a class for every pixel."""
        return "segment" if self.framework == "upernet" else "detect"

    @property
    def width(self) -> int:
        """Channels of the pyramid."""
        return self.channels or (512 if self.kind == "segment" else 256)
