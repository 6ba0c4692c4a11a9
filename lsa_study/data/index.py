"""Which images ImageNet has, in which order, whether they lie in folders or in shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsa_study.data import rng
from lsa_study.data.paths import DataLacks, entries

SUFFIXES = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder has them."""
EXPECTED = {"train": 1_281_167, "val": 50_000}
CLASSES = 1000


@dataclass(frozen=True)
class Store:
    """The encoded images of a split in an order of its own; here each in a file."""

    root: Path
    """The split's folder, for messages."""
    names: NDArray[np.bytes_]
    """Class folder / file; of a shard perhaps the file alone."""
    labels: NDArray[np.int64]
    """Class numbers, of which some may be absent."""
    classes: tuple[str, ...] | None
    """Names of the classes where folders say them; the labels count in them."""

    def read(self, place: int) -> bytes:
        """The encoded image at a place.

        Raises:
            OSError: it cannot be read.
        """
        return Path(self.where(place)).read_bytes()

    def where(self, place: int) -> str:
        """Its file, or shard and row, for messages."""
        return str(self.root / os.fsdecode(self.names[place]))


@dataclass(frozen=True)
class Listing:
    """The images of one split: the first of every class, then the second, and so on.

    So the first N of a limited run come from all classes alike. Names are held as fixed-width
    bytes: lists of Python strings are copied into every worker as soon as it counts references.
    """

    store: Store
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]
    """Of each image in the store."""
    classes: tuple[str, ...]
    numbers: NDArray[np.int64]
    """The store's number of each class."""

    def read(self, index: int) -> bytes:
        """The encoded image with this number."""
        return self.store.read(int(self.places[index]))

    def where(self, index: int) -> str:
        """Where the image with this number lies."""
        return self.store.where(int(self.places[index]))

    @classmethod
    def of(cls, found: Store, like: Listing | None) -> Listing:
        """Put a split in order; the classes of ``like``, the training split, count.

        Raises:
            DataLacks: there are no images, or some of a class that ``like`` lacks.
        """
        if not len(found.labels):
            raise DataLacks(f"{found.root}: holds no images; wanted are encoded images by class")
        numbers = np.unique(found.labels) if like is None else like.numbers
        if extra := sorted(set(found.labels.tolist()) - set(numbers.tolist())):
            shown = ", ".join(map(str, extra[:3]))
            raise DataLacks(
                f"{found.root}: holds images of class {shown}, of which train has none; wanted "
                "are the same classes as in train"
            )
        labels = np.searchsorted(numbers, found.labels)
        by_class = np.lexsort((found.names, labels))
        starts = np.searchsorted(labels[by_class], np.arange(len(numbers)))
        turn = np.empty(len(labels), np.int64)
        turn[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
        rows = np.lexsort((found.names, labels, turn))
        if like is not None:
            classes = like.classes
        elif found.classes is not None:
            classes = tuple(found.classes[number] for number in numbers)
        else:
            named = dict(zip(found.labels.tolist(), found.names.tolist(), strict=True))
            parts = {number: os.fsdecode(name).split("/") for number, name in named.items()}
            classes = tuple(
                parts[number][0] if len(parts[number]) > 1 else str(number)
                for number in numbers.tolist()
            )
        return cls(found, found.names[rows], labels[rows], rows, classes, numbers)

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
        difference = f"{abs(wanted - found):,} {'missing' if found < wanted else 'too many'}"
        raise DataLacks(
            f"{self.store.root}: {split} has {found:,} images in {len(counts)} classes, expected "
            f"{wanted:,} in {CLASSES}: {difference}; the smallest class is {self.classes[fewest]} "
            f"with {counts[fewest]}. Complete it, or ask for a part with data.train_limit"
        )


def find_in_folders(root: Path, classes: Sequence[str] | None) -> Store:
    """List the images of a split that lie as ``<wnid>/<file>``.

    ``classes`` are those of the training split; None for the training split itself.

    Raises:
        DataLacks: a folder is none of ``classes``, or there is none.
    """
    found = tuple(e.name for e in entries(root) if e.is_dir())
    if not found or (classes is not None and not set(found) <= set(classes)):
        extra = ", ".join(sorted({*found} - {*(classes or ())})[:3]) or "no class folder"
        raise DataLacks(
            f"{root}: holds {extra}; wanted are the same <wnid>/ folders of images as in train"
        )
    train, classes = classes is None, tuple(classes or found)
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    names: list[str] = []
    for name in found:
        # A folder or a lost link of such a name is reported where it is read; a pipe would hang.
        files = [
            e.name
            for e in entries(root / name)
            if e.name.lower().endswith(SUFFIXES) and (e.is_file() or e.is_dir() or e.is_symlink())
        ]
        # Without it, all classes behind it would change their numbers.
        if train and not files:
            raise DataLacks(
                f"{root / name}: holds no images; bring them back, or remove the folder here and "
                "in val"
            )
        names += [f"{name}/{file}" for file in files]
        labels += [numbers[name]] * len(files)
    if not names:
        raise DataLacks(f"{root}: holds no images; wanted are <wnid>/ folders of .JPEG files")
    encoded = np.array([os.fsencode(name) for name in names])
    return Store(root, encoded, np.array(labels, np.int64), classes)


def fingerprint(train: Listing, test: Listing, more: Sequence[Any] = ()) -> str:
    """Hash all names, the size and first 4 kB of every thousandth image, and ``more``.

    Raises:
        DataLacks: an image cannot be read.
    """
    content: list[Any] = []
    try:
        for listing in (train, test):
            content += [np.sort(listing.names)]
            for index in range(0, len(listing.names), 1000):
                encoded = listing.read(index)
                content += [str(len(encoded)), encoded[:4096]]
    except OSError as error:
        raise DataLacks(f"{train.store.root}: cannot be read ({error})") from error
    return rng.fingerprint("imagenet", *content, *more)
