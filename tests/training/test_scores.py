"""Average precision against pycocotools itself, mean IoU against loops in NumPy."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsa_study.config.settings import Data
from lsa_study.data import dense
from lsa_study.data.dense.augment import DetectRecipe, SegmentRecipe
from lsa_study.data.dense.sets import DenseSets
from lsa_study.data.dense.targets import Split, detected, encoded
from lsa_study.training import scores

pytest.importorskip("pycocotools")

SIZE = (40, 60)


def mask_of(left, top, width, height):
    mask = torch.zeros(SIZE, dtype=torch.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


OBJECTS = [
    [((5, 5, 20, 20), 1, False), ((30, 10, 20, 25), 2, False)],
    [((0, 0, 10, 30), 2, False), ((20, 0, 40, 40), 1, True)],
    [],
    [((10, 10, 12, 12), 1, False)],
]
"""Of each image: box (left, top, width, height), label, whether a crowd."""


class ByHand(Split):
    """Objects that are rectangles, in images of which nothing else is known."""

    names = ("person", "car")

    def __len__(self):
        return len(OBJECTS)

    def __getitem__(self, index):
        boxes = torch.tensor([box for box, _, _ in OBJECTS[index]], dtype=torch.float32)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [mask_of(*box) for box, _, _ in OBJECTS[index]]
        return torch.zeros(3, *SIZE, dtype=torch.uint8), detected(
            boxes, torch.tensor([label for _, label, _ in OBJECTS[index]]),
            torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.uint8), index,
            torch.tensor([crowd for _, _, crowd in OBJECTS[index]], dtype=torch.bool),
        )  # fmt: skip

    def where(self, index):
        return f"image {index}"


def found(image, label, box, score, mask=None):
    (code,) = encoded((mask_of(*box) if mask is None else mask)[None])
    code = code | {"counts": code["counts"].decode()}
    return {
        "image_id": image, "category_id": label, "bbox": list(box), "score": score,
        "segmentation": code,
    }  # fmt: skip


def detections():
    """Right ones, shifted ones, one of the wrong class, one in the crowd, one nowhere."""
    return [
        found(0, 1, (6, 5, 20, 20), 0.9),
        found(0, 1, (5, 5, 20, 19), 0.6),
        found(0, 2, (30, 14, 20, 20), 0.8),
        found(1, 2, (0, 0, 10, 30), 0.7, mask_of(0, 0, 10, 22)),
        found(1, 1, (22, 3, 30, 30), 0.95),
        found(2, 1, (10, 10, 10, 10), 0.85),
        found(3, 2, (10, 10, 12, 12), 0.99),
        found(3, 1, (12, 11, 12, 12), 0.3),
    ]


def test_average_precision_is_that_of_pycocotools_from_files(tmp_path):
    """Both files are written by hand and read by pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = []
    for image, objects in enumerate(OBJECTS):
        for (left, top, width, height), label, crowd in objects:
            right, bottom = left + width, top + height
            corners = [left, top, right, top, right, bottom, left, bottom]
            (code,) = encoded(mask_of(left, top, width, height)[None])
            code = {"size": code["size"], "counts": code["counts"].decode()}
            rows.append({
                "id": len(rows) + 1, "image_id": image, "category_id": label,
                "bbox": [left, top, width, height], "area": width * height, "iscrowd": int(crowd),
                "segmentation": code if crowd else [corners],
            })  # fmt: skip
    truth = {
        "info": {}, "annotations": rows, "categories": [{"id": 1}, {"id": 2}],
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(OBJECTS))],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections()))
    got = scores.Truth(ByHand()).average_precision(detections())
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(tmp_path / "truth.json")
            judge = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), name)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        want = {f"{kind}_{s}": 100 * judge.stats[i] for i, s in enumerate(("ap", "ap50", "ap75"))}
        assert {key: got[key] for key in want} == pytest.approx(want, abs=1e-12)
        assert 0 < want[f"{kind}_ap"] < want[f"{kind}_ap50"] < 100
    assert got["box_ap"] != got["mask_ap"]


def test_perfect_detections_score_100_and_none_0(capsys):
    truth = scores.Truth(ByHand())
    right = [
        found(image, label, box, 0.5)
        for image, objects in enumerate(OBJECTS)
        for box, label, crowd in objects
        if not crowd
    ]
    assert [*truth.average_precision(right).values()] == pytest.approx([100] * 6)
    assert set(truth.average_precision([]).values()) == {0.0}
    wrong = [one | {"category_id": 3 - one["category_id"]} for one in right]
    assert set(truth.average_precision(wrong).values()) == {0.0}
    assert capsys.readouterr().out == ""


def test_where_nothing_is_to_be_detected_there_is_no_number(monkeypatch):
    monkeypatch.setitem(globals(), "OBJECTS", [[], []])
    for detected_ in ([], [found(0, 1, (1, 1, 5, 5), 0.5)]):
        got = scores.Truth(ByHand()).average_precision(detected_)
        assert all(np.isnan(value) for value in got.values())


def test_one_class_is_enough(monkeypatch):
    monkeypatch.setattr(ByHand, "names", ("person",))
    monkeypatch.setitem(globals(), "OBJECTS", [[((5, 5, 20, 20), 1, False)]])
    got = scores.Truth(ByHand()).average_precision([found(0, 1, (5, 5, 20, 20), 0.1)])
    assert (got["box_ap"], got["mask_ap"]) == pytest.approx((100, 100))


