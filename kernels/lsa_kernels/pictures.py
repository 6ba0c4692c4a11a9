"""Work on pictures of 8 bits a channel on the CPU.

They are cut, resized and bent bit for bit as Pillow does it, mixed and normalised as torch does it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsa_kernels import build

Pixels = NDArray[np.uint8]
Reals = NDArray[np.float32]
Order = Callable[[tuple[int, int], tuple[int, int]], bool]
"""Whether Pillow resizes columns before rows, from the (width, height) before and after."""
ORDERS: tuple[Order, ...] = (
    lambda before, after: before[1] - after[1] > max(0, 2 * (before[0] - after[0])),
    lambda before, after: False,
)
"""Of newer and of older Pillows, as seen from their pixels."""


class AsPillow(NamedTuple):
    """What the kernels do as the Pillow that is installed, to the last bit."""

    order: Order | None
    """The order in which it resizes; None where ``resized_crop`` gives other pixels."""
    bends: bool
    """Whether ``warped`` gives the pixels of its affine transforms."""


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


def mix(pictures: Pixels, share: float) -> None:
    """Mix every picture with its counterpart from the other end, in place.

    Args:
        pictures: (N, ...), contiguous; N is even.
        share: what is left of each picture, in 0..1; the sums are float32, rounded to even.

    Raises:
        ValueError: the pictures are not contiguous, or their number is odd.
        BuildError: the kernels cannot be compiled here.
    """
    if not pictures.flags.c_contiguous or len(pictures) % 2:
        raise ValueError(f"pictures {pictures.shape} must be contiguous, an even number of them")
    build.library(build.PICTURES).pictures_mix(
        _at(pictures), ctypes.c_int64(len(pictures)),
        ctypes.c_int64(pictures.size // max(1, len(pictures))), ctypes.c_float(share),
        ctypes.c_float(1 - share),
    )  # fmt: skip


def look_up(pictures: Pixels, tables: Reals, out: Reals) -> None:
    """Write for each byte the number that its channel's table has at that place.

    Args:
        pictures: (N, C, H, W), contiguous.
        tables: (C, 256), contiguous.
        out: as ``pictures``.

    Raises:
        ValueError: the shapes do not fit, or an array is not contiguous.
        BuildError: the kernels cannot be compiled here.
    """
    if tables.shape != (pictures.shape[1], 256) or out.shape != pictures.shape:
        raise ValueError(f"tables {tables.shape} and {out.shape} do not fit {pictures.shape}")
    if not all(array.flags.c_contiguous for array in (pictures, tables, out)):
        raise ValueError("pictures, tables and what is written must be contiguous")
    number, channels, *sides = map(ctypes.c_int64, pictures.shape)
    build.library(build.PICTURES).pictures_look_up(
        _at(pictures), number, channels, ctypes.c_int64(sides[0].value * sides[1].value),
        _at(tables), _at(out),
    )  # fmt: skip


def why_not_pictures() -> str | None:
    """Say why pictures cannot be worked on here, or None if they can."""
    return build.built(build.PICTURES).reason


@functools.cache
def as_pillow() -> AsPillow:
    """Compile the kernels and try them against Pillow on noise; once in a process."""
    if why_not_pictures():
        return AsPillow(None, bends=False)
    from PIL import Image

    draw, (width, height) = np.random.default_rng(1), (120, 90)
    noise = draw.integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(noise)
    filters = (Image.Resampling.BILINEAR, False), (Image.Resampling.BICUBIC, True)

    def crops(order: Order) -> Iterator[bool]:
        for number, (filter_, cubic) in itertools.product(range(24), filters):
            left, right = sorted(draw.permutation(width + 1)[:2].tolist())
            top, bottom = sorted(draw.permutation(height + 1)[:2].tolist())
            box, size = (left, top, right - left, bottom - top), (29 + number % 2, 40)
            theirs = picture.crop((left, top, right, bottom)).resize(size, filter_)
            ours = resized_crop(noise, box, size, cubic=cubic, down_first=order(box[2:], size))
            yield np.array_equal(ours[..., :3], np.asarray(theirs))

    def bends() -> Iterator[bool]:
        for share, (filter_, cubic) in itertools.product((-0.31, 0.07, 0.29), filters):
            for matrix in (
                (1, share, width * share, 0, 1, 0),
                (1, 0, 0, share, 1, height * share),
                (1 - share**2, share, -7 * share, -share, 1 - share**2, 9 * share),
            ):
                affine, fill = Image.Transform.AFFINE, (1, 2, 3)
                theirs = picture.transform((width, height), affine, matrix, filter_, fillcolor=fill)
                ours = warped(np.array(picture.convert("RGBA")), matrix, cubic=cubic, fill=fill)
                yield np.array_equal(ours[..., :3], np.asarray(theirs))

    order = next((order for order in ORDERS if all(crops(order))), None)
    return AsPillow(order, all(bends()))


def _at(array: Pixels | Reals) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _call(name: str, *arguments: Any) -> None:
    if getattr(build.library(build.PICTURES), name)(*arguments):
        raise MemoryError("the C++ kernel could not have its scratch memory")
