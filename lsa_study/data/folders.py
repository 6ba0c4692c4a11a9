"""ImageNet as folders: ``<wnid>/<file>``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsa_study.data.index import SUFFIXES, Found
from lsa_study.data.paths import DataLacks


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    root: Path
    names: np.ndarray[tuple[int], np.dtype[np.bytes_]]

    def read(self, place: int) -> bytes:
        """The content of a file."""
        return self._path(place).read_bytes()

    def where(self, place: int) -> str:
        """Its path."""
        return str(self._path(place))

    def _path(self, place: int) -> Path:
        return self.root / os.fsdecode(self.names[place])


def find(root: Path, classes: Sequence[str] | None) -> Found:
    """List the images of a split.

    Args:
        root: holds one folder for every class.
        classes: of the training split; None for the training split itself.

    Raises:
        DataLacks: a folder is none of ``classes``, or there is none.
    """
    found = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir()))
    if not found or (classes is not None and not set(found) <= set(classes)):
        extra = ", ".join(sorted({*found} - {*(classes or ())})[:3]) or "no class folder"
        raise DataLacks(
            f"{root}: holds {extra}; wanted are the same <wnid>/ folders of images as in train"
        )
    classes = tuple(classes or found)
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    names: list[str] = []
    for name in found:
        files = [e.name for e in os.scandir(root / name) if e.name.lower().endswith(SUFFIXES)]
        names += [f"{name}/{file}" for file in files]
        labels += [numbers[name]] * len(files)
    if not names:
        raise DataLacks(f"{root}: holds no images; wanted are <wnid>/ folders of .JPEG files")
    encoded = np.array([os.fsencode(name) for name in names])
    return Found(Files(root, encoded), np.array(labels, np.int64), names, classes)
