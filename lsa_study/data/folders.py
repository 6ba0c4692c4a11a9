"""ImageNet: folders of encoded images, decoded by worker processes as they are needed."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lsa_study.config import Settings
from lsa_study.data import seeds
from lsa_study.data.pictorial import pictorial
from lsa_study.data.plan import Epoch, Share
from lsa_study.data.roots import DataLacks, require
from lsa_study.data.sets import Pixels, Sets, Source

if TYPE_CHECKING:
    from lsa_study.data.token_maps import LabelMaps

SUFFIXES = (".jpeg", ".jpg", ".png")
EXPECTED = {"train": 1_281_167, "val": 50_000}
CLASSES = 1000
MEAN: Pixels = (0.485, 0.456, 0.406)
STD: Pixels = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Listing:
    """The images of one split: the first of every class, then the second, and so on.

    So the first N of a limited run come from all classes alike. Names are held as fixed-width
    bytes: lists of Python strings are copied into every worker as soon as it counts references.
    """

    root: Path
    names: NDArray[np.bytes_]
    """Class folder / file."""
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Images per class."""
        counted = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counted.tolist(), strict=True))


def load(settings: Settings, *, device: str) -> FolderSets:
    """List the images; check that all are there unless ``data.train_limit`` asks for few.

    Raises:
        DataLacks: folders or images are missing.
    """
    (train_root, test_root) = require(settings.data)
    train = _list(train_root, None)
    test = _list(test_root, train.classes)
    limit = settings.data.train_limit
    if limit is None:
        _complete("train", train)
        _complete("val", test)
    maps, content = _label_maps(settings, train)
    source = Source(
        "imagenet", min(limit or len(train.labels), len(train.labels)), len(test.labels),
        num_classes=len(train.classes), fingerprint=_fingerprint(train, test, *content), mean=MEAN,
        std=STD,
    )  # fmt: skip
    return FolderSets(source, settings, device, train=train, test=test, maps=maps)


def _label_maps(settings: Settings, train: Listing) -> tuple[LabelMaps | None, list[Any]]:
    """The label maps that the settings read, if any, and what a fingerprint takes of them."""
    tokens = settings.train.tokens
    if tokens is None or tokens.labels == "plain":
        return None, []
    from lsa_study.data.token_maps import LabelMaps

    names = [os.fsdecode(name) for name in train.names[: settings.data.train_limit]]
    maps = LabelMaps.find(
        train.root.parent / "token_labels", names, num_classes=len(train.classes),
        truth=tokens.labels == "maps_and_truth",
    )  # fmt: skip
    return maps, maps.content(names)


@lru_cache(maxsize=2)
def _list(root: Path, classes: tuple[str, ...] | None) -> Listing:
    found = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir()))
    if not found or (classes is not None and not set(found) <= set(classes)):
        extra = ", ".join(sorted({*found} - {*(classes or ())})[:3]) or "no class folder"
        raise DataLacks(
            f"{root}: holds {extra}; wanted are the same <wnid>/ folders of images as in train"
        )
    classes = classes or found
    rows: list[tuple[int, int, str]] = []
    for name in found:
        files = sorted(e.name for e in os.scandir(root / name) if e.name.lower().endswith(SUFFIXES))
        label = classes.index(name)
        rows += [(place, label, f"{name}/{file}") for place, file in enumerate(files)]
    if not rows:
        raise DataLacks(f"{root}: holds no images; wanted are <wnid>/ folders of .JPEG files")
    rows.sort()
    names = np.array([os.fsencode(name) for _, _, name in rows])
    return Listing(root, names, np.array([label for _, label, _ in rows]), classes)


def _complete(split: str, listing: Listing) -> None:
    found, wanted = len(listing.labels), EXPECTED[split]
    if found == wanted and len(listing.classes) == CLASSES:
        return
    counts = listing.counts()
    fewest = min(counts, key=lambda name: counts[name])
    words = f"{abs(wanted - found):,} {'missing' if found < wanted else 'too many'}"
    raise DataLacks(
        f"{listing.root}: {split} has {found:,} images in {len(counts)} classes, expected "
        f"{wanted:,} in {CLASSES}: {words}; the smallest class is {fewest} with "
        f"{counts[fewest]}. Complete it, or ask for a part with data.train_limit"
    )


def _fingerprint(train: Listing, test: Listing, *more: Any) -> str:
    """Hash all names, the size and first 4 kB of every thousandth file, and ``more``."""
    content: list[Any] = []
    for listing in (train, test):
        content += [np.sort(listing.names)]
        for name in listing.names[::1000]:
            path = listing.root / os.fsdecode(name)
            with path.open("rb") as file:
                content += [str(path.stat().st_size), file.read(4096)]
    return seeds.fingerprint("imagenet", *content, *more)


