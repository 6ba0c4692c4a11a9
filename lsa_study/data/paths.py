"""Where data sets lie on this machine. Needs no torch, so that ``lsa plan`` can ask."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lsa_study.config.settings import Data
from lsa_study.errors import EnvironmentLacks

TITLES = {"digits": "digits", "cifar10": "CIFAR-10", "imagenet": "ImageNet"}

CURE = "set LSA_DATA or data.root; `lsa run table1 --tier toy` needs no data"

Kind = Literal["folders", "parquet", "tar"]

LAYOUTS = {
    "cifar10": (
        ("cifar10/train.parquet", "cifar10/test.parquet"),
        ("cifar10/cifar-10-batches-py",),
        ("cifar-10-batches-py",),
    ),
    "imagenet": (
        ("imagenet/train", "imagenet/val"),
        ("imagenet/train*.parquet", "imagenet/val*.parquet"),
        ("imagenet/train-*.tar", "imagenet/val-*.tar"),
    ),
}
"""Accepted layouts under the root: all paths of one of them exist. The first is preferred.

Of ImageNet there may be one only; shards may also lie in ``imagenet/train`` and ``imagenet/val``.
"""


class DataLacks(EnvironmentLacks):
    """The data set is missing, incomplete or damaged."""

    cause = "data"


@dataclass(frozen=True)
class Layout:
    """How ImageNet lies under a root."""

    kind: Kind
    root: Path
    """The folder ``imagenet``."""
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    """The split's folder, or its shards in the order of their names."""


def require(data: Data) -> tuple[Path, ...]:
    """Find a data set's files or folders; none for the embedded digits.

    Raises:
        DataLacks: they are not there; the message says where was looked and on whose word.
    """
    if data.name not in LAYOUTS:
        return ()
    if data.name == "imagenet":
        found = imagenet(data)
        return (*found.train, *found.test)
    root = _root(data)
    for layout in LAYOUTS[data.name]:
        if all((root / part).exists() for part in layout):
            return tuple(root / part for part in layout)
    raise _missing(data, root)


def weights(data: Data, name: str) -> Path:
    """Find a file of weights under the data sets' folder.

    Raises:
        DataLacks: it is not there.
    """
    path = _root(data) / "weights" / name
    if not path.is_file():
        origin = "data.root" if data.root is not None else "LSA_DATA"
        raise DataLacks(
            f"train.start.weights: {path} not found (from {origin}); put the weights there, or "
            "drop train.start to begin with drawn ones"
        )
    return path


def imagenet(data: Data) -> Layout:
    """Find ImageNet as folders or shards.

    Raises:
        DataLacks: it is not there, or there twice in two layouts.
    """
    root = _root(data)
    found = layout_of_imagenet(root)
    if found is None:
        raise _missing(data, root)
    return found


def layout_of_imagenet(root: Path) -> Layout | None:
    """The layout in which ``root`` holds ImageNet, or None where it does not.

    Raises:
        DataLacks: there are two.
    """
    home = root / "imagenet"
    train, test = _parts(home, "train"), _parts(home, "val")
    kinds = sorted({*train, *test})
    if len(kinds) > 1:
        places = " and ".join(
            f"{kind} ({({**test, **train}[kind][0]).relative_to(root)})" for kind in kinds
        )
        raise DataLacks(f"{home}: holds ImageNet as {places}; keep one of them")
    if not train or not test:
        return None
    (kind,) = kinds
    return Layout(kind, home, train[kind], test[kind])


def _parts(home: Path, split: str) -> dict[Kind, tuple[Path, ...]]:
    folder = home / split
    found: dict[Kind, tuple[Path, ...]] = {
        "parquet": (*home.glob(f"{split}*.parquet"), *folder.glob("*.parquet")),
        "tar": (*home.glob(f"{split}-*.tar"), *folder.glob("*.tar")),
    }
    shards = any(found.values())
    # An empty folder counts: what it lacks is told where it is listed.
    if folder.is_dir() and (not shards or any(part.is_dir() for part in folder.iterdir())):
        found["folders"] = (folder,)
    return {kind: tuple(sorted(paths)) for kind, paths in found.items() if paths}


def _root(data: Data) -> Path:
    given = data.root if data.root is not None else os.environ.get("LSA_DATA")
    if not given:
        raise DataLacks(
            f"{TITLES[data.name]} not found: neither data.root nor LSA_DATA is set; {CURE}"
        )
    return Path(given).expanduser()


def _missing(data: Data, root: Path) -> DataLacks:
    origin = "data.root" if data.root is not None else "LSA_DATA"
    wanted = " or ".join(" and ".join(layout) for layout in LAYOUTS[data.name])
    return DataLacks(
        f"{TITLES[data.name]} not found at {root / data.name} (from {origin}); {CURE}. "
        f"Wanted under {root}: {wanted}"
    )
