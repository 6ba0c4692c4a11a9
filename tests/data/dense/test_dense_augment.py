"""Boxes, masks and label maps move exactly as their picture does; sizes and draws as released."""

import colorsys

import numpy as np
import pytest
import torch

from lsa_study.data import rng
from lsa_study.data.dense import augment
from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe
from lsa_study.data.dense.targets import IGNORED, detected

HEIGHT, WIDTH = 90, 120
BOXES = torch.tensor([[10.0, 20, 50, 70], [60, 5, 110, 40], [0, 60, 120, 90], [3, 3, 9, 9]])


def ramp():
    """Red is twice the column, green twice the row: a pixel's colour says where it was."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([2 * columns, 2 * rows, torch.zeros_like(rows)]).to(torch.uint8)


def objects():
    masks = torch.zeros(len(BOXES), HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, BOXES.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return ramp(), detected(BOXES.clone(), torch.arange(1, 1 + len(BOXES)), masks, 7)


def origins(image):
    """Where each pixel's middle was, along both sides, in pixels from the edge."""
    red, green, _ = image.double() / 2 + 0.5
    return red, green


def line(values):
    """Slope and start of what grows evenly, from its inner half: the edges repeat their last."""
    at = np.arange(len(values)) + 0.5
    inner = slice(len(values) // 4, -(len(values) // 4) or None)
    return np.polyfit(at[inner], values.numpy()[inner], 1)


DETECT = DetectRecipe(
    shorts=(48, 75, 90, 133), long=170, crop_shorts=(60, 80, 100), crop=(40, 70)
)  # fmt: skip


@pytest.mark.parametrize("number", range(25))
def test_boxes_and_masks_lie_where_the_picture_shows_them(number):
    image, target = DETECT.train(objects(), rng.generator(number))
    height, width = image.shape[1:]
    assert target["masks"].shape[1:] == (height, width)
    across, down = origins(image)
    (slope_x, start_x), (slope_y, start_y) = line(across.mean(0)), line(down.mean(1))
    kept = target["labels"] - 1
    # Boxes: each corner of the original, put through the inverse of what the colours say.
    want = BOXES[kept].double().numpy()
    columns = np.sort((want[:, [0, 2]] - start_x) / slope_x, axis=1).clip(0, width)
    rows = np.sort((want[:, [1, 3]] - start_y) / slope_y, axis=1).clip(0, height)
    got = target["boxes"].numpy()
    np.testing.assert_allclose(got[:, [0, 2]], columns, atol=0.6)
    np.testing.assert_allclose(got[:, [1, 3]], rows, atol=0.6)
    # Masks: a pixel is in an object if it was, but for those near its edge: twice resized, each
    # time to the nearest pixel above and to the left.
    x = start_x + slope_x * (torch.arange(width) + 0.5)
    y = (start_y + slope_y * (torch.arange(height) + 0.5))[:, None]
    for mask, (left, top, right, bottom) in zip(target["masks"], want.tolist(), strict=True):
        off = torch.minimum(torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y))
        assert (mask[off > 2] == 1).all()
        assert (mask[off < -2] == 0).all()
    # None that is seen was dropped.
    seen = (x.min() < BOXES[:, 2]) & (x.max() > BOXES[:, 0])
    seen &= (y.min() < BOXES[:, 3]) & (y.max() > BOXES[:, 1])
    assert len(kept) >= int(seen.sum())


SEGMENT = SegmentRecipe(short=60, long=240, crop=64, distort=False)


@pytest.mark.parametrize("number", range(25))
def test_label_maps_lie_where_the_picture_shows_them(number):
    """The label of a pixel is its row's and column's tens."""
    image = ramp()
    labels = image[0].long() // 20 + 12 * (image[1].long() // 20)
    image, target = SEGMENT.train((image, {"labels": labels}), rng.generator(number))
    assert max(image.shape[1:]) <= 64
    assert target["labels"].shape == image.shape[1:]
    across, down = origins(image)
    near = (torch.stack([across, down]) % 10 - 5).abs().amax(0) > 3.5
    want = (across // 10 + 12 * (down // 10)).long()
    assert (target["labels"] == want)[~near].all()


def test_all_that_is_drawn_happens():
    """Both branches, both directions, every size; the crop within its bounds."""
    shapes, flips, parts = set(), set(), set()
    for number in range(80):
        image, _ = DETECT.train(objects(), rng.generator(number))
        across = origins(image)[0].mean(0)
        flips.add(bool(across[0] > across[-1]))
        whole = abs(float(across[0] - across[-1])) > 110
        parts.add(whole)
        if whole:
            shapes.add(tuple(image.shape[1:]))
    assert flips == parts == {False, True}
    assert shapes >= {augment.fitted((HEIGHT, WIDTH), short, 170) for short in DETECT.shorts}


@pytest.mark.parametrize(
    ("size", "short", "long", "want"),
    [((480, 640), 800, 1333, (800, 1067)), ((200, 640), 800, 1333, (417, 1333)),
     ((640, 480), 480, 1333, (640, 480)), ((427, 640), 512, 2048, (512, 767)),
     ((1, 5000), 800, 1333, (1, 1333))],
)  # fmt: skip
def test_sizes_are_those_of_the_released_code(size, short, long, want):
    """By hand: the side that is at its limit first decides, halves are rounded up."""
    assert augment.fitted(size, short, long) == want


def test_the_articles_recipes_are_the_default():
    recipe = DetectRecipe()
    assert recipe.shorts == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (recipe.long, recipe.crop_shorts, recipe.crop) == (1333, (400, 500, 600), (384, 600))
    assert recipe.views((480, 640)) == [((800, 1067), False)]
    many = SegmentRecipe(test_scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), test_flip=True)
    views = many.views((512, 683))
    assert len(views) == 12
    assert [size[0] for size, flip in views if flip] == [256, 384, 512, 640, 768, 896]


