"""Tiny data sets in the layouts of COCO and ADE20K, written below a folder."""

import json

import numpy as np
from PIL import Image

SIZES = {7: (40, 60), 3: (50, 30), 11: (36, 36), 5: (20, 64)}
"""Image id -> height and width; 11 has no object, of 5 only a crowd is known."""
CATEGORIES = {3: "car", 1: "person", 90: "toothbrush"}


def rectangle(left, top, width, height):
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number, image, category, box, **changes):
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": list(box),
        "area": box[2] * box[3], "iscrowd": 0, "segmentation": [rectangle(*box)], **changes,
    }  # fmt: skip


def annotations():
    height, width = SIZES[5]
    runs = [height * 10, height * 20, height * (width - 30)]  # columns 10 to 29
    return [
        annotation(1, 7, 90, (10, 5, 20, 30)),
        annotation(2, 3, 1, (4, 6, 12, 9)),
        annotation(3, 7, 3, (30, 10, 8, 8)),
        annotation(
            4, 5, 1, (10, 0, 20, 20), iscrowd=1,
            segmentation={"size": [height, width], "counts": runs},
        ),
    ]  # fmt: skip


def write_coco(root):
    """Both splits hold the same annotations."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = root / "coco" / f"{split}2017"
        folder.mkdir(parents=True)
        images = []
        for number, (height, width) in SIZES.items():
            name = f"{number:012}.png"
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": number, "height": height, "width": width, "file_name": name})
        classes = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        content = {"images": images, "categories": classes, "annotations": annotations()}
        file = root / "coco" / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def write_ade20k(root):
    """Two training images and one to test; labels 0 to 150."""
    draw = np.random.default_rng(1)
    for split, count in (("training", 2), ("validation", 1)):
        for number in range(count):
            size = (40 + number, 50)
            for kind, suffix in (("images", "jpg"), ("annotations", "png")):
                shape = size + (3,) * (kind == "images")
                most = 256 if kind == "images" else 151
                path = root / "ade20k" / kind / split / f"ADE_{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, most, shape, dtype=np.uint8)).save(path)
