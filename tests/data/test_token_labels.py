"""Label maps: their files, their place in the picture, the targets made of them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lsa_study import data
from lsa_study.data import augment, rng, token_labels, transforms
from lsa_study.data.paths import DataLacks

CLASSES = {"n01": 3, "n02": 1, "n03": 2}
SIZE = (90, 70)
CELLS = (9, 12)


def ramp(count):
    """From 0 to 1 over a side, at the middles of its parts."""
    return (np.arange(count) + 0.5) / count


@pytest.fixture
def root(tmp_path):
    """Pictures whose red says the column and green the row; so do the scores of their maps."""
    (width, height), (rows, columns) = SIZE, CELLS
    red, green = np.meshgrid(ramp(width), ramp(height))
    pixels = (255 * np.stack([red, green, np.zeros_like(red)], axis=2)).round().astype(np.uint8)
    across, down = np.meshgrid(ramp(columns), ramp(rows))
    scores = torch.from_numpy(np.stack([across, down, 0 * down]))
    classes = torch.arange(3.0).view(3, 1, 1).expand(3, rows, columns)
    for split, counts in (("train", CLASSES), ("val", dict.fromkeys(CLASSES, 1))):
        for name, count in counts.items():
            for folder in (tmp_path / "imagenet" / split, tmp_path / "imagenet" / "token_labels"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path = tmp_path / "imagenet" / split / name / f"{name}_{i}.PNG"
                Image.fromarray(pixels).save(path)
                if split == "train":
                    torch.save(torch.stack([scores, classes]).half(), map_of(tmp_path, name, i))
    return tmp_path


def map_of(root, name="n01", i=0):
    return root / "imagenet" / "token_labels" / name / f"{name}_{i}.pt"


@pytest.fixture
def small(settings, root):
    def make(labels="maps", **changes):
        return settings(
            "paper", **{"data__root": root, "data__image_size": 64, "data__train_limit": 100,
            "train__batch_size": 3, "runtime__workers": 0, "model__backbone": "volo_d1",
            "augment__mixup": 0.0, "augment__cutmix": 0.0, "augment__rand_augment": "null",
            "augment__color_jitter": 0.0, "augment__erasing": 0.0,
            "augment__label_smoothing": 0.0, "train__tokens": f"{{labels: {labels}}}", **changes},
        )  # fmt: skip

    return make


def batches(sets, epochs=1):
    return [b for epoch in range(epochs) for b in sets.train(sets.epoch(epoch, 3))]


@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_labels_lie_where_the_image_shows_them(small, hflip):
    """Each token's target names the place that its own pixels show, crop and flip as drawn."""
    sets = data.load(small(augment__hflip=hflip))
    flips, worst = set(), 0.0
    for batch in batches(sets, epochs=4):
        pixels = batch.images * sets._std / 255 + sets._mean / 255
        shown = torch.nn.functional.avg_pool2d(pixels, 16)[:, :2].flatten(2)
        told = (batch.tokens[..., :2] / batch.tokens[..., 2:]).log().transpose(1, 2)
        # Beyond the middles of the outermost cells a map has no slope.
        inside = ((shown > 0.1) & (shown < 0.9)).all(1, keepdim=True).expand_as(shown)
        worst = max(worst, (told - shown).abs()[inside].max().item())
        flips |= {bool(row) for row in shown[:, 0, 0] > shown[:, 0, 3]}
        whole = (batch.targets[:, :2] / batch.targets[:, 2:]).log()
        middle = pixels[:, :2].flatten(2).mean(2)
        assert (whole - middle).abs().max() < 0.03
    assert worst < 0.01
    assert flips == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[hflip]


COLOURS = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)]).float()


