"""Where data sets lie on this machine.

Needs no torch, so that ``lsa plan`` can ask.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lsa_study.config.settings import Data
from lsa_study.errors import ConfigError, EnvironmentLacks

TITLES = {
    "digits": "digits", "cifar10": "CIFAR-10", "imagenet": "ImageNet", "scenes": "scenes",
    "coco": "COCO", "ade20k": "ADE20K",
}  # fmt: skip

CURE = "set LSA_DATA or data.root; `lsa run table1 --tier toy` needs no data"

LAYOUTS = {
    "cifar10": (
        ("cifar10/train.parquet", "cifar10/test.parquet"),
        ("cifar10/cifar-10-batches-py",),
        ("cifar-10-batches-py",),
    ),
    "imagenet": (
        ("imagenet/train", "imagenet/val"),
        ("imagenet/train*.parquet", "imagenet/val*.parquet"),
    ),
    "coco": (
        (
            "coco/annotations/instances_train2017.json",
            "coco/train2017",
            "coco/annotations/instances_val2017.json",
            "coco/val2017",
        ),
    ),
    "ade20k": tuple(
        (
            f"{home}/images/training",
            f"{home}/annotations/training",
            f"{home}/images/validation",
            f"{home}/annotations/validation",
        )
        for home in ("ade20k", "ADEChallengeData2016", "ade20k/ADEChallengeData2016")
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

    kind: Literal["folders", "parquet"]
    root: Path
    """The folder ``imagenet``."""
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    """The split's folder, or its shards in the order of their names."""


def require(data: Data) -> tuple[Path, ...]:
    """Find a data set's files or folders; none for the embedded digits.

    Of a set from outside it is the data sets' folder, where there is one.

    Raises:
        DataLacks: they are not there; the message names the place and who gave it.
    """
    if data.name not in LAYOUTS:
        given = ":" in data.name and (data.root or os.environ.get("LSA_DATA"))
        return (_root(data)[0],) if given else ()
    if data.name == "imagenet":
        found = imagenet(data)
        return (*found.train, *found.test)
    root, _ = _root(data)
    for layout in LAYOUTS[data.name]:
        if all((root / part).exists() for part in layout):
            return tuple(root / part for part in layout)
    raise _missing(data)


def cached(name: str) -> Path:
    """Where what is made of a data set's files is kept for the next time.

    Raises:
        RuntimeError: there is no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsa_study" / name


def weights(data: Data, name: str) -> Path:
    """Find a file of weights under the data sets' folder.

    Raises:
        DataLacks: it is not there.
    """
    root, origin = _root(data)
    path = root / "weights" / name
    if not path.is_file():
        raise DataLacks(
            f"train.start.weights: {path} not found (from {origin}); put the weights there, begin "
            "from a row that is trained here (train.start: {study: ..., row: ...}), or drop "
            "train.start to begin with randomly initialised ones"
        )
    return path


def head_rows(data: Data, name: str) -> list[int]:
    """Read a map of classes under the data sets' folder: for each, its row in another classifier.

    Raises:
        DataLacks: it is not there.
        ConfigError: a line is no number of a row.
    """
    root, origin = _root(data)
    path = root / "weights" / name
    if not path.is_file():
        raise DataLacks(
            f"train.start.map: {path} not found (from {origin}); put the map there, which Swin's "
            "authors release as data/map22kto1k.txt with their code, or give train.start.head: "
            "drawn and train.start.map: null"
        )
    lines = path.read_text("utf-8", errors="replace").split()
    for number, line in enumerate(lines, start=1):
        if not (line.isascii() and line.isdigit()):
            raise ConfigError(
                f"train.start.map: {path}: entry {number} is {line[:40]!r}; give a line for every "
                "class, the number of its row from 0"
            )
    return [int(line) for line in lines]


def imagenet(data: Data) -> Layout:
    """Find ImageNet as folders or shards.

    Raises:
        DataLacks: it is not there, or there twice in two layouts.
    """
    found = layout_of_imagenet(_root(data)[0])
    if found is None:
        raise _missing(data)
    return found


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, but for the hidden files that desktops and notebooks leave.

    Raises:
        DataLacks: it cannot be read.
    """
    try:
        found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataLacks(f"{folder}: cannot be read ({error.strerror}); mend that") from error
    return sorted(found, key=lambda entry: entry.name)


def layout_of_imagenet(root: Path) -> Layout | None:
    """The layout in which ``root`` holds ImageNet, or None where it does not.

    Raises:
        DataLacks: there are two, or it cannot be read.
    """
    home = root / "imagenet"
    folders, shards = {}, {}
    for split in ("train", "val"):
        folder = home / split
        inside = entries(folder) if folder.is_dir() else []
        paths = sorted((
            *home.glob(f"{split}*.parquet"),
            *(Path(entry) for entry in inside if entry.name.endswith(".parquet")),
        ))  # fmt: skip
        if paths:
            shards[split] = tuple(paths)
        # An empty folder counts: what it lacks is reported where it is listed.
        if folder.is_dir() and (not paths or any(entry.is_dir() for entry in inside)):
            folders[split] = (folder,)
    if folders and shards:
        one, other = (next(iter(f.values()))[0].relative_to(root) for f in (folders, shards))
        raise DataLacks(
            f"{home}: holds ImageNet as folders ({one}) and parquet ({other}); keep one of them"
        )
    found = folders or shards
    if len(found) < 2:
        return None
    return Layout("folders" if folders else "parquet", home, found["train"], found["val"])


def _root(data: Data) -> tuple[Path, str]:
    """The data sets' folder, and the setting or variable that names it."""
    origin = "LSA_DATA" if data.root is None else "data.root"
    given = os.environ.get("LSA_DATA") if data.root is None else data.root
    if not given:
        raise DataLacks(
            f"{TITLES.get(data.name, data.name)} not found: neither data.root nor LSA_DATA is set; "
            f"{CURE}"
        )
    # Where there is no home, pathlib's would raise.
    return Path(os.path.expanduser(given)), origin  # noqa: PTH111


def _missing(data: Data) -> DataLacks:
    root, origin = _root(data)
    wanted = " or ".join(" and ".join(layout) for layout in LAYOUTS[data.name])
    title = TITLES.get(data.name, data.name)
    return DataLacks(
        f"{title} not found at {root / data.name} (from {origin}); {CURE}. "
        f"Wanted under {root}: {wanted}"
    )
