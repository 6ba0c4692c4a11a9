"""Which images ImageNet has, in which order, whether they lie in folders or in shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lsa_study.data import rng
from lsa_study.data.paths import DataLacks, entries

SUFFIXES = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder has them."""
EXPECTED = {"train": 1_281_167, "val": 50_000}
CLASSES = 1000
THREADS = 4
"""That ask for sizes of files at once."""


@dataclass(frozen=True)
class Listing:
    """The encoded images of one split; here each in a file.

    Names are held as fixed-width bytes: lists of Python strings are copied into every worker as
    soon as it counts references.
    """

    root: Path
    """The split's folder, for messages."""
    names: NDArray[np.bytes_]
    """Class folder / file; of a shard perhaps the file alone."""
    labels: NDArray[np.int64]
    """As ``classes`` number them; once in turn, counted from 0."""
    classes: dict[int, str]
    """Names by number, in its order; some may have no image until they are in turn."""
    places: NDArray[np.int64]
    """(N, 3): in shards, each image's shard, row group and row; else (N, 0)."""
    sizes: NDArray[np.int64]
    """Bytes of each encoded image; -1 where only reading it would say."""

    def read(self, index: int) -> bytes:
        """The encoded image with this number.

        Raises:
            OSError: it cannot be read.
        """
        return Path(self.where(index)).read_bytes()

    def where(self, index: int) -> str:
        """Its file, or shard and row, for messages."""
        return str(self.root / os.fsdecode(self.names[index]))

    def files(self) -> list[str]:
        """Name and size of each file that holds images whose own sizes are unknown."""
        return []

    def in_turn(self, like: Listing | None) -> Self:
        """The same with the first image of every class first, then the second, and so on.

        So the first N of a limited run come from all classes alike. The classes of ``like``, the
        training split, count; None for the training split itself.

        Raises:
            DataLacks: there are no images, or some of a class that ``like`` lacks.
        """
        if not len(self.labels):
            raise DataLacks(f"{self.root}: holds no images; wanted are encoded images by class")
        found = np.unique(self.labels).tolist()
        classes = {n: self.classes[n] for n in found} if like is None else like.classes
        if extra := [number for number in found if number not in classes]:
            shown = ", ".join(map(str, extra[:3]))
            raise DataLacks(
                f"{self.root}: holds images of class {shown}, of which train has none; wanted "
                "are the same classes as in train"
            )
        labels = np.searchsorted(list(classes), self.labels)
        by_class = np.lexsort((self.names, labels))
        ordered = labels[by_class]
        turn = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        rows = by_class[np.lexsort((ordered, turn))]
        return replace(
            self, names=self.names[rows], labels=labels[rows], classes=classes,
            places=self.places[rows], sizes=self.sizes[rows],
        )  # fmt: skip

    def complete(self, split: str) -> None:
        """Check that all of ImageNet is there.

        Raises:
            DataLacks: images are missing, or too many; the message counts them.
        """
        found, wanted = len(self.labels), EXPECTED[split]
        if found == wanted and len(self.classes) == CLASSES:
            return
        counts = np.bincount(self.labels, minlength=len(self.classes))
        fewest = int(counts.argmin())
        name = list(self.classes.values())[fewest]
        difference = f"{abs(wanted - found):,} {'missing' if found < wanted else 'too many'}"
        raise DataLacks(
            f"{self.root}: {split} has {found:,} images in {len(counts)} classes, expected "
            f"{wanted:,} in {CLASSES}: {difference}; the smallest class is {name} with "
            f"{counts[fewest]}. Complete it, or ask for a part with data.train_limit"
        )


def find_in_folders(root: Path, classes: dict[int, str] | None) -> Listing:
    """List the images of a split that lie as ``<wnid>/<file>``.

    ``classes`` are those of the training split; None for the training split itself.

    Raises:
        DataLacks: a folder is none of ``classes``, or there is none.
    """
    train = classes is None
    found = [entry.name for entry in entries(root) if entry.is_dir()]
    classes = dict(enumerate(found)) if classes is None else classes
    numbers = {name: number for number, name in classes.items()}
    if not found or not set(found) <= set(numbers):
        extra = ", ".join(sorted({*found} - {*numbers})[:3]) or "no class folder"
        raise DataLacks(
            f"{root}: holds {extra}; wanted are the same <wnid>/ folders of images as in train"
        )
    labels: list[int] = []
    names: list[str] = []
    sizes: list[int] = []
    # A shared file system takes its time for each size, but answers many at once.
    with ThreadPoolExecutor(THREADS) as pool:
        for name, files in zip(found, pool.map(_images_in, (root / n for n in found)), strict=True):
            # Without it, all classes behind it would change their numbers.
            if train and not files:
                raise DataLacks(
                    f"{root / name}: holds no images; bring them back, or remove the folder here "
                    "and in val"
                )
            names += [f"{name}/{file}" for file, _ in files]
            sizes += [size for _, size in files]
            labels += [numbers[name]] * len(files)
    encoded = np.array([os.fsencode(name) for name in names])
    nowhere = np.empty((len(names), 0), np.int64)
    return Listing(
        root, encoded, np.array(labels, np.int64), classes, nowhere, np.array(sizes, np.int64)
    )


def _images_in(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of a class folder's images."""
    # A folder or a lost link of such a name is reported where it is read; a pipe would hang.
    return [
        (e.name, e.stat().st_size if e.is_file() else -1)
        for e in entries(folder)
        if e.name.lower().endswith(SUFFIXES) and (e.is_file() or e.is_dir() or e.is_symlink())
    ]


def heads(contents: Iterable[bytes]) -> list[str | bytes]:
    """Size and first 4 kB of each, for a fingerprint."""
    return [part for content in contents for part in (str(len(content)), content[:4096])]


def fingerprint(train: Listing, test: Listing, more: Sequence[Any] = ()) -> str:
    """Hash the name and size of every image, the first 4 kB of every thousandth, and ``more``.

    Shards that record no sizes of images are hashed with their own names and sizes.

    Raises:
        DataLacks: an image cannot be read.
    """
    content: list[Any] = []
    try:
        for listing in (train, test):
            order = np.argsort(listing.names, kind="stable")
            content += [listing.names[order], listing.sizes[order], *listing.files()]
            content += heads(map(listing.read, range(0, len(listing.names), 1000)))
    except OSError as error:
        raise DataLacks(f"{train.root}: cannot be read ({error})") from error
    return rng.fingerprint("imagenet", *content, *more)
