"""Data sets: real images, where they lie, how they become batches.

Importing this package does not import torch; loading a set does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsa_study.config.settings import Settings
from lsa_study.data import dense
from lsa_study.data.paths import DataLacks, head_rows, require, weights

if TYPE_CHECKING:
    from lsa_study.data.sets import Datasets

__all__ = ["DataLacks", "check", "head_rows", "load", "require", "weights"]


def load(settings: Settings, *, device: str = "cpu") -> Datasets:
    """Load the training and the test set that ``settings`` ask for, of a run that classifies.

    Small sets are read whole; of ImageNet only the list of images is read. Batches are made and
    handed over on ``device``, such as ``"cuda"``.

    Raises:
        DataLacks: the files are missing, incomplete or damaged.
    """
    # Imported here, not above: planning must not need torch.
    from lsa_study.data import imagenet, in_memory

    if settings.data.name == "imagenet":
        return imagenet.ImagenetSets(settings, device)
    return in_memory.TensorSets(settings, device)


def check(*every: Settings) -> None:
    """Load the data once to see that they are whole, before anything is trained.

    Raises:
        DataLacks: the files are missing, incomplete or damaged, or weights to begin from are; of
            these all are named.
        ConfigError: what they hold cannot be used.
    """
    lacking: dict[str, None] = {}
    for settings in every:
        start = settings.train.start
        if start is None or start.weights is None:
            continue
        try:
            weights(settings.data, start.weights)
            if start.map is not None:
                head_rows(settings.data, start.map)
        except DataLacks as error:
            lacking[str(error)] = None
    if lacking:
        raise DataLacks("\n".join(lacking))
    for settings in {one.reads()[:2]: one for one in every}.values():
        if settings.task.kind == "classify":
            load(settings)
        else:
            dense.load(settings)
