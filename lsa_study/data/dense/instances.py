"""A file of COCO's annotations, read once.

Boxes, labels and run-length codes of masks become a few flat arrays, which are kept under
``lsa_study`` in the user's cache folder and read from there the next time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsa_study.data.dense.targets import coco_masks, decoded
from lsa_study.data.paths import DataLacks, cached
from lsa_study.files import replacing

VERSION = "coco-1"
"""Of what is kept."""
LEAST = 1
"""A box of a shorter side, in pixels, is none; as in the released code."""
FARTHEST = 1e6
"""In pixels: a corner beyond it is no corner."""

Arrays = dict[str, NDArray[Any]]
"""Of images, in the order of their ids: ``ids``, ``sizes`` (height, width), ``names``. Of
annotations, image by image: ``image`` (counted from 0), ``box`` (left, top, width, height),
``area``, ``label`` from 1, ``crowd``, and ``code``, the bytes of all masks, of which number i
begins at ``start[i]``. Besides ``classes``, their names, and ``left_out``: how many annotations
were, and how many boxes were clipped."""


@functools.lru_cache(maxsize=2)
def read(file: Path) -> tuple[Arrays, str]:
    """Read a file of instances; returns its arrays and 16 hex digits of a hash of its content.

    Raises:
        DataLacks: it is missing or damaged, or holds something else.
        EnvironmentLacks: pycocotools is not installed.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataLacks(f"{file}: cannot be read ({error.strerror}); fetch it again") from error
    digest = hashlib.sha256(content).hexdigest()[:16]
    with (
        contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile),
        cached(f"{VERSION}-{digest}.npz").open("rb") as file_kept,
        np.load(file_kept, allow_pickle=False) as kept,
    ):
        return dict(kept), digest
    try:
        arrays = _arrays(file, json.loads(content))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataLacks(
            f"{file}: is damaged or holds something else ({reason:.200}); wanted are images, "
            "categories and annotations as in COCO's instances; fetch it again"
        ) from error
    # A cache that cannot be written costs a minute at the next start, never a run.
    with contextlib.suppress(OSError, RuntimeError):
        path = cached(f"{VERSION}-{digest}.npz")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]  # names of options among its keywords
    return arrays, digest


def _arrays(file: Path, found: dict[str, Any]) -> Arrays:
    images = sorted(found["images"], key=lambda image: image["id"])
    classes = sorted(found["categories"], key=lambda category: category["id"])
    rows = {image["id"]: row for row, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(classes, start=1)}
    if len(rows) < len(images) or len(labels) < len(classes):
        raise DataLacks(f"{file}: has two images or two categories of one id; fetch it again")
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    if not len(images) or not classes or sizes.min() < 1:
        raise DataLacks(
            f"{file}: has {len(images)} images, {len(classes)} categories and perhaps sides of 0; "
            "wanted is one at least of each; fetch it again"
        )
    columns: dict[str, list[Any]] = {"image": [], "box": [], "area": [], "label": [], "crowd": []}
    codes: list[bytes] = []
    dropped = clipped = 0
    for one in found["annotations"]:
        where = f"{file}: annotation {one['id']}"
        if one["image_id"] not in rows or one["category_id"] not in labels:
            raise DataLacks(
                f"{where} is of image {one['image_id']} and category {one['category_id']}, of "
                "which one is not in the file; fetch it again"
            )
        row = rows[one["image_id"]]
        box, outside = _clipped(where, one["bbox"], sizes[row].tolist())
        if box is None or one["area"] <= 0 or not one["segmentation"]:
            dropped += 1
            continue
        clipped += outside
        crowd = bool(one.get("iscrowd", 0))
        values = (row, box, float(one["area"]), labels[one["category_id"]], crowd)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
        codes.append(_code(where, one["segmentation"], sizes[row].tolist()))
    order = np.argsort(np.array(columns["image"], np.int64), kind="stable")
    kinds: tuple[type, ...] = (np.int64, np.float64, np.float64, np.int64, np.bool_)
    of_annotations: Arrays = {
        name: np.array(column, kind)[order]
        for (name, column), kind in zip(columns.items(), kinds, strict=True)
    }
    codes = [codes[row] for row in order]
    return {
        "ids": np.array([image["id"] for image in images], np.int64),
        "sizes": sizes,
        "names": np.array([image["file_name"].encode() for image in images]),
        "classes": np.array([category["name"].encode() for category in classes]),
        **of_annotations,
        "box": of_annotations["box"].reshape(-1, 4),
        "start": np.cumsum([0, *map(len, codes)]),
        "code": np.frombuffer(b"".join(codes), np.uint8),
        "left_out": np.array([dropped, clipped]),
    }


def _clipped(where: str, box: Any, size: list[int]) -> tuple[list[float] | None, bool]:
    """The part of a box in its image, None for none; whether more than a pixel stood over."""
    left, top, width, height = map(float, box)
    if not np.isfinite([left, top, width, height]).all():
        raise DataLacks(f"{where}: its bbox is {box}; wanted are finite numbers; fetch it again")
    right, bottom = min(left + width, size[1]), min(top + height, size[0])
    inside = [max(left, 0.0), max(top, 0.0)]
    inside += [right - inside[0], bottom - inside[1]]
    if min(inside[2:]) < LEAST:
        return None, False
    return inside, max(width - inside[2], height - inside[3]) > 1


def _code(where: str, mask: Any, size: list[int]) -> bytes:
    """The run-length code of a mask that is given as polygons or as such a code."""
    tools = coco_masks()
    height, width = size
    if isinstance(mask, list):
        for polygon in mask:
            points = np.array(polygon, np.float64)
            good = points.ndim == 1 and len(points) >= 6 and len(points) % 2 == 0
            if not good or not (np.abs(points) < FARTHEST).all():
                raise DataLacks(
                    f"{where}: a polygon of its segmentation is {polygon!s:.80}; wanted are x "
                    "and y of three corners at least, in pixels; fetch the file again"
                )
        return bytes(tools.merge(tools.frPyObjects(mask, height, width))["counts"])
    runs: str | Sequence[int] = mask["counts"]
    if list(mask["size"]) != size:
        raise DataLacks(
            f"{where}: its mask is {mask['size']} pixels high and wide, its image {size}; fetch "
            "the file again"
        )
    if isinstance(runs, list):
        if sum(runs) != height * width or min(runs) < 0:
            raise DataLacks(
                f"{where}: the runs of its mask cover {sum(runs)} pixels of {height * width}; "
                "fetch the file again"
            )
        return bytes(tools.frPyObjects(mask, height, width)["counts"])
    code = runs.encode() if isinstance(runs, str) else b""
    decoded([{"size": size, "counts": code}], (height, width))  # says whether it is one
    return code
