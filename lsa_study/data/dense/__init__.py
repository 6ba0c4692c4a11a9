"""Sets whose objects are detected, or whose pixels are labelled; how their images become batches.

Importing this package does not import torch; reading a set does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsa_study.config.settings import Data
from lsa_study.data.paths import require
from lsa_study.errors import ConfigError

if TYPE_CHECKING:
    from lsa_study.data.dense.targets import Split

TASKS = {"scenes": ("detect", "segment"), "coco": ("detect",), "ade20k": ("segment",)}
"""What can be done with each set."""


def splits(data: Data, task: str) -> tuple[Split, Split]:
    """The training and the test images that ``data`` names, for ``"detect"`` or ``"segment"``.

    Raises:
        ConfigError: the set has no targets for the task.
        DataLacks: the files are missing, incomplete or damaged.
        EnvironmentLacks: pycocotools is needed and not installed.
    """
    if task not in TASKS.get(data.name, ()):
        fits = ", ".join(name for name, tasks in TASKS.items() if task in tasks)
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
    return kind(paths[0], paths[1], *first), kind(paths[2], paths[3], *last)
