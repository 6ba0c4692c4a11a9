"""Data sets of other packages, held in memory: read by a class, checked, fingerprinted.

The class is built without arguments, or with ``root``, the data sets' folder or None, if it takes
that. ``train`` and ``test`` are, or return, images and labels: uint8 (N, 3, side, side) and whole
numbers (N,), as NumPy's arrays or torch's tensors. ``fingerprint`` is a text of its own. It may
have ``num_classes``, else the highest label says it, and ``mean`` and ``std`` of the three
channels in 0..1, else those of the training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsa_study.config import imports
from lsa_study.config.outside import takes_root
from lsa_study.data import rng
from lsa_study.data.cifar import Tensors
from lsa_study.data.paths import DataLacks
from lsa_study.data.sets import Pixels
from lsa_study.errors import ConfigError, LsaError


class ReadSet(NamedTuple):
    """A set that was read whole."""

    tensors: Tensors
    """``train.pixels``, ``train.labels`` and the same of ``test``."""
    fingerprint: str
    num_classes: int
    mean: Pixels
    std: Pixels
    """Per channel, of pixels in 0..1."""


def read(path: str, root: Path | None) -> ReadSet:
    """Read the set that an import path names.

    Raises:
        DataLacks: the class raises.
        ConfigError: what it gives is not as the module says above.
    """
    try:
        found = imports.load(path)(**({"root": root} if takes_root(path) else {}))
        parts = {name: _value(found, name) for name in ("train", "test", "fingerprint")}
        classes, mean, std = (_value(found, name) for name in ("num_classes", "mean", "std"))
    except LsaError:
        raise
    except Exception as error:
        raise DataLacks(
            f"data.name: {path} raised {type(error).__name__}: {error}; mend the class, or what it "
            f"reads under {root or 'data.root or LSA_DATA, which are not set'}"
        ) from error
    printed = parts["fingerprint"]
    if not isinstance(printed, str) or not printed:
        raise ConfigError(
            f"data.name: {path}: its fingerprint is {printed!r:.40}; give a text that changes with "
            "the data"
        )
    tensors: Tensors = {}
    for split in ("train", "test"):
        pixels, labels = _checked(f"data.name: {path}: {split}", parts[split])
        tensors |= {f"{split}.pixels": pixels, f"{split}.labels": labels}
    highest = max(int(tensors[f"{split}.labels"].max()) for split in ("train", "test"))
    if classes is None:
        classes = highest + 1
    if not isinstance(classes, int) or classes <= highest:
        raise ConfigError(
            f"data.name: {path}: num_classes is {classes}, its highest label {highest}; give at "
            f"least {highest + 1}"
        )
    shares = tensors["train.pixels"].double() / 255 if mean is None or std is None else None
    if shares is not None:
        mean, std = (of(dim=(0, 2, 3)).tolist() for of in (shares.mean, shares.std))
    content = (tensor.numpy().data for tensor in tensors.values())
    return ReadSet(tensors, rng.fingerprint(printed, *content), classes, tuple(mean), tuple(std))


def _value(found: Any, name: str) -> Any:
    value = getattr(found, name, None)
    return value() if callable(value) else value


def _checked(where: str, given: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(f"{where} is a {type(given).__name__}; give images and labels")
    pixels, labels = (torch.as_tensor(one).contiguous() for one in given)
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ConfigError(
            f"{where}: images are {tuple(pixels.shape)} {pixels.dtype}; give (N, 3, side, side) "
            "torch.uint8"
        )
    if pixels.shape[2] != pixels.shape[3] or not len(pixels):
        raise ConfigError(
            f"{where}: images are {tuple(pixels.shape)}; give squares, one at least: (N, 3, side, "
            "side)"
        )
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != pixels.shape[:1] or int(labels.min()) < 0:
        raise ConfigError(
            f"{where}: labels are {tuple(labels.shape)} {labels.dtype}; give a whole number from 0 "
            f"for each of {len(pixels)} images"
        )
    return pixels, labels.long()
