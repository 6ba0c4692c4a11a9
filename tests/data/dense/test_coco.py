"""COCO's layout: what is read, what is left out and said, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_trees import CATEGORIES, SIZES, annotation

from lsa_study import data
from lsa_study.data import dense
from lsa_study.data.dense import coco, instances, targets
from lsa_study.data.dense.sets import DenseSets, DetectRecipe
from lsa_study.data.paths import DataLacks
from lsa_study.errors import ConfigError, EnvironmentLacks

pytest.importorskip("pycocotools")


@pytest.fixture
def splits(coco_root, asked):
    return lambda **changes: dense.splits(asked("coco", coco_root, **changes), "detect")


def image_file(root, number, split="train"):
    return root / "coco" / f"{split}2017" / f"{number:012}.png"


# -- what is read -----------------------------------------------------------------------------


def test_boxes_masks_and_labels_are_those_of_the_file(splits, coco_root):
    """Images by id; categories by id, counted from 1; masks as the rectangles that they are."""
    train, _ = splits()
    assert train.names == [CATEGORIES[number] for number in sorted(CATEGORIES)]
    image, target = train[1]
    assert target["image_id"] == 7
    want = np.asarray(Image.open(image_file(coco_root, 7))).transpose(2, 0, 1)
    assert np.array_equal(image.numpy(), want)
    assert target["boxes"].tolist() == [[10, 5, 30, 35], [30, 10, 38, 18]]
    assert target["labels"].tolist() == [3, 2]
    assert target["crowd"].tolist() == [False, False]
    for (left, top, right, bottom), mask in zip(
        target["boxes"].int().tolist(), target["masks"], strict=True
    ):
        want = torch.zeros(SIZES[7], dtype=torch.uint8)
        want[top:bottom, left:right] = 1
        assert torch.equal(mask, want)


def test_training_leaves_out_crowds_and_what_has_no_object_and_says_so(splits):
    train, test = splits()
    assert [train.image(row)["id"] for row in range(len(train))] == [3, 7]
    assert [test.image(row)["id"] for row in range(len(test))] == [3, 5, 7, 11]
    assert train.remarks == (
        "instances_train2017.json: 1 annotations of crowds left out of training",
        "instances_train2017.json: 2 images without objects left out of training",
    )
    assert test.remarks == ()


def test_a_crowd_is_there_to_test_and_an_empty_image_has_no_objects(splits):
    _, test = splits()
    crowd, empty = test[1][1], test[3][1]
    assert crowd["crowd"].tolist() == [True]
    assert crowd["masks"][0].any(0).nonzero().flatten().tolist() == list(range(10, 30))
    assert crowd["masks"][0].all(0).sum() == 20
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, *SIZES[11])


def test_annotations_are_the_files_own(splits):
    """By which detections are judged: only the numbers of categories are others."""
    _, test = splits()
    (found,) = test.annotations(0)
    assert found["category_id"] == 1
    assert (found["bbox"], found["area"], found["iscrowd"]) == ([4, 6, 12, 9], 108, 0)
    mask = targets.decoded([found["segmentation"]], SIZES[3])
    assert np.array_equal(mask, test[0][1]["masks"].numpy())
    assert test.annotations(3) == []
    inherited = super(coco.Coco, test).annotations(2)
    assert [{**one, "area": int(one["area"])} for one in test.annotations(2)] == inherited


def test_one_class_is_enough(splits, change):
    def only(content):
        content["categories"] = [{"id": 1, "name": "person"}]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]

    change(only, "train", "val")
    train, _ = splits()
    assert train.names == ["person"]
    assert len(train) == 1


def test_boxes_over_the_edge_are_clipped_and_empty_ones_dropped(splits, change):
    """Each kind counted, and said once."""

    def add(content):
        content["annotations"] += [
            annotation(10, 3, 1, (20, 40, 30, 30)),  # half of it outside 50 x 30
            annotation(11, 3, 1, (100, 100, 5, 5)),
            annotation(12, 3, 1, (5, 5, 0, 7)),
            annotation(13, 3, 1, (5, 5, 7, 7), area=0),
            annotation(14, 3, 1, (5, 5, 7, 7), segmentation=[]),
        ]

    change(add)
    train, _ = splits()
    target = train[0][1]
    assert target["boxes"].tolist() == [[4, 6, 16, 15], [20, 40, 30, 50]]
    assert target["masks"][1].sum() == 100
    assert train.remarks[:3] == (
        "instances_train2017.json: 1 annotations without a mask left out",
        "instances_train2017.json: 3 annotations left out of training, whose boxes are empty or "
        "outside their images",
        "instances_train2017.json: 1 boxes clipped to their images",
    )


def test_the_truth_of_the_test_is_that_of_the_file(splits, change):
    """As pycocotools reads it: boxes over the edge, and some of less than a pixel."""
    boxes = [(20.0, 40.0, 30.0, 30.0), (5.0, 5.0, 0.5, 0.5)]

    def add(content):
        one = min(image["id"] for image in content["images"])
        content["annotations"] += [annotation(10 + i, one, 1, box) for i, box in enumerate(boxes)]

    change(add, "val")
    _, test = splits()
    assert [tuple(one["bbox"]) for one in test.annotations(0)][-2:] == boxes
    assert test.remarks == ()


def test_the_file_is_read_once_and_kept_without_pickle(splits, tmp_path, monkeypatch):
    first = splits()[0]
    (kept,) = (tmp_path / "cache" / "lsa_study").iterdir()  # both splits hold the same
    assert np.load(kept, allow_pickle=False)["ids"].tolist() == sorted(SIZES)
    instances.read.cache_clear()
    monkeypatch.setattr(instances, "_arrays", lambda *_: pytest.fail("read again"))
    again = splits()[0]
    assert again.remarks == first.remarks
    assert torch.equal(again[1][1]["masks"], first[1][1]["masks"])


def test_a_torn_cache_is_made_again(splits, tmp_path):
    want = splits()[0][1][1]
    (kept,) = (tmp_path / "cache" / "lsa_study").iterdir()
    np.savez(kept.with_name("other.npz"), ids=np.arange(3))
    for content in (kept.read_bytes()[:-200], b"", (kept.with_name("other.npz")).read_bytes()):
        kept.write_bytes(content)
        instances.read.cache_clear()
        assert torch.equal(splits()[0][1][1]["masks"], want["masks"])


def test_the_fingerprint_is_of_content_and_number(splits, change):
    def printed(**changes):
        train, test = splits(**changes)
        recipe = DetectRecipe()
        return DenseSets("coco", train, test, recipe, seed=0, device="cpu").source.fingerprint

    first = printed()
    assert printed() == first
    assert first.startswith("coco-")
    assert printed(train_limit=1) != first
    change(lambda content: content["annotations"].pop())
    assert printed() != first


# -- what is refused --------------------------------------------------------------------------


def test_missing_files_name_the_layout(tmp_path, asked):
    with pytest.raises(DataLacks, match=r"COCO not found .*Wanted under .*instances_train2017"):
        data.require(asked("coco", tmp_path))


def test_a_part_of_coco_is_not_taken_for_the_whole(splits):
    with pytest.raises(DataLacks, match=r"names 4 images, expected 118,287; .*train_limit"):
        splits(train_limit=None)


def put(path, value):
    """Change one value of the file, by the keys and numbers that lead to it."""

    def do(content):
        *way, last = path
        for key in way:
            content = content[key]
        content[last] = value

    return do


DAMAGE = {
    "no images": (put(["images"], []), "has 0 images, 3 categories"),
    "no categories": (put(["categories"], []), "has 4 images, 0 categories"),
    "no list": (put(["images"], 3), "is damaged or holds something else"),
    "key": (lambda c: c["images"][0].pop("width"), "KeyError: 'width'"),
    "text": (put(["images", 0, "width"], "wide"), "is damaged or holds something else"),
    "side": (put(["images", 0, "width"], 0), "perhaps sides of 0"),
    "twice": (put(["images", 0, "id"], 3), "two images or two categories of one id"),
    "image": (put(["annotations", 0, "image_id"], 99), "annotation 1 is of image 99"),
    "category": (put(["annotations", 0, "category_id"], 2), "annotation 1 is of .* category 2"),
    "box": (put(["annotations", 0, "bbox"], [1, 2, float("nan"), 4]), "wanted are finite"),
    "three numbers": (put(["annotations", 0, "bbox"], [1, 2, 3]), "damaged .*unpack"),
    "polygon": (put(["annotations", 0, "segmentation"], [[1, 2, 3, 4]]), "three corners at least"),
    "corner": (put(["annotations", 0, "segmentation", 0, 0], 1e9), "three corners at least"),
    "runs": (put(["annotations", 3, "segmentation", "counts", 0], 1), "cover 1081 pixels of 1280"),
    "size": (put(["annotations", 3, "segmentation", "size"], [4, 4]), r"\[4, 4\] pixels high"),
    "code": (put(["annotations", 3, "segmentation", "counts"], "a"), "cover 0 pixels of 1280"),
    "no code": (put(["annotations", 3, "segmentation", "counts"], ""), "cover 0 pixels of 1280"),
    "number": (put(["images", 0, "width"], 2**64), "OverflowError"),
    "nothing": (put(["annotations"], []), "none of the first 100 images has an object"),
}


@pytest.mark.parametrize(
    "action",
    [
        put(["categories", 0, "name"], "cat"),
        lambda c: c["categories"].append({"id": 99, "name": "x"}),
    ],
)
def test_other_categories_in_the_test_are_refused(splits, change, action):
    change(action, "val")
    with pytest.raises(DataLacks, match=r"instances_val2017.json: has other categories than"):
        splits()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(splits, change, damage):
    action, message = DAMAGE[damage]
    change(action)
    with pytest.raises(DataLacks, match=rf"instances_train2017\.json.*{message}.*fetch"):
        splits()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"images": []', b"null"])
def test_what_is_no_file_of_instances_is_refused(splits, coco_root, content):
    file = coco_root / "coco" / "annotations" / "instances_val2017.json"
    file.write_bytes(content)
    with pytest.raises(DataLacks, match=r"instances_val2017\.json: is damaged"):
        splits()
    file.unlink()
    file.mkdir()
    with pytest.raises(DataLacks, match=r"instances_val2017\.json: cannot be read"):
        splits()


def batches(splits):
    recipe = DetectRecipe(shorts=(32,), crop_shorts=(32,), crop=(16, 32))
    sets = DenseSets("coco", *splits(), recipe, seed=0, device="cpu")
    return list(sets.train(sets.epoch(0, 1)))


@pytest.mark.parametrize("damage", ["size", "torn", "empty", "missing"])
def test_an_image_that_is_not_as_annotated_is_named(splits, coco_root, damage):
    path = image_file(coco_root, 7)
    train = splits()[0]
    if damage == "size":
        Image.new("RGB", (60, 41)).save(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 500])
    reason = r"60 x 41 pixels, 60 x 40 in instances_train2017\.json" if damage == "size" else ""
    with pytest.raises(DataLacks, match=rf"{path.name}: cannot be used \(.*{reason}.*fetch"):
        batches(lambda: (train, splits()[1]))


def test_missing_pictures_are_reported_before_training(splits, coco_root):
    image_file(coco_root, 3).unlink()
    with pytest.raises(DataLacks, match=r"000003\.png: cannot be read .*fetch the images"):
        splits()


def test_without_pycocotools_it_is_said_what_to_install(splits, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install 'lsa_study\[detection\]'"):
        splits()


@pytest.mark.parametrize(
    ("name", "task"), [("coco", "segment"), ("ade20k", "detect"), ("digits", "detect")]
)
def test_a_set_without_such_targets_is_refused(asked, name, task):
    with pytest.raises(ConfigError, match=rf"data\.name={name}: has nothing to {task}; give one"):
        dense.splits(asked(name), task)


def test_names_of_images_are_kept_by_the_bytes(splits, change, coco_root):
    """Also of other scripts."""
    folder = coco_root / "coco" / "train2017"
    image_file(coco_root, 3).rename(folder / "žába.png")
    change(put(["images", 1, "file_name"], "žába.png"))
    train, _ = splits()
    assert train.where(0).endswith("žába.png")
    assert train[0][1]["image_id"] == 3
    assert json.loads(json.dumps(train.image(0))) == {"id": 3, "height": 50, "width": 30}
