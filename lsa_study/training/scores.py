"""How well objects are detected and pixels labelled: average precision by pycocotools, mean IoU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsa_study.data.dense.sets import TestImage
from lsa_study.data.dense.targets import IGNORED, Split, Target, coco_masks, encoded

Found = dict[str, Any]
"""An object as COCO's files of results have it: ``image_id``, ``category_id`` (here the label, from
1), ``bbox`` (left, top, width, height), ``score`` and ``segmentation``, a run-length code."""

KINDS = {"box": "bbox", "mask": "segm"}
"""By what objects are compared, and its name in pycocotools."""
AT_ONCE = 32
"""So many masks are resized and encoded at once."""


class Truth:
    """What is to be detected in a test set, as pycocotools wants it.

    Raises:
        EnvironmentLacks: pycocotools is not installed.
    """

    def __init__(self, split: Split) -> None:
        coco_masks()  # says what to install
        from pycocotools.coco import COCO

        images = [split.image(index) for index in range(len(split))]
        rows = [row for index in range(len(split)) for row in split.annotations(index)]
        names = enumerate(split.names, start=1)
        self._coco = COCO()
        self._coco.dataset = {
            "info": {},
            "images": images,
            "categories": [{"id": number, "name": name} for number, name in names],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco.createIndex()

    def average_precision(self, found: list[Found]) -> dict[str, float]:
        """Percent, over all classes: ``box_ap``, ``box_ap50``, ``box_ap75``, the same of ``mask``.

        As ``COCOeval`` has them: over IoU .5 to .95, 100 objects of an image at most. Not a number
        where there is nothing to detect.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        scores = {}
        for kind, name in KINDS.items():
            # By masks, the area of an object is its mask's, which pycocotools takes without a box.
            dropped = "bbox" if kind == "mask" else "segmentation"
            rows = [{k: v for k, v in one.items() if k != dropped} for one in found]
            with contextlib.redirect_stdout(io.StringIO()):
                if rows:
                    results = self._coco.loadRes(rows)
                else:  # of which loadRes makes nothing
                    results = COCO()
                    results.dataset = {**self._coco.dataset, "annotations": []}
                    results.createIndex()
                judge = COCOeval(self._coco, results, name)
                judge.evaluate()
                judge.accumulate()
                judge.summarize()
            for suffix, value in zip(("ap", "ap50", "ap75"), judge.stats, strict=False):
                scores[f"{kind}_{suffix}"] = 100 * float(value) if value >= 0 else float("nan")
        return scores


def found_in(test: TestImage, answer: Target, scale: tuple[float, float]) -> list[Found]:
    """Objects detected in a view of a test image, in the image's own size.

    Args:
        answer: ``boxes`` (N, 4), left, top, right and bottom in pixels of the view, ``scores``,
            ``labels`` from 1, and ``masks`` (N, h, w) bool of the view's size.
        scale: of the view; see ``sets.View``.
    """
    height, width = test.size
    boxes = answer["boxes"].detach().cpu().double()
    boxes = boxes / boxes.new_tensor([scale[1], scale[0], scale[1], scale[0]])
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    boxes[:, 2:] -= boxes[:, :2]
    codes: list[dict[str, Any]] = []
    for masks in answer["masks"].split(AT_ONCE) if len(boxes) else ():
        if masks.shape[1:] != test.size:
            resized = F.interpolate(masks[None].to(torch.float32), test.size, mode="bilinear")
            masks = resized[0] >= 0.5
        codes += encoded(masks.to("cpu", torch.uint8))
    return [
        {"image_id": test.target["image_id"], "category_id": label, "bbox": box, "score": score,
         "segmentation": code | {"counts": code["counts"].decode("ascii")}}
        for label, box, score, code in zip(
            answer["labels"].tolist(), boxes.tolist(), answer["scores"].tolist(), codes,
            strict=True,
        )
    ]  # fmt: skip


def label_map(test: TestImage, network: Callable[[Tensor], Tensor]) -> Tensor:
    """The label of every pixel of a test image, by its views' mean shares of the classes.

    One view is held at a time.

    Args:
        network: from an image (3, h, w), normalised, to logits (classes, any size).

    Returns:
        (H, W) int64, on the network's device.
    """
    shares: Tensor | None = None
    for view in test.views():
        logits = network(view.image).to(torch.float32)
        logits = logits.flip(-1) if view.flipped else logits
        sized = F.interpolate(logits[None], test.size, mode="bilinear")[0]
        shares = sized.softmax(0) if shares is None else shares.add_(sized.softmax(0))
    if shares is None:
        raise ValueError("a test image without views; give a scale at least")
    return shares.argmax(0)


def overlaps(answer: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixels (2, classes) in which answer and labels (H, W) agree on a class, or one names it.

    Pixels whose label is ``IGNORED`` count nowhere.
    """
    counted = labels != IGNORED
    answer, labels = answer[counted], labels[counted]
    agreed, answered, labelled = (
        torch.bincount(of, minlength=num_classes)
        for of in (labels[answer == labels], answer, labels)
    )
    return torch.stack([agreed, answered + labelled - agreed])


def mean_iou(overlap: Tensor) -> Tensor:
    """Percent: the mean over classes of agreeing by named pixels; classes that none names left out.

    Args:
        overlap: (..., 2, classes), summed over images; see ``overlaps``. Of images chosen again
            and again the sums are another test set's, so that an interval can be had from them.

    Returns:
        (...), float64; not a number where no pixel counts.
    """
    agreed, named = overlap.double().unbind(-2)
    return 100 * (agreed / named).nanmean(-1)


def pixel_accuracy(overlap: Tensor) -> Tensor:
    """Percent of the pixels that are labelled rightly; arguments and result as of ``mean_iou``."""
    agreed, named = overlap.double().sum(-1).unbind(-1)
    # Each pixel is named once where right and twice where wrong.
    return 100 * agreed / ((agreed + named) / 2)