@pytest.mark.parametrize(
    ("cells", "draws"), [((7, 7), 500), ((7, 10), 150)], ids=["square", "wide"]
)
def test_labels_follow_every_geometric_operation(small, root, cells, draws):
    """Draws of RandAugment on a picture of coloured cells whose map names their colours.

    Operations on colours are left out, as they would give a cell the colour of another class.
    """
    side, cell = 32, 7  # pixels of an uncut cell in the image, whatever it has in the picture
    draw = np.random.default_rng(5)
    # Blocks of eight cells, so that a token has an inside.
    chosen = np.kron(draw.integers(1, 8, (side // 8, side // 8)), np.ones((8, 8), int))
    pixels = (255 * COLOURS.numpy()[np.kron(chosen, np.ones(cells, int))]).astype(np.uint8)
    Image.fromarray(pixels).save(root / "imagenet" / "train" / "n01" / "n01_0.PNG")
    map_ = torch.zeros(2, 1, side, side)
    map_[0], map_[1] = 20.0, torch.from_numpy(chosen)
    content = (root / "imagenet" / "train" / "n01" / "n01_0.PNG").read_bytes()
    wanted = small(data__image_size=224, augment__rand_augment="rand-m9-mstd0.5-inc1")
    past = transforms.Moved()
    pipeline = transforms.training(wanted, (0.0, 0.0, 0.0), past)
    for op in pipeline.transforms[2].ops:
        if not op.name.startswith(augment.BENDING):
            op.aug_fn = lambda picture, *_, **__: picture
    compared = moves = 0
    for number in range(draws):
        with rng.seeded_global("picture", number):
            image = torch.from_numpy(np.array(pipeline(content))).permute(2, 0, 1) / 255
        moves += bool(past.moves)
        maps = token_labels.moved(map_, past)[None]
        cuts = torch.tensor(past.box)[None]
        _, tokens = token_labels.answers(maps, cuts, num_classes=8, side=14)
        # Away from borders: one colour all over the token and two cells around it, since a map
        # moves by whole cells. Every fourth pixel, four to a token, is enough to see that.
        left, top, right, bottom = past.box
        down, across = (math.ceil(cell / 2 / (b - a)) for a, b in ((top, bottom), (left, right)))
        padded = torch.nn.functional.pad(image[:, 2::4, 2::4], (across, across, down, down))
        window = {"kernel_size": (4 + 2 * down, 4 + 2 * across), "stride": 4}
        most, least = (sign * torch.max_pool2d(sign * padded, **window) for sign in (1, -1))
        shown = torch.cdist(most.flatten(1).T, COLOURS).argmin(1).view(14, 14)
        # Black is what an operation uncovers and what lies beyond: no class is named there.
        inside = ((most - least).amax(0) < 0.02) & (shown > 0)
        share, told = tokens[0].view(14, 14, 8).max(-1)
        assert (told[inside] == shown[inside]).all(), (number, past)
        assert (share[inside] > 0.9).all(), (number, past)
        compared += int(inside.sum())
    assert compared > 8 * draws
    assert moves > 0.25 * draws


def test_maps_put_the_cut_last(small):
    """As released for token labels; without maps it is first, as in timm's pipeline."""
    asked = {"augment__rand_augment": "rand-m9-mstd0.5-inc1"}
    names = [
        [type(step).__name__ for step in transforms.training(small(labels, **asked), (0.0,) * 3)
         .transforms] for labels in ("plain", "maps")
    ]  # fmt: skip
    assert names[0] == ["RandomResizedCrop", "RandomHorizontalFlip", "RandAugment"]
    assert names[1][1:] == ["RandomHorizontalFlip", "RandAugment", "RandomResizedCrop"]


def test_boxes_can_be_transposed_as_released(small):
    upright, transposed = (
        batches(data.load(small(train__tokens=f"{{labels: maps, boxes: {boxes}}}")))
        for boxes in ("upright", "transposed")
    )
    assert torch.equal(upright[0].images, transposed[0].images)
    assert not torch.equal(upright[0].tokens, transposed[0].tokens)


def test_targets_have_the_shape_of_tokens(small):
    plain, mapped = (batches(data.load(small(labels))) for labels in ("plain", "maps"))
    for one, other in zip(plain, mapped, strict=True):
        assert one.tokens is None
        assert one.targets.ndim == 1
        assert other.targets.shape == (3, 3)
        assert other.tokens.shape == (3, 16, 3)


def test_targets_do_not_depend_on_workers_or_where_an_epoch_is_left(small):
    alone = batches(data.load(small()))
    sets = data.load(small(runtime__workers=2))
    helped = list(sets.train(sets.epoch(0, 3, first_step=1)))
    assert torch.equal(alone[1].tokens, helped[0].tokens)
    assert torch.equal(alone[1].targets, helped[0].targets)


# -- the targets of a batch ------------------------------------------------------------------------


def sampled(grid, y, x):
    """Bilinear between the middles of cells, the outermost ones' values beyond."""
    rows, columns = grid.shape
    y, x = (min(max(v - 0.5, 0), n - 1) for v, n in ((y, rows), (x, columns)))
    top, left = min(int(y), rows - 1), min(int(x), columns - 1)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    dy, dx = y - top, x - left
    above = grid[top, left] * (1 - dx) + grid[top, right] * dx
    below = grid[bottom, left] * (1 - dx) + grid[bottom, right] * dx
    return above * (1 - dy) + below * dy


def by_hand(scores, classes, cut, num_classes, side):
    """Scatter, RoI align with a sample for every started cell, flip, softmax; all by loops."""
    best, rows, columns = scores.shape
    whole = np.zeros((num_classes, rows, columns))
    for k, row, column in np.ndindex(best, rows, columns):
        whole[int(classes[k, row, column]), row, column] = scores[k, row, column]
    left, right = cut[0] * columns, cut[2] * columns
    top, bottom = cut[1] * rows, cut[3] * rows
    high, wide = (bottom - top) / side, (right - left) / side
    across, down = math.ceil(wide), math.ceil(high)
    out = np.zeros((side * side, num_classes))
    for row, column, k in np.ndindex(side, side, num_classes):
        place = row * side + column
        for i, j in np.ndindex(down, across):
            y = top + high * (row + (i + 0.5) / down)
            x = left + wide * (column + (j + 0.5) / across)
            out[place, k] += sampled(whole[k], y, x) / (down * across)
    raised = np.exp(out)
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize(("rows", "columns", "side"), [(5, 7, 3), (18, 18, 4), (3, 4, 5)])
def test_answers_match_loops(rows, columns, side):
    draw = np.random.default_rng(rows)
    scores = draw.normal(size=(3, 2, rows, columns)) * 4
    classes = draw.random((3, 6, rows, columns)).argsort(1)[:, :2]
    cuts = np.array([[0.1, 0.2, 0.8, 0.7], [0.0, 0.0, 1.0, 1.0], [0.33, 0.5, 0.9, 0.95]])
    maps = torch.from_numpy(np.stack([scores, classes], axis=1)).float()
    images, tokens = token_labels.answers(
        maps, torch.from_numpy(cuts).float(), num_classes=6, side=side
    )
    for n in range(3):
        one, each = (by_hand(scores[n], classes[n], cuts[n], 6, count) for count in (1, side))
        np.testing.assert_allclose(tokens[n].numpy(), each, atol=1e-5)
        np.testing.assert_allclose(images[n].numpy(), one[0], atol=1e-5)


def test_smoothing_and_the_share_of_the_truth(small):
    """The released formulas on numbers a person can check: K = 4, e = 0.2."""
    told = token_labels.smoothed(torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 1.0, 0]]), 0.2)
    torch.testing.assert_close(told, torch.tensor([[0.475, 0.475, 0.05, 0.05],
                                                   [0.05, 0.05, 0.9, 0.05]]))  # fmt: skip
    mixed = token_labels.with_truth(told, torch.tensor([3, 2]), 0.2)
    disagreeing = 0.9 * told[0] + 0.1 * torch.tensor([0.05, 0.05, 0.05, 0.85])
    agreeing = torch.tensor([0.05, 0.05, 0.875, 0.05])
    torch.testing.assert_close(mixed, torch.stack([disagreeing, agreeing]))
    asked = {"augment__label_smoothing": 0.2}
    plain, maps, truth = (
        batches(data.load(small(labels, **asked)))[0]
        for labels in ("plain", "maps", "maps_and_truth")
    )
    want = token_labels.with_truth(maps.targets, plain.targets, 0.2)
    torch.testing.assert_close(truth.targets, want)
    assert torch.equal(truth.tokens, maps.tokens)
    torch.testing.assert_close(maps.tokens.sum(2), torch.full((3, 16), 1 + 0.2 / 3))


