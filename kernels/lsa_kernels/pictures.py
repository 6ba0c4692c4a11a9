"""Cut, resize and bend pictures of 8 bits a channel on the CPU, bit for bit as Pillow does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsa_kernels import build

Pixels = NDArray[np.uint8]


def resized_crop(
    pixels: Pixels, box: tuple[int, int, int, int], size: tuple[int, int], *, cubic: bool,
    down_first: bool,
) -> Pixels:  # fmt: skip
    """Cut a box out of a picture and resize it with antialiasing.

    Args:
        pixels: (H, W, 3), RGB.
        box: left, top, width and height in pixels, inside the picture.
        size: width and height of the result.
        cubic: weigh by a cubic (a = -0.5), else by a triangle.
        down_first: resize the columns before the rows; else after. It moves the rounding.

    Returns:
        (height, width, 4), RGBX.

    Raises:
        ValueError: the picture is not RGB rows, or the box is not inside it.
        BuildError: the kernels cannot be compiled here.
    """
    left, top, width, height = box
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.strides[1:] != (3, 1):
        raise ValueError(f"pixels {pixels.shape} must be (H, W, 3), a row's bytes side by side")
    inside = left >= 0 and top >= 0 and left + width <= pixels.shape[1]
    if not inside or top + height > pixels.shape[0] or min(width, height, *size) < 1:
        raise ValueError(f"box {box} to {size} does not fit pixels {pixels.shape}")
    out = np.empty((size[1], size[0], 4), np.uint8)
    _call(
        "pictures_resize", _at(pixels), ctypes.c_int64(pixels.strides[0]),
        (ctypes.c_int64 * 4)(*box), ctypes.c_int64(size[0]), ctypes.c_int64(size[1]),
        int(cubic), int(down_first), _at(out),
    )  # fmt: skip
    return out


def warped(pixels: Pixels, matrix: Sequence[float], *, cubic: bool, fill: Sequence[int]) -> Pixels:
    """Bend a picture: each output pixel (x, y) is read at ``matrix`` times (x, y, 1).

    Args:
        pixels: (H, W, 4), RGBX, contiguous.
        matrix: two rows of three numbers; coordinates are of pixel centres, in pixels.
        cubic: interpolate by a cubic, else linearly.
        fill: R, G, B of what lies outside.

    Returns:
        (H, W, 4), RGBX.

    Raises:
        ValueError: the picture is not contiguous RGBX, or the matrix has not six numbers.
        BuildError: the kernels cannot be compiled here.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.flags.c_contiguous:
        raise ValueError(f"pixels {pixels.shape} must be (H, W, 4) and contiguous")
    if len(matrix) != 6 or len(fill) != 3:
        raise ValueError(f"a matrix of 6 and a fill of 3 are wanted, not {matrix} and {fill}")
    out = np.empty_like(pixels)
    _call(
        "pictures_warp", _at(pixels), ctypes.c_int64(pixels.shape[1]),
        ctypes.c_int64(pixels.shape[0]), (ctypes.c_double * 6)(*matrix), int(cubic),
        (ctypes.c_uint8 * 4)(*fill, 255), _at(out),
    )  # fmt: skip
    return out


def why_not_pictures() -> str | None:
    """Say why pictures cannot be worked on here, or None if they can."""
    return build.built(build.PICTURES).reason


def _at(array: Pixels) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _call(name: str, *arguments: Any) -> None:
    if getattr(build.library(build.PICTURES), name)(*arguments):
        raise MemoryError("the C++ kernel could not have its scratch memory")
