"""The same pixels as Pillow's in less time: decoding by simplejpeg, resampling by our kernels.

Nothing here may move a pixel. Each route is tried against Pillow on a few pictures before it is
used, once in a process; where one pixel differs, or nothing can be compiled, Pillow does the work.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

from lsa_kernels import pictures
from lsa_kernels.pictures import Pixels

Box = tuple[int, int, int, int]
"""Left, top, width, height."""

Move = tuple[float, ...]
"""Six numbers a to f: what is shown at x, y stood at a x + b y + c, d x + e y + f; all in shares of
the picture's width and height."""
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def decode(content: bytes) -> Pixels:
    """Decode a picture into RGB (H, W, 3).

    Raises:
        OSError: it is damaged, or not of a kind that can be read.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            if file.format == "JPEG" and file.mode in {"RGB", "L"} and decodes():
                # Damaged, or of an odd kind: Pillow decides, and reports it.
                with contextlib.suppress(ValueError):
                    pixels: Pixels = decode_jpeg(content, "RGB")
                    return pixels
            return _by_pillow(file)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by where the damage is
        raise OSError(str(error)) from error


def _by_pillow(file: Image.Image) -> Pixels:
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        raise OSError(f"pixels of 32 bits, mode {file.mode}")
    if file.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = (np.asarray(file).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    return np.asarray(file.convert("RGB"))


def resized_crop(pixels: Pixels, box: Box, size: tuple[int, int], filter_: int) -> Image.Image:
    """Cut ``box`` out of pixels (H, W, 3) and resize it to ``size`` (width, height)."""
    order = pictures.as_pillow().order
    if order is None or filter_ not in FILTERS:
        left, top, width, height = box
        cut = Image.fromarray(pixels[top : top + height, left : left + width])
        return cut.resize(size, Image.Resampling(filter_))
    cubic, down_first = filter_ == Image.Resampling.BICUBIC, order(box[2:], size)
    return _picture(pictures.resized_crop(pixels, box, size, cubic=cubic, down_first=down_first))


def bent(
    operation: Callable[..., Image.Image],
    moves: list[Move] | None,
    picture: Image.Image,
    *given: Any,
    **options: Any,
) -> Image.Image:
    """Do an operation on a picture, its affine transforms by the kernels and noted in ``moves``."""
    if picture.mode == "RGB":
        picture.load()
        canvas = _Canvas()
        canvas.im, canvas._mode, canvas._size = picture.im, picture.mode, picture.size
        canvas.moves = moves
        picture = canvas
    return operation(picture, *given, **options)


@functools.cache
def decodes() -> bool:
    """Whether simplejpeg gives Pillow's pixels, with odd sides and colours halved or not."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    whole = Image.fromarray(noise).resize((87, 61))
    for subsampling, mode in itertools.product((0, 1, 2), ("RGB", "L")):
        buffer = io.BytesIO()
        whole.convert(mode).save(buffer, "JPEG", quality=90, subsampling=subsampling)
        theirs = np.asarray(Image.open(buffer).convert("RGB"))
        if not np.array_equal(decode_jpeg(buffer.getvalue(), "RGB"), theirs):
            return False
    return True


class _Canvas(Image.Image):
    """A picture that bends by the kernels; all else, and what comes of it, is Pillow's."""

    moves: list[Move] | None

    def transform(
        self, size: tuple[int, int], method: Any, data: Any = None, resample: int = 0,
        fill: int = 1, fillcolor: Any = None,
    ) -> Image.Image:  # fmt: skip
        affine = method == Image.Transform.AFFINE and size == self.size
        if affine and self.moves is not None:
            (a, b, c, d, e, f), (wide, high) = data, size
            self.moves.append((a, b * high / wide, c / wide, d * wide / high, e, f / high))
        ours = affine and resample in FILTERS
        if not ours or not isinstance(fillcolor, tuple) or not pictures.as_pillow().bends:
            return super().transform(size, method, data, resample, fill, fillcolor)
        shape = (self.height, self.width, 4)
        pixels = np.frombuffer(self.tobytes("raw", "RGBX"), np.uint8).reshape(shape)
        cubic = resample == Image.Resampling.BICUBIC
        return _picture(pictures.warped(pixels, tuple(data), cubic=cubic, fill=fillcolor))


def _picture(pixels: Pixels) -> Image.Image:
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes("RGB", size, pixels.data, "raw", "RGBX")