# -- files that are missing or damaged -----------------------------------------------------------


def test_missing_maps_are_told_before_anything_runs(small, root):
    map_of(root, "n03", 1).unlink()
    data.check(small(data__train_limit=3))  # it is not among the first three
    with pytest.raises(DataLacks) as told:
        data.check(small())
    words = str(told.value)
    assert words.startswith(f"{map_of(root, 'n03', 1)}: no such label map, nor for 0 more of 6")
    assert "set train.tokens.labels: plain" in words
    (root / "imagenet" / "token_labels").rename(root / "imagenet" / "elsewhere")
    with pytest.raises(
        DataLacks, match=r"n01_0.pt: no such label map, nor for 5 more of 6 images; unpack"
    ):
        data.check(small())
    data.check(small("plain"))


def released(rows=9, columns=12, best=3, last=2):
    classes = torch.arange(best) + last - best + 1
    return torch.stack(
        [torch.zeros(best, rows, columns), classes.view(-1, 1, 1).expand(-1, rows, columns)]
    )


DAMAGED = {
    "shape (3, 9, 12)": released()[0],
    "type torch.int64": released().long(),
    "has the shape (2, 3, 12, 9), the first map (2, 3, 9, 12)": released(12, 9),
    "classes that are not whole numbers from 0 to 2": released(last=3),
    "scores that are not finite": released() + torch.tensor([torch.inf, 0]).view(2, 1, 1, 1),
    "names a class twice in one cell": released() * 0,
    "holds no tensor but a list": [1, 2],
}


