"""Pictures as they are found: odd modes, too many pixels, damage."""

import io

import numpy as np
import pytest
from PIL import Image

from lsa_study.data import fast_pil, transforms

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def written(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "order"), [("PNG", "<u2"), ("PPM", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")]
)
def test_sixteen_bits_keep_their_brightness(form, order):
    """Pillow itself cuts them off: all but the darkest would be white."""
    grey = PIXELS[..., 0]
    sixteen = Image.fromarray((grey * np.uint16(257)).astype(order))
    found = np.asarray(transforms.whole(written(sixteen, form)))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK"])
def test_modes_of_eight_bits_are_pillows(mode):
    content = written(Image.fromarray(PIXELS).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    found = transforms.whole(content)
    assert found.mode == "RGB"
    assert found.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(kind):
    content = written(Image.fromarray(PIXELS[..., 0].astype(kind)), "TIFF")
    with pytest.raises(OSError, match="pixels of 32 bits"):
        transforms.whole(content)


def test_too_many_pixels_are_refused_by_name(monkeypatch):
    content = written(Image.fromarray(PIXELS), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match="exceeds limit of 20 pixels"):
        transforms.whole(content)
    with pytest.raises(OSError, match="exceeds limit of 20 pixels"):
        transforms.RandomResizedCrop(4)(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP"])
def test_damage_of_any_kind_is_one_error(form):
    """Whatever Pillow raises: bits flipped and content cut off at many places."""
    whole, draw = written(Image.fromarray(PIXELS), form), np.random.default_rng(1)
    for _ in range(150):
        content = bytearray(whole)
        for place in draw.integers(0, len(content), 3):
            content[place] ^= int(draw.integers(1, 256))
        try:
            assert transforms.whole(bytes(content[: draw.integers(1, 2 * len(content))])).mode
        except OSError:
            continue


def test_memory_that_runs_out_is_no_damage(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(fast_pil, "decode", full)
    with pytest.raises(MemoryError):
        transforms.whole(written(Image.fromarray(PIXELS), "PNG"))
