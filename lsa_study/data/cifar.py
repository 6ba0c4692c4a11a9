"""CIFAR-10 as uint8 tensors, from parquet files of encoded images or torchvision's folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsa_study.data import fast_pil, rng
from lsa_study.data.paths import DataLacks, cached
from lsa_study.data.shards import Rows, read_columns
from lsa_study.files import replacing

SIDE = 32
CLASSES = 10

Tensors = dict[str, Tensor]
"""train.pixels (N, 3, 32, 32), train.labels (N,), and the same of test."""


def read(paths: tuple[Path, ...]) -> tuple[Tensors, str]:
    """Read both splits; what is decoded is kept under ``lsa_study`` in the user's cache folder.

    Args:
        paths: (train.parquet, test.parquet), or torchvision's folder alone.

    Returns:
        The tensors and the fingerprint of the files' content.

    Raises:
        DataLacks: a file is damaged or holds something else.
    """
    if len(paths) == 1:
        return _from_torchvision(paths[0])
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    encoded = {path: _encoded(path) for path in paths}
    content: list[Any] = []
    for images, labels in encoded.values():
        sizes = np.array([len(image) for image in images], np.int64)
        content += [sizes, labels, b"".join(images)]
    fingerprint = rng.fingerprint("cifar10", *content)
    with contextlib.suppress(OSError, RuntimeError, SafetensorError):
        return load_file(cached(f"{fingerprint}.safetensors")), fingerprint
    tensors: Tensors = {}
    for path, (images, labels) in encoded.items():
        tensors[f"{path.stem}.pixels"] = _decoded(path, images)
        tensors[f"{path.stem}.labels"] = torch.from_numpy(labels)
    # A cache that cannot be written costs seconds at the next start, never a run.
    with contextlib.suppress(OSError, RuntimeError):
        path = cached(f"{fingerprint}.safetensors")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part)
    return tensors, fingerprint


def _encoded(path: Path) -> tuple[list[bytes], Rows]:
    """The images and labels of one parquet file in the layout of data set hubs."""
    images, labels, _ = read_columns(path, "bytes")
    if images.null_count or not len(images) or labels.min() < 0 or labels.max() >= CLASSES:
        raise DataLacks(
            f"{path}: has {images.null_count} empty images of {len(images)} and labels from "
            f"{labels.min(initial=0)} to {labels.max(initial=0)}; wanted are images and "
            f"labels 0 to {CLASSES - 1}; fetch the file again"
        )
    return images.to_pylist(), labels


def _decoded(path: Path, images: list[bytes]) -> Tensor:
    pixels = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for row, image in enumerate(images):
        try:
            pixels[row] = fast_pil.decode(image)
        except (OSError, ValueError) as error:
            raise DataLacks(
                f"{path}: image {row} of {len(images)} cannot be decoded to {SIDE} x {SIDE} "
                "pixels; fetch the file again"
            ) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _from_torchvision(folder: Path) -> tuple[Tensors, str]:
    from torchvision.datasets import CIFAR10

    tensors: Tensors = {}
    for split in ("train", "test"):
        try:
            # Never downloads, and checks each file's MD5 before it unpickles it.
            found = CIFAR10(str(folder.parent), train=split == "train", download=False)
        except (OSError, RuntimeError) as error:
            raise DataLacks(
                f"{folder}: CIFAR-10 is incomplete or damaged; fetch it with torchvision's "
                f"CIFAR10({str(folder.parent)!r}, download=True)"
            ) from error
        tensors[f"{split}.pixels"] = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        tensors[f"{split}.labels"] = torch.tensor(found.targets)
    return tensors, rng.fingerprint("cifar10", *(t.numpy() for t in tensors.values()))