# -- from views to images ---------------------------------------------------------------------


def scenes(task, recipe):
    data = Data.model_construct(
        name="scenes", image_size=96, train_limit=4, test_limit=6, root=None
    )
    return DenseSets("scenes", *dense.splits(data, task), recipe, seed=0, device="cpu")


@pytest.mark.parametrize("short", [96, 64, 160])
def test_answers_in_a_view_are_scored_in_the_image(short):
    """What stands in a scene, found in a smaller or larger view of it, is nearly all right."""
    sets = scenes("detect", DetectRecipe(test_short=short))
    truth, all_found = scores.Truth(sets.test_split), []
    for test in sets.test():
        (view,) = test.views()
        target, sides = test.target, torch.tensor([view.scale[1], view.scale[0]] * 2)
        size = view.image.shape[1:]
        masks = F.interpolate(target["masks"][None].float(), size, mode="bilinear")[0] >= 0.5
        answer = {
            "boxes": target["boxes"] * sides, "labels": target["labels"], "masks": masks,
            "scores": torch.ones(len(masks)),
        }  # fmt: skip
        all_found += scores.found_in(test, answer, view.scale)
    assert json.loads(json.dumps(all_found)) == all_found
    got = truth.average_precision(all_found)
    assert got["box_ap"] == pytest.approx(100)
    assert got["mask_ap50"] == pytest.approx(100)
    assert got["mask_ap"] > (99.9 if short == 96 else 60)


def test_an_answer_without_objects_is_none():
    (test, *_) = scenes("detect", DetectRecipe(test_short=64)).test()
    nothing = {
        "boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0),
        "masks": torch.zeros(0, 64, 64, dtype=torch.bool),
    }  # fmt: skip
    assert scores.found_in(test, nothing, (64 / 96, 64 / 96)) == []


def test_labels_by_many_views_are_the_mean_of_their_shares():
    """A network that knows nothing but colours, checked view by view in NumPy."""
    recipe = SegmentRecipe(short=96, long=384, test_scales=(0.5, 1.25), test_flip=True)
    (test, *_) = scenes("segment", recipe).test()

    def network(image):
        assert image.shape[0] == 3
        return F.avg_pool2d(image, 4) * 3 + torch.arange(image.shape[2] // 4) / 10  # not mirrored

    got = scores.label_map(test, network)
    mean = 0
    for view in test.views():
        logits = network(view.image)
        if view.flipped:
            logits = logits.flip(-1)
        sized = F.interpolate(logits[None], test.size, mode="bilinear")[0].double().numpy()
        shares = np.exp(sized - sized.max(0))
        mean = mean + shares / shares.sum(0)
    assert (got.numpy() == mean.argmax(0)).mean() > 0.999


# -- overlaps ---------------------------------------------------------------------------------


def by_hand(answers, labels, classes):
    """Read the definition aloud, pixel by pixel."""
    overlap = np.zeros((len(answers), 2, classes))
    right = counted = 0
    for image, (answer, label) in enumerate(zip(answers, labels, strict=True)):
        for place in np.ndindex(answer.shape):
            a, b = int(answer[place]), int(label[place])
            if b == 255:
                continue
            counted, right = counted + 1, right + (a == b)
            overlap[image, 0, a] += a == b
            for name in {a, b}:
                overlap[image, 1, name] += 1
    agreed, named = overlap.sum(0)
    shares = [x / y for x, y in zip(agreed, named, strict=True) if y]
    return overlap, 100 * np.mean(shares), 100 * right / counted


def test_overlaps_and_their_means_are_those_of_loops():
    draw = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 5, (6, 9, 7), generator=draw)
    labels = torch.where(torch.rand(answers.shape, generator=draw) < 0.4, answers, 1)
    labels[torch.rand(labels.shape, generator=draw) < 0.2] = 255
    want, iou, right = by_hand(answers.numpy(), labels.numpy(), 7)  # 5 and 6 are nowhere
    got = torch.stack([scores.overlaps(a, b, 7) for a, b in zip(answers, labels, strict=True)])
    assert np.array_equal(got.numpy(), want)
    assert float(scores.mean_iou(got.sum(0))) == pytest.approx(iou, rel=1e-12)
    assert float(scores.pixel_accuracy(got.sum(0))) == pytest.approx(right, rel=1e-12)
    # Of several choices of images at once.
    chosen = torch.randint(0, 6, (4, 6), generator=draw)
    several = scores.mean_iou(got[chosen].sum(1))
    for row, numbers in zip(several.tolist(), chosen.tolist(), strict=True):
        _, iou, _ = by_hand(answers[numbers].numpy(), labels[numbers].numpy(), 7)
        assert row == pytest.approx(iou, rel=1e-12)


def test_an_image_whose_pixels_all_count_nowhere_adds_nothing():
    nowhere = torch.full((4, 4), 255)
    overlap = scores.overlaps(torch.zeros(4, 4, dtype=torch.int64), nowhere, 3)
    assert not overlap.any()
    assert scores.mean_iou(overlap).isnan()
    assert scores.pixel_accuracy(overlap).isnan()
