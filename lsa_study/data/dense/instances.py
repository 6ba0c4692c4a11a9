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

from lsa_study.data.dense.targets import coco_masks
from lsa_study.data.paths import DataLacks, cached
from lsa_study.files import replacing

VERSION = "coco-2"
"""Of what is kept."""
LEAST = 1
"""A box of a shorter side, in pixels, is none; as in the released code."""
FARTHEST = 1e6
"""In pixels: a corner beyond it is no corner."""

TORN = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What reading a damaged copy raises: it is made anew then."""

Arrays = dict[str, NDArray[Any]]
"""Of images, in the order of their ids: ``ids``, ``sizes`` (height, width), ``names``. Of
annotations, image by image: ``image`` (counted from 0), ``box`` (left, top, width, height, as in
the file), ``area``, ``label`` from 1, ``crowd``, ``bare`` (nothing to learn from: no area, or sides
under a pixel in the image), and ``code``, the bytes of all masks, of which number i begins at
``start[i]``. Besides ``classes``, their names, and ``left_out``: how many annotations were, as they
have no mask, and how many boxes stand over their image by more than a pixel."""
KEYS = frozenset({
    "ids", "sizes", "names", "classes", "image", "box", "area", "label", "crowd", "bare", "start",
    "code", "left_out",
})  # fmt: skip


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
        contextlib.suppress(*TORN),
        cached(f"{VERSION}-{digest}.npz").open("rb") as file_kept,
        np.load(file_kept, allow_pickle=False) as kept,
    ):
        if kept.keys() == KEYS:
            return dict(kept), digest
    try:
        arrays = _arrays(file, json.loads(content))
    except (
        KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
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
    columns: dict[str, list[Any]] = {
        "image": [], "box": [], "area": [], "label": [], "crowd": [], "bare": [],
    }  # fmt: skip
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
        box = [*map(float, one["bbox"])]
        least, outside = _inside(where, box, sizes[row].tolist())
        if not one["segmentation"]:
            dropped += 1
            continue
        clipped += outside
        crowd, area = bool(one.get("iscrowd", 0)), float(one["area"])
        bare = least < LEAST or not area > 0
        values = (row, box, area, labels[one["category_id"]], crowd, bare)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
        codes.append(_code(where, one["segmentation"], sizes[row].tolist()))
    order = np.argsort(np.array(columns["image"], np.int64), kind="stable")
    kinds: tuple[type, ...] = (
        np.int64, np.float64, np.float64, np.int64, np.bool_, np.bool_,
    )  # fmt: skip
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


def _inside(where: str, box: list[float], size: list[int]) -> tuple[float, bool]:
    """The shorter side of a box's part in its image; whether more than a pixel stands over."""
    left, top, width, height = box
    if not np.isfinite(box).all():
        raise DataLacks(f"{where}: its bbox is {box}; wanted are finite numbers; fetch it again")
    right, bottom = min(left + width, size[1]), min(top + height, size[0])
    inside = right - max(left, 0.0), bottom - max(top, 0.0)
    return min(inside), min(inside) >= LEAST and max(width - inside[0], height - inside[1]) > 1


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
    lengths = runs if isinstance(runs, list) else _lengths(str(runs))
    # pycocotools takes runs of too few pixels and leaves the others as the memory was.
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise DataLacks(
            f"{where}: the runs of its mask cover {sum(lengths)} pixels of {height * width}; "
            "fetch the file again"
        )
    if isinstance(runs, str):
        return runs.encode()
    return bytes(tools.frPyObjects(mask, height, width)["counts"])


def _lengths(code: str) -> list[int]:
    """The runs of a compressed code, none of a torn one.

    Five bits a character, signed; from the fourth run on, against the last but one.
    """
    lengths: list[int] = []
    value = place = 0
    for byte in code.encode():
        part = byte - 48
        value |= (part & 31) << 5 * place
        place += 1
        if not part & 32:
            value -= (1 << 5 * place) if part & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = place = 0
    return lengths if not place else []