@pytest.mark.parametrize(
    ("words", "workers"), [*((words, 0) for words in DAMAGED), ("shape (3, 9, 12)", 1)]
)
def test_what_is_no_label_map_is_named(small, root, words, workers):
    torch.save(DAMAGED[words], map_of(root, "n02"))
    with pytest.raises(DataLacks) as told:
        batches(data.load(small(runtime__workers=workers)))
    assert str(told.value).startswith(f"{map_of(root, 'n02')}: ")
    assert words in str(told.value)
    assert "Traceback" not in str(told.value)


def test_maps_with_classes_last_are_told_at_once(small, root):
    """Cell by cell instead of class by class: neighbours name the same class."""
    for path in (root / "imagenet" / "token_labels").rglob("*.pt"):
        torch.save(released().permute(0, 2, 3, 1).half(), path)
    with pytest.raises(DataLacks, match=r"n01_0.pt: .+; wanted is a tensor \(2, k, rows, col"):
        data.check(small())


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "code"])
def test_a_file_that_cannot_be_read_is_named(small, root, damage):
    """Also one that would run code when unpickled."""
    path = map_of(root)
    content = {"empty": b"", "cut": path.read_bytes()[:200], "noise": b"\x80\x02}q\x00" * 9}
    torch.save(data.load, path) if damage == "code" else path.write_bytes(content[damage])
    with pytest.raises(DataLacks, match=r"n01_0.pt: cannot be read as a tensor \(\w+\); unpack it"):
        data.check(small())


def test_the_fingerprint_includes_the_maps(small, root):
    def fingerprint(labels):
        return data.load(small(labels)).source.fingerprint

    plain, first = fingerprint("plain"), fingerprint("maps")
    assert plain != first
    assert fingerprint("maps_and_truth") == first
    torch.save(released(), map_of(root))
    assert fingerprint("maps") != first
    assert fingerprint("plain") == plain
