"""What stands in an image: boxes, masks and labels of objects, or the label of every pixel."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsa_study.errors import EnvironmentLacks

Target = dict[str, Any]
"""To detect: ``boxes`` (N, 4) float32, left, top, right and bottom in pixels; ``labels`` (N,) int64
from 1; ``masks`` (N, H, W) uint8; ``crowd`` (N,) bool; ``image_id``, a whole number. To segment:
``labels`` (H, W) int64 from 0, and IGNORED."""
Item = tuple[Tensor, Target]
"""An image (3, H, W) uint8, and what stands in it."""

IGNORED = 255
"""Label of a pixel that counts nowhere."""


def coco_masks() -> ModuleType:
    """``pycocotools.mask``.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise EnvironmentLacks(
            f"pycocotools cannot be imported ({error}); install it: pip install "
            "'lsa_study[detection]'",
            cause="import",
        ) from error
    found: ModuleType = mask
    return found


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Run-length codes of masks (N, H, W) uint8 on the CPU."""
    codes: list[dict[str, Any]] = coco_masks().encode(
        np.asfortranarray(masks.permute(1, 2, 0).numpy())
    )
    return codes


def decoded(codes: list[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Masks (N, H, W) of run-length codes.

    Raises:
        ValueError: one is none of this size.
    """
    if not codes:
        return np.empty((0, *size), np.uint8)
    with warnings.catch_warnings():
        # Of NumPy 2, by what pycocotools' extension asks of it.
        warnings.simplefilter("ignore", DeprecationWarning)
        masks: NDArray[np.uint8] = coco_masks().decode(codes)
    return np.ascontiguousarray(masks.transpose(2, 0, 1))


def detected(
    boxes: Tensor, labels: Tensor, masks: Tensor, image_id: int, crowd: Tensor | None = None
) -> Target:
    """A target to detect; ``crowd`` is nowhere so unless given."""
    if crowd is None:
        crowd = torch.zeros(len(labels), dtype=torch.bool)
    return {
        "boxes": boxes, "labels": labels, "masks": masks, "crowd": crowd, "image_id": image_id,
    }  # fmt: skip


class Split(ABC):
    """The images of a training or a test set, by number from 0."""

    names: list[str]
    """Of the classes. To detect, the first has the number 1; to segment, 0."""
    content: list[Any]
    """What a fingerprint is made of."""
    remarks: tuple[str, ...] = ()
    """What the files hold that is not used, in sentences."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Item:
        """An image and what stands in it.

        Raises:
            OSError: the image cannot be decoded.
            ValueError: so it is, or it does not fit what is said of it.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Its file, for messages."""

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """What is to be detected in an image, as COCO's files have it; masks run-length encoded.

        Raises:
            EnvironmentLacks: pycocotools is not installed.
        """
        target = self[index][1]
        boxes = target["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        columns = (
            boxes.tolist(), target["labels"].tolist(), target["crowd"].int().tolist(),
            encoded(target["masks"]), target["masks"].sum((1, 2)).tolist(),
        )  # fmt: skip
        names = ("bbox", "category_id", "iscrowd", "segmentation", "area")
        return [
            {"image_id": target["image_id"], **dict(zip(names, values, strict=True))}
            for values in zip(*columns, strict=True)
        ]

    def image(self, index: int) -> dict[str, int]:
        """Its id, height and width, as COCO's files have it."""
        height, width = self[index][0].shape[1:]
        return {"id": index, "height": height, "width": width}