def test_a_crop_may_leave_nothing_to_detect():
    image, target = objects()
    few = {key: target[key][3:] for key in ("boxes", "labels", "masks", "crowd")}
    item = augment.cropped((image, {**target, **few}), 50, 50, (20, 30))
    assert item[1]["boxes"].shape == (0, 4)
    assert item[1]["masks"].shape == (0, 20, 30)
    again = augment.flipped(augment.resized(item, (40, 60)))
    assert again[1]["masks"].shape == (0, 40, 60)


def test_no_class_fills_a_crop_where_another_can_be_had():
    """Three quarters at most; labels that count nowhere are no class."""
    labels = torch.full((HEIGHT, WIDTH), 1)
    labels[:, 70:80] = 2
    labels[60:] = IGNORED
    recipe = SegmentRecipe(short=90, long=120, scales=(1.0, 1.0), crop=24, distort=False)
    shares = []
    for number in range(60):
        found = recipe.train((ramp(), {"labels": labels}), rng.generator(number))[1]["labels"]
        counts = torch.bincount(found[found != IGNORED])
        shares.append(float(counts.max() / counts.sum()) if len(counts) else 1.0)
    assert np.mean(np.array(shares) < 0.75) > 0.6
    unbound = SegmentRecipe(
        short=90, long=120, scales=(1.0, 1.0), crop=24, distort=False, cat_max_ratio=1.1
    )
    assert (unbound.train((ramp(), {"labels": labels}), rng.generator(1))[0].shape) == (3, 24, 24)


# -- colours ----------------------------------------------------------------------------------


def noise():
    return torch.randint(256, (3, 9, 7), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture
def only(monkeypatch):
    """Distort by one operation alone, of a given strength: as the coins fall."""

    def make(name, value):
        order = ["brightness", "contrast", "saturation", "hue"]  # contrast before colours
        coins = iter([True, *(name == each for each in order)])
        monkeypatch.setattr(augment, "_coin", lambda _: next(coins))
        monkeypatch.setattr(augment, "_between", lambda *_: value)
        monkeypatch.setattr(augment, "_whole", lambda *_: value)
        return augment.distorted(noise(), None).numpy()

    return make


def test_brightness_and_contrast_cut_off_what_is_beyond(only):
    pixels = noise().numpy().astype(np.float32)
    assert np.array_equal(only("brightness", 20.5), np.clip(pixels + 20.5, 0, 255).astype(np.uint8))
    assert np.array_equal(only("contrast", 1.3), np.clip(pixels * 1.3, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("name", "value"), [("saturation", 0.6), ("saturation", 1.5), ("hue", -9)])
def test_saturation_and_hue_are_those_of_the_colour_cone(only, name, value):
    """Against Python's own colour conversions, pixel by pixel."""
    got = only(name, value)
    for place in np.ndindex(got.shape[1:]):
        hue, saturation, most = colorsys.rgb_to_hsv(*(noise().numpy()[(..., *place)] / 255))
        if name == "hue":
            hue = (hue + value / 180) % 1
        else:
            saturation = min(1, saturation * value)
        want = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, most))
        np.testing.assert_allclose(got[(..., *place)], want, atol=1.01)


def test_colours_change_and_places_do_not():
    plain = SegmentRecipe(short=60, long=240, crop=64, distort=False)
    labels = ramp()[0].long()
    changed = 0
    for number in range(20):
        one = plain.train((ramp(), {"labels": labels}), rng.generator(number))
        other = SegmentRecipe(short=60, long=240, crop=64).train(
            (ramp(), {"labels": labels}), rng.generator(number)
        )
        assert torch.equal(one[1]["labels"], other[1]["labels"])
        changed += not torch.equal(one[0], other[0])
    assert 10 < changed <= 20
