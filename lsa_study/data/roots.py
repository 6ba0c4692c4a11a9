"""Where data sets lie on this machine. Needs no torch, so that ``lsa plan`` can ask."""

from __future__ import annotations

import os
from pathlib import Path

from lsa_study.config import Data
from lsa_study.errors import EnvironmentLacks

TITLES = {"digits": "digits", "cifar10": "CIFAR-10", "imagenet": "ImageNet"}

LAYOUTS = {
    "cifar10": (
        ("cifar10/train.parquet", "cifar10/test.parquet"),
        ("cifar10/cifar-10-batches-py",),
        ("cifar-10-batches-py",),
    ),
    "imagenet": (("imagenet/train", "imagenet/val"),),
}
"""Accepted layouts under the root: all paths of one of them exist. The first is preferred."""


class DataLacks(EnvironmentLacks):
    """The data set is missing, incomplete or damaged."""


def require(data: Data) -> tuple[Path, ...]:
    """Find a data set's files or folders; none for the embedded digits.

    Raises:
        DataLacks: they are not there; the message says where was looked and on whose word.
    """
    if data.name not in LAYOUTS:
        return ()
    title, layouts = TITLES[data.name], LAYOUTS[data.name]
    cure = "set LSA_DATA or data.root; `lsa run table1 --tier toy` needs no data"
    origin = "data.root" if data.root is not None else "LSA_DATA"
    given = data.root if data.root is not None else os.environ.get("LSA_DATA")
    if not given:
        raise DataLacks(f"{title} not found: neither data.root nor LSA_DATA is set; {cure}")
    root = Path(given).expanduser()
    for layout in layouts:
        if all((root / part).exists() for part in layout):
            return tuple(root / part for part in layout)
    wanted = " or ".join(" and ".join(layout) for layout in layouts)
    raise DataLacks(
        f"{title} not found at {root / data.name} (from {origin}); {cure}. "
        f"Wanted under {root}: {wanted}"
    )
