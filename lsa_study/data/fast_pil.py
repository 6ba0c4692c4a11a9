"""The same pixels as Pillow's in less time: decoding by simplejpeg, resampling by our kernels.

Nothing here may move a pixel. Each route is tried against Pillow on a few pictures before it is
used, once in a process; where one pixel differs, or a part is missing, Pillow does the work.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import lsa_kernels
from lsa_kernels.pictures import Pixels

Box = tuple[int, int, int, int]
"""Left, top, width, height."""
Order = Callable[[tuple[int, int], tuple[int, int]], bool]
"""Whether Pillow resizes columns before rows, from the (width, height) before and after."""

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

ORDERS: tuple[Order, ...] = (
    lambda before, after: before[1] - after[1] > max(0, 2 * (before[0] - after[0])),
    lambda before, after: False,
)
"""Of newer and of older Pillows, as seen from their pixels."""


class Routes(NamedTuple):
    """The routes on which not one pixel differed."""

    decodes: bool
    """Whether simplejpeg gives Pillow's pixels."""
    order: Order | None
    """The order in which this Pillow resizes; None where the kernels cannot do as it does."""
    bends: bool
    """Whether the kernels bend pictures as Pillow does."""


def opened(content: bytes) -> tuple[Image.Image, Pixels | None]:
    """Decode a picture: as RGB, or its size alone beside its pixels where these are read faster.

    Raises:
        OSError: it is damaged, or not of a kind that can be read.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            pixels = decode(file, content)
            return (_rgb(file) if pixels is None else file), pixels
    except (MemoryError, OSError):
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by where the damage is
        raise OSError(str(error)) from error


def _rgb(file: Image.Image) -> Image.Image:
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        raise OSError(f"pixels of 32 bits, mode {file.mode}")
    if file.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = (np.asarray(file).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return file.convert("RGB")


def decode(file: Image.Image, content: bytes) -> Pixels | None:
    """Decode a JPEG into (H, W, 3), or None where that is Pillow's to do.

    Args:
        file: ``content`` as Pillow opened it, not yet loaded.
    """
    if file.format != "JPEG" or file.mode not in {"RGB", "L"} or not routes().decodes:
        return None
    try:
        return _decoded(content)
    except ValueError:
        # Damaged, or of an odd kind: Pillow decides, and reports it.
        return None


def resized_crop(pixels: Pixels, box: Box, size: tuple[int, int], filter_: int) -> Image.Image:
    """Cut ``box`` out of pixels (H, W, 3) and resize it to ``size`` (width, height)."""
    return _resized_crop(routes().order, pixels, box, size, filter_)


def _resized_crop(
    order: Order | None, pixels: Pixels, box: Box, size: tuple[int, int], filter_: int
) -> Image.Image:
    if order is None or filter_ not in FILTERS:
        left, top, width, height = box
        cut = Image.fromarray(pixels[top : top + height, left : left + width])
        return cut.resize(size, Image.Resampling(filter_))
    cubic = filter_ == Image.Resampling.BICUBIC
    down_first = order(box[2:], size)
    return _picture(lsa_kernels.resized_crop(pixels, box, size, cubic=cubic, down_first=down_first))


@dataclass(frozen=True)
class Bending:
    """An operation on a picture whose affine transforms are done by the kernels."""

    operation: Callable[..., Image.Image]

    def __call__(self, picture: Image.Image, *given: Any, **options: Any) -> Image.Image:
        """Do what the operation does."""
        if picture.mode == "RGB" and routes().bends:
            picture.load()
            canvas = _Canvas()
            canvas.im, canvas._mode, canvas._size = picture.im, picture.mode, picture.size
            picture = canvas
        return self.operation(picture, *given, **options)


@functools.cache
def routes() -> Routes:
    """Compile and try every route; called once before processes are forked, for all of them."""
    whole, contents = _noise(37, 51).resize((87, 61)), []  # with odd sides, colour halved or not
    for subsampling, mode in itertools.product((0, 1, 2), ("RGB", "L")):
        buffer = io.BytesIO()
        whole.convert(mode).save(buffer, "JPEG", quality=90, subsampling=subsampling)
        contents.append((buffer.getvalue(),))
    decodes = _alike(_decoded, lambda c: Image.open(io.BytesIO(c)).convert("RGB"), contents)
    if lsa_kernels.why_not_pictures():
        return Routes(decodes, None, bends=False)
    picture, draw = _noise(90, 120), np.random.default_rng(1)
    crops: list[tuple[Box, tuple[int, int], int]] = []
    for number, filter_ in itertools.product(range(24), FILTERS):
        width, height = (int(draw.integers(1, side + 1)) for side in picture.size)
        left = int(draw.integers(0, picture.width - width + 1))
        top = int(draw.integers(0, picture.height - height + 1))
        crops.append(((left, top, width, height), (31, 31) if number % 2 else (29, 40), filter_))
    pixels = np.asarray(picture)
    ours = (functools.partial(_resized_crop, order, pixels) for order in ORDERS)
    theirs = functools.partial(_resized_crop, None, pixels)
    alike = (order for order, way in zip(ORDERS, ours, strict=True) if _alike(way, theirs, crops))
    order = next(alike, None)
    bent = _noise(33, 47)
    matrices = [
        matrix
        for share in (-0.31, 0.07, 0.29)
        for matrix in (
            (1, share, 0, 0, 1, 0),
            (1, 0, 0, share, 1, 0),
            (1, 0, 47 * share, 0, 1, 33 * share),
            (1 - share**2, share, -7 * share, -share, 1 - share**2, 9 * share),
        )
    ]

    def affine(matrix: Sequence[float], resample: int) -> Image.Image:
        way = Image.Transform.AFFINE
        return bent.transform(bent.size, way, matrix, resample, fillcolor=(1, 2, 3))

    def warped(matrix: Sequence[float], resample: int) -> Image.Image:
        return _warped(bent, matrix, resample, (1, 2, 3))

    return Routes(decodes, order, _alike(warped, affine, itertools.product(matrices, FILTERS)))


def _alike(
    ours: Callable[..., Any], theirs: Callable[..., Any], cases: Iterable[tuple[Any, ...]]
) -> bool:
    """Whether both give the same pixels in all cases; a part that is missing gives none."""
    try:
        return all(np.array_equal(ours(*case), theirs(*case)) for case in cases)
    except (ImportError, ValueError):
        return False


class _Canvas(Image.Image):
    """A picture that bends by the kernels; all else, and what comes of it, is Pillow's."""

    def transform(
        self, size: tuple[int, int], method: Any, data: Any = None, resample: int = 0,
        fill: int = 1, fillcolor: Any = None,
    ) -> Image.Image:  # fmt: skip
        ours = method == Image.Transform.AFFINE and resample in FILTERS and size == self.size
        if not ours or not isinstance(fillcolor, tuple):
            return super().transform(size, method, data, resample, fill, fillcolor)
        return _warped(self, data, resample, fillcolor)


def _warped(
    picture: Image.Image, matrix: Sequence[float], resample: int, fill: Sequence[int]
) -> Image.Image:
    shape = (picture.height, picture.width, 4)
    pixels = np.frombuffer(picture.tobytes("raw", "RGBX"), np.uint8).reshape(shape)
    cubic = resample == Image.Resampling.BICUBIC
    return _picture(lsa_kernels.warped(pixels, tuple(matrix), cubic=cubic, fill=fill))


def _picture(pixels: Pixels) -> Image.Image:
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes("RGB", size, pixels.data, "raw", "RGBX")


def _decoded(content: bytes) -> Pixels:
    from simplejpeg import decode_jpeg

    pixels: Pixels = decode_jpeg(content, "RGB")
    return pixels


def _noise(height: int, width: int) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
