"""Sets whose objects are detected, or whose pixels are labelled; how their images become batches.

Importing this package does not import torch; reading a set does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lsa_study.config.settings import Data, Settings
from lsa_study.config.task import SETS, Segment
from lsa_study.data.paths import DataLacks, require
from lsa_study.errors import ConfigError

if TYPE_CHECKING:
    from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe
    from lsa_study.data.dense.sets import DenseSets
    from lsa_study.data.dense.targets import Split

ARTICLE_SHORT, ARTICLE_LONG = 800, 1333
"""Sides of a test image in detection, to which those of training are in proportion."""
LONGEST = 4
"""Times its ``data.image_size`` the longer side of an image to segment may be."""


def splits(data: Data, task: str) -> tuple[Split, Split]:
    """The training and the test images that ``data`` names, for ``"detect"`` or ``"segment"``.

    Raises:
        ConfigError: the set has no targets for the task.
        DataLacks: the files are missing, incomplete or damaged.
        EnvironmentLacks: pycocotools is needed and not installed.
    """
    if data.name not in SETS[task]:
        fits = ", ".join(SETS[task])
        raise ConfigError(f"data.name={data.name}: has nothing to {task}; give one of {fits}")
    # Imported here, not above: planning must not need torch.
    from lsa_study.data.dense import ade20k, coco, scenes

    paths = require(data)
    first, last = ("train", data.train_limit), ("test", data.test_limit)
    if data.name == "scenes":
        one, other = (
            scenes.Scenes(split, task, data.image_size, limit) for split, limit in (first, last)
        )
        return one, other
    kind = coco.Coco if data.name == "coco" else ade20k.Ade20k
    train, test = kind(paths[0], paths[1], *first), kind(paths[2], paths[3], *last)
    if train.names != test.names:
        apart = sorted({*train.names} ^ {*test.names}) or ["their order"]
        raise DataLacks(
            f"{paths[2]}: has other categories than {paths[0]} ({', '.join(apart)[:100]}); labels "
            "would mean other things in training and in the test; give files of the same"
        )
    return train, test


def load(settings: Settings, *, device: str = "cpu") -> DenseSets:
    """The sets of a run whose task is to detect or to segment.

    Raises:
        DataLacks, EnvironmentLacks: as for ``splits``.
    """
    from lsa_study.data.dense.sets import DenseSets
    from lsa_study.data.dense.targets import coco_masks

    if settings.task.kind == "detect":
        coco_masks()  # says what to install before anything is trained
    train, test = splits(settings.data, settings.task.kind)
    return DenseSets(
        settings.data.name, train, test, recipe(settings), seed=settings.seed, device=device,
        workers=settings.runtime.workers,
    )  # fmt: skip


def recipe(settings: Settings) -> DetectRecipe | SegmentRecipe:
    """How images are augmented and tested: as released for ``crop: multi_scale``, else whole."""
    from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe

    side, task, augment = settings.data.image_size, settings.task, settings.augment
    whole = augment.crop == "none"
    if isinstance(task, Segment):
        train = SegmentRecipe(short=side, long=LONGEST * side, crop=side, hflip=augment.hflip)
        if whole:
            train = replace(train, scales=(1.0, 1.0), cat_max_ratio=1.0, distort=False)
        return replace(train, test_scales=task.test_scales, test_flip=task.test_flip)
    released, by = DetectRecipe(), side / ARTICLE_SHORT

    def in_proportion(sides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, round(one * by)) for one in sides)

    least, most = in_proportion(released.crop)
    return DetectRecipe(
        shorts=(side,) if whole else in_proportion(released.shorts),
        long=round(ARTICLE_LONG * by), crop_share=0.0 if whole else released.crop_share,
        crop_shorts=in_proportion(released.crop_shorts), crop=(least, most),
        hflip=augment.hflip, test_short=side,
    )  # fmt: skip
