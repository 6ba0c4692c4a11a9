"""What values of settings can be: names of networks and data sets, ranges of numbers, policies."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from lsa_study.config.imports import ImportPath
from lsa_study.config.operators import OUTSIDE, OWN

Backbone = Literal[
    "swin_micro", "swin_mini", "swin_mini_p2", "swin_mini_conv",
    "swin_micro4", "swin_micro4_deep", "swin_micro4_wide",
    "swin_tiny", "swin_small", "swin_base", "swin_large",
    "volo_d1", "volo_d2", "volo_d3", "volo_d4", "volo_d5",
    "deit_micro", "deit_mini", "deit_tiny", "deit_small", "deit_base",
    "resnet_micro", "resnet_micro_deep", "resnet_mini", "resnet_mini_deep",
    "resnet50", "resnet101", "resnet152",
]  # fmt: skip
DataName = Literal["digits", "cifar10", "imagenet", "scenes", "coco", "ade20k"]
_OURS_OR_NOT = Discriminator(lambda v: OUTSIDE if isinstance(v, str) and ":" in v else OWN)
AnyBackbone = Annotated[
    Annotated[Backbone, Tag(OWN)] | Annotated[ImportPath, Tag(OUTSIDE)], _OURS_OR_NOT
]
AnyData = Annotated[
    Annotated[DataName, Tag(OWN)] | Annotated[ImportPath, Tag(OUTSIDE)], _OURS_OR_NOT
]
MetricName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]+$", max_length=40)]
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


def listed(value: object) -> object:
    """A list as the tuple that settings hold; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


RANGE = (BeforeValidator(listed), AfterValidator(_rising))


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
    "imagenet": (1_281_167, 50_000, 1000), "scenes": (2_000, 500, 10),
    "coco": (117_266, 5_000, 80), "ade20k": (20_210, 2_000, 150),
}  # fmt: skip
"""Training images, test images and classes of each data set."""
