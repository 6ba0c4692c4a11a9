"""The fast routes against Pillow, bit for bit, on ordinary and on odd pictures."""

import functools
import io
import math
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from lsa_kernels import pictures
from lsa_study.config import study
from lsa_study.data import augment, fast_pil, rng, transforms

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
need_kernels = pytest.mark.skipif(
    pictures.why_not_pictures() is not None, reason=str(pictures.why_not_pictures())
)


def picture(height, width, seed=0):
    """Smooth with noise: JPEG keeps some of it, and every filter has something to do."""
    draw = np.random.default_rng(seed)
    low = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(low.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + draw.integers(-30, 31, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


ODD = {
    "4:2:0": lambda p: encoded(p, subsampling=2, quality=75),
    "4:2:2": lambda p: encoded(p, subsampling=1),
    "4:4:4": lambda p: encoded(p, subsampling=0, quality=96),
    "progressive": lambda p: encoded(p, progressive=True),
    "grayscale": lambda p: encoded(p.convert("L")),
    "cmyk": lambda p: encoded(p.convert("CMYK")),
    "palette png": lambda p: encoded(p.quantize(16), "PNG"),
    "transparent png": lambda p: encoded(p.convert("RGBA"), "PNG"),
    "rotated by exif": lambda p: encoded(p, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"
                                         b"\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "damaged in its middle": lambda p: _dented(encoded(p, quality=95)),
}  # fmt: skip


def _dented(content):
    middle = len(content) // 2
    return content[:middle] + b"\x00" * 40 + content[middle + 40 :]


@need_kernels
def test_every_route_is_taken_here():
    """Else all other tests would compare Pillow with itself."""
    assert fast_pil.decodes()
    assert pictures.as_pillow().order is not None
    assert pictures.as_pillow().bends


@pytest.mark.parametrize("kind", ODD)
def test_a_picture_is_as_pillow_decodes_it(kind):
    content = ODD[kind](picture(83, 61))
    wanted = Image.open(io.BytesIO(content)).convert("RGB")
    assert transforms.whole(content).tobytes() == wanted.tobytes()
    ours = transforms.RandomResizedCrop(32)
    theirs = RandomResizedCropAndInterpolation(32, interpolation="random")
    for number in range(12):
        with rng.seeded_global("crop", number):
            found = ours(content)
            after = random.random()
        with rng.seeded_global("crop", number):
            assert found.tobytes() == theirs(wanted).tobytes()
            assert after == random.random()


def test_a_truncated_picture_is_refused_in_pillows_words():
    content = encoded(picture(83, 61))[:1500]
    with pytest.raises(OSError, match="truncated"):
        transforms.whole(content)


@need_kernels
@pytest.mark.parametrize("filter_", FILTERS)
def test_crops_are_resized_as_pillow_does(filter_):
    """Up, down, both, unchanged, thin: 300 boxes whose sides are drawn evenly in the logarithm."""
    whole = picture(190, 230)
    draw = random.Random(5)
    pixels = np.asarray(whole)

    def side(most):
        return min(most, round(math.exp(draw.uniform(0, math.log(most + 1)))))

    for _ in range(300):
        width, height = side(230), side(190)
        size = draw.choice([(24, 24), (40, 13), (width, height), (17, height)])
        left, top = draw.randint(0, 230 - width), draw.randint(0, 190 - height)
        found = fast_pil.resized_crop(pixels, (left, top, width, height), size, filter_)
        cut = whole.crop((left, top, left + width, top + height))
        assert found.tobytes() == cut.resize(size, filter_).tobytes(), (width, height, size)


def by_hand(image, matrix, fill):
    """Linear interpolation in float64, pixel by pixel."""
    source = np.asarray(image).astype(float)
    height, width, _ = source.shape
    out = np.empty_like(source)
    for row, column in np.ndindex(height, width):
        a, b, c, d, e, f = matrix
        x = a * (column + 0.5) + b * (row + 0.5) + c
        y = d * (column + 0.5) + e * (row + 0.5) + f
        if not (0 <= x < width and 0 <= y < height):
            out[row, column] = fill
            continue
        left, top = math.floor(x - 0.5), math.floor(y - 0.5)
        value = 0
        for xx, share_x in ((left, left + 1.5 - x), (left + 1, x - left - 0.5)):
            for yy, share_y in ((top, top + 1.5 - y), (top + 1, y - top - 0.5)):
                at = source[min(max(yy, 0), height - 1), min(max(xx, 0), width - 1)]
                value = value + share_x * share_y * at
        out[row, column] = value
    return out


@need_kernels
def test_bending_is_by_the_definition():
    image = picture(13, 17)
    pixels = np.asarray(image.convert("RGBA"))
    matrix = (0.9, 0.3, -1.7, -0.2, 1.1, 0.6)
    found = pictures.warped(pixels, matrix, cubic=False, fill=(9, 8, 7))[..., :3]
    wanted = by_hand(image, matrix, (9, 8, 7))
    assert np.abs(found - (wanted - 0.5)).max() <= 0.5 + 1e-9


@need_kernels
@pytest.mark.parametrize("filter_", FILTERS)
def test_rand_augment_is_timms(filter_):
    options = {"translate_const": 20, "img_mean": (9, 99, 199), "interpolation": filter_}
    image = picture(45, 45)
    for op in rand_augment_transform("rand-m9-mstd0.5-inc1", options).ops:
        if not op.name.startswith(augment.BENDING):
            continue
        op.prob, plain = 1.0, op.aug_fn
        for number in range(12):
            found = []
            for function in (plain, functools.partial(fast_pil.bent, plain, None)):
                op.aug_fn = function
                with rng.seeded_global(op.name, number):
                    found.append(op(image).tobytes())
            assert found[0] == found[1], op.name


def test_without_kernels_and_decoder_pillow_does_it(monkeypatch):
    content = encoded(picture(83, 61))
    crop = transforms.RandomResizedCrop(32)
    turn = augment.pictorial(_augment(), 32, (0.5, 0.5, 0.5))

    def made():
        with rng.seeded_global("one"):
            return [turn(crop(content)).tobytes() for _ in range(20)]

    fast = made()
    monkeypatch.setattr(pictures, "as_pillow", lambda: pictures.AsPillow(None, False))
    assert made() == fast
    monkeypatch.setattr(fast_pil, "decodes", lambda: False)
    assert made() == fast


def _augment():
    from lsa_study.config.protocol import Augment

    return Augment(crop="random_resized", rand_augment="rand-m9-mstd0.5-inc1")


@need_kernels
def test_a_route_that_moves_a_pixel_is_not_taken(monkeypatch):
    routes = fast_pil.decodes, pictures.as_pillow

    def wrong(function):
        def call(*given, **options):
            out = function(*given, **options).copy()
            out[-1, -1, 0] ^= 1
            return out

        return call

    for module, name in (
        (fast_pil, "decode_jpeg"), (pictures, "resized_crop"), (pictures, "warped"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    try:
        for route in routes:
            route.cache_clear()
        assert (fast_pil.decodes(), pictures.as_pillow()) == (False, (None, False))
    finally:
        for route in routes:
            route.cache_clear()


def test_what_does_not_fit_is_refused():
    pixels = np.zeros((5, 6, 3), np.uint8)
    for box in ((-1, 0, 2, 2), (0, 0, 7, 2), (0, 3, 2, 3), (0, 0, 0, 2)):
        with pytest.raises(ValueError, match="does not fit pixels"):
            pictures.resized_crop(pixels, box, (4, 4), cubic=False, down_first=False)
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\)"):
        pictures.resized_crop(pixels[..., :2], (0, 0, 1, 1), (4, 4), cubic=True, down_first=True)
    with pytest.raises(ValueError, match=r"must be \(H, W, 4\) and contiguous"):
        pictures.warped(pixels, (1, 0, 0, 0, 1, 0), cubic=True, fill=(0, 0, 0))
    with pytest.raises(ValueError, match="a matrix of 6"):
        pictures.warped(np.zeros((5, 6, 4), np.uint8), (1, 0), cubic=True, fill=(0, 0, 0))


@need_kernels
@pytest.mark.parametrize("count", [2, 6, 0])
def test_bytes_are_mixed_as_torch_mixes_and_rounds(count):
    draw = torch.Generator().manual_seed(3)
    shares = torch.rand(40, generator=draw, dtype=torch.float64).tolist()
    for share in [0.0, 0.25, 0.5, 1.0, *shares]:
        before = torch.randint(0, 256, (count, 3, 7, 11), generator=draw, dtype=torch.uint8)
        got = before.clone()
        pictures.mix(got.numpy(), share)
        whole = before.float()
        assert torch.equal(got, (whole * share + whole.flip(0) * (1 - share)).round().byte())


@need_kernels
def test_every_byte_is_looked_up_in_the_table_of_its_channel():
    draw = np.random.default_rng(0)
    bytes_ = draw.integers(0, 256, (2, 3, 5, 7), np.uint8)
    tables, out = draw.random((3, 256), np.float32), np.empty(bytes_.shape, np.float32)
    pictures.look_up(bytes_, tables, out)
    for n, c, y, x in np.ndindex(out.shape):
        assert out[n, c, y, x] == tables[c, bytes_[n, c, y, x]]


def test_what_cannot_be_mixed_or_looked_up_is_refused():
    bytes_, tables = np.zeros((2, 3, 4, 4), np.uint8), np.zeros((3, 256), np.float32)
    for wrong in (bytes_[:1], bytes_[:, :, ::2]):
        with pytest.raises(ValueError, match="must be contiguous, an even number"):
            pictures.mix(wrong, 0.5)
    with pytest.raises(ValueError, match="do not fit"):
        pictures.look_up(bytes_, tables[:2], np.zeros(bytes_.shape, np.float32))
    with pytest.raises(ValueError, match="must be contiguous"):
        pictures.look_up(bytes_[:, :, ::2], tables, np.zeros((2, 3, 2, 4), np.float32))


def test_planes_are_the_channels():
    image = picture(5, 7)
    out = np.empty((3, 5, 7), np.uint8)
    transforms.planes(image, out)
    assert torch.equal(torch.from_numpy(out), torch.tensor(np.asarray(image)).permute(2, 0, 1))


def test_changes_of_pictures_go_to_other_processes():
    """Loading processes that are started anew, not forked, get them pickled."""
    settings = study.load_study("table1", tier="paper", only="swin", seeds=[0]).runs()[0].settings
    change = augment.pictorial(settings.augment, 32, (0.5, 0.5, 0.5))
    again = pickle.loads(pickle.dumps(change))
    for seed in range(8):
        with rng.seeded_global(seed):
            one = change(picture(32, 32))
        with rng.seeded_global(seed):
            other = again(picture(32, 32))
        assert one.tobytes() == other.tobytes()