@dataclass(frozen=True)
class _Images(Dataset[tuple[Any, ...]]):
    """Images by (words of the draw, number): the draws of an image depend on nothing else."""

    listing: Listing
    transform: Transform
    maps: LabelMaps | None = None

    def __getitem__(self, key: tuple[tuple[int | str, ...], int]) -> tuple[Any, ...]:
        """Pixels and label; where label maps are read, also the map and the image's part of it."""
        words, index = key
        name = os.fsdecode(self.listing.names[index])
        path = self.listing.root / name
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataLacks(f"{path}: cannot be decoded ({error}); fetch the file again") from error
        with seeds.global_draws(*words, index):
            image = self.transform(picture), int(self.listing.labels[index])
        return image if self.maps is None else (*image, *self.maps.placed(name, self.transform))


class FolderSets(Sets):
    """Images in files."""

    def __init__(
        self, source: Source, settings: Settings, device: str, *, train: Listing, test: Listing,
        maps: LabelMaps | None,
    ) -> None:  # fmt: skip
        super().__init__(source, settings, device)
        self.workers = settings.runtime.workers
        self._train = _Images(train, _train_transform(settings), maps)
        self._test = _Images(test, _test_transform(settings))

    def _train_pixels(self, epoch: Epoch) -> Iterator[tuple[Share, Tensor, Tensor, Tensor | None]]:
        shares = list(epoch.shares())
        words = (self.seed, "picture", epoch.epoch)
        keys = [[(words, index) for index in share.indices.tolist()] for share in shares]
        for share, (pixels, *told) in zip(shares, self._decode(self._train, keys), strict=True):
            yield share, pixels, *self._targets(*told)

    def _targets(self, labels: Tensor, *placed: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._train.maps is None:
            return labels, None
        return self._train.maps.targets(
            labels, *placed, image_size=self.image_size, smoothing=self.augment.label_smoothing
        )

    def _test_pixels(self, rows: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        keys = [[((), index) for index in numbers.tolist()] for numbers in rows]
        for numbers, (pixels, labels) in zip(rows, self._decode(self._test, keys), strict=True):
            yield numbers, pixels, labels

    def _decode(self, images: _Images, batches: Sequence[Any]) -> Iterator[list[Tensor]]:
        loader = DataLoader(
            images, batch_sampler=batches, num_workers=self.workers,
            pin_memory=self.device.type == "cuda", worker_init_fn=_quiet_worker,
            generator=torch.Generator(),
        )  # fmt: skip
        try:
            for parts in loader:
                yield [part.to(self.device, non_blocking=True) for part in parts]
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own words stand last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None


def _quiet_worker(_: int) -> None:
    # These reach every process of the terminal or the job; only the main one may act on them.
    # SIGTERM is left alone: it is how Python ends workers that it no longer needs.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _train_transform(settings: Settings) -> Transform:
    from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
    from torchvision import transforms

    wanted, size = settings.augment, settings.data.image_size
    crop, flip = RandomResizedCropAndInterpolation, transforms.RandomHorizontalFlip
    if settings.reads()[1]:
        from lsa_study.data.token_maps import NotedCrop, NotedFlip

        crop, flip = NotedCrop, NotedFlip
    crops: list[Transform]
    if wanted.crop == "random_resized":
        # The released code draws between bilinear and bicubic.
        crops = [
            crop(size, scale=wanted.crop_scale, ratio=wanted.crop_ratio, interpolation="random")
        ]
    else:
        scaled = math.floor(size / settings.evaluation.crop_share)
        crops = [transforms.Resize(scaled, transforms.InterpolationMode.BICUBIC)]
        pad = wanted.crop == "pad"
        crops.append(
            transforms.RandomCrop(size, wanted.crop_pad) if pad else transforms.CenterCrop(size)
        )
    change = pictorial(wanted, size, MEAN)
    changes = [] if change is None else [change]
    chain: Transform = transforms.Compose(
        [*crops, flip(wanted.hflip), *changes, MaybePILToTensor()]
    )
    return chain


def _test_transform(settings: Settings) -> Transform:
    from timm.data import create_transform

    chain: Transform = create_transform(
        settings.data.image_size, is_training=False, crop_pct=settings.evaluation.crop_share,
        interpolation="bicubic", mean=MEAN, std=STD, use_prefetcher=True,
    )  # fmt: skip
    return chain
