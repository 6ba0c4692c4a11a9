"""What is in a proposed box: its class, a better box, and the mask in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import faster_rcnn, mask_rcnn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss, roi_align

from lsa_study.models.dense.heads import Heads
from lsa_study.models.dense.masks import mask_targets
from lsa_study.models.dense.proposals import STRIDES
from lsa_study.ops.precision import wide

BOX_SIDE = 7
"""Cells of a box that its head sees."""
FINEST = 56
"""Boxes with sides below twice this are cut out of the first level."""

Boxes = list[Tensor]
"""(R, 4) for every image, x1 y1 x2 y2."""
Targets = list[dict[str, Any]]
Sizes = list[tuple[int, int]]


@dataclass(frozen=True)
class Rule:
    """How the boxes of one stage are judged in training."""

    overlap: float = 0.5
    """From which IoU with an object a box counts as the object's."""
    spread: tuple[float, float] = (0.1, 0.2)
    """Standard deviations of shifts of a box, and of the logarithms of its sides."""
    weight: float = 1.0
    """Of the losses."""


class RoiPool(nn.Module):
    """Cut boxes out of the levels of a pyramid, each out of the level of its size.

    Not torchvision's: that one aligns boxes half a pixel off, samples two points a cell whatever
    its size, and takes the strides from the first images it sees.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, levels: list[Tensor], boxes: Boxes, sizes: object = None) -> Tensor:
        """Map levels (B, C, H, W) and R boxes in all to (R, C, side, side)."""
        every = torch.cat(boxes)
        owners = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        regions = torch.cat([owners, every], 1)
        sides = (every[:, 2:] - every[:, :2]).clamp(min=0).prod(1).sqrt()
        found = torch.log2(sides / FINEST + 1e-6).floor().clamp(0, len(STRIDES) - 2)
        shape = (len(every), levels[0].shape[1], self.side, self.side)
        cut: Tensor = wide(levels[0]).new_zeros(shape)
        for index, (level, stride) in enumerate(zip(levels, STRIDES[:-1], strict=False)):
            (here,) = torch.where(found == index)
            cut[here] = roi_align(
                wide(level), regions[here].to(cut), self.side, 1 / stride, aligned=True
            )
        return cut


class Stage(RoIHeads):  # type: ignore[misc]  # torchvision ships no types
    """Judge boxes once: torchvision's heads and samples, mmdet's losses and first weights.

    Args:
        num_classes: of objects; there is one more, the background, which comes first.
        cascade: convolutions with batch norm before one fully connected layer, and a loss on boxes
            (generalised IoU); else two such layers, and a loss on shifts (L1).
    """

    def __init__(self, heads: Heads, num_classes: int, rule: Rule, *, cascade: bool) -> None:
        width, classes, pooled = heads.width, num_classes + 1, heads.mask_size // 2
        head: nn.Module = faster_rcnn.TwoMLPHead(width * BOX_SIDE**2, heads.box_width)
        if cascade:
            head = faster_rcnn.FastRCNNConvFCHead(
                (width, BOX_SIDE, BOX_SIDE),
                [width] * heads.convs,
                [heads.box_width],
                nn.BatchNorm2d,
            )
        shift, side = rule.spread
        super().__init__(
            RoiPool(BOX_SIDE),
            head,
            faster_rcnn.FastRCNNPredictor(heads.box_width, classes),
            fg_iou_thresh=rule.overlap,
            bg_iou_thresh=rule.overlap,
            batch_size_per_image=heads.rois,
            positive_fraction=0.25,
            bbox_reg_weights=(1 / shift, 1 / shift, 1 / side, 1 / side),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=RoiPool(pooled),
            mask_head=mask_rcnn.MaskRCNNHeads(width, [width] * heads.convs, 1),
            mask_predictor=mask_rcnn.MaskRCNNPredictor(width, width, classes),
        )
        self.rule, self.cascade = rule, cascade
        self._draw_weights()

    def _draw_weights(self) -> None:
        for part in self.box_head.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        nn.init.normal_(self.box_predictor.cls_score.weight, std=0.01)
        nn.init.normal_(self.box_predictor.bbox_pred.weight, std=0.001)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def judged(self, levels: list[Tensor], boxes: Boxes) -> tuple[Tensor, Tensor]:
        """Logits (R, classes) and shifts (R, 4 classes) of R boxes in all."""
        logits, shifts = self.box_predictor(self.box_head(self.box_roi_pool(levels, boxes)))
        return wide(logits), wide(shifts)

    def masked(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """Logits (R, classes, side, side) of masks."""
        cut = self.mask_roi_pool(levels, boxes)
        logits: Tensor = wide(self.mask_predictor(self.mask_head(cut)))
        return logits

    def losses(
        self, levels: list[Tensor], boxes: Boxes, targets: Targets, sizes: Sizes
    ) -> tuple[dict[str, Tensor], Boxes]:
        """Losses of boxes sampled from those proposed, and what is proposed to a next stage."""
        boxes, owners, labels, shifts = self.select_training_samples(boxes, targets)
        objects = [
            _of(target["boxes"], owner) for target, owner in zip(targets, owners, strict=True)
        ]
        logits, predicted = self.judged(levels, boxes)
        every, classes, owned = torch.cat(boxes), torch.cat(labels), torch.cat(objects).to(logits)
        known, most = classes > 0, max(1, len(classes))
        chosen = torch.unflatten(predicted, 1, (-1, 4))[known, classes[known]]
        if self.cascade:
            better = self.box_coder.decode_single(chosen, every[known])
            moved = 10 * generalized_box_iou_loss(better, owned[known], reduction="sum")
        else:
            moved = F.l1_loss(chosen, torch.cat(shifts)[known], reduction="sum")
        losses = {
            "class": F.cross_entropy(logits, classes, reduction="sum") / most,
            "box": moved / most,
            "mask": self._mask_loss(levels, boxes, targets, owners, labels),
        }
        next_boxes = self.moved(boxes, predicted, torch.where(known, classes, best(logits)), sizes)
        # Objects themselves were among the boxes; the next stage adds its own.
        fresh = ~(known & (every == owned).all(1))
        parts = torch.split(fresh, [len(one) for one in boxes])
        kept = [one[keep] for one, keep in zip(next_boxes, parts, strict=True)]
        return {name: self.rule.weight * loss for name, loss in losses.items()}, kept

    def _mask_loss(
        self, levels: list[Tensor], boxes: Boxes, targets: Targets, owners: Boxes, labels: Boxes
    ) -> Tensor:
        inside = [box[label > 0] for box, label in zip(boxes, labels, strict=True)]
        classes = torch.cat([label[label > 0] for label in labels])
        logits = self.masked(levels, inside)
        if not len(classes):
            return logits.sum() * 0  # so that every parameter has a gradient
        wanted = [
            mask_targets(target["masks"], box, owner[label > 0], logits.shape[-1])
            for target, box, owner, label in zip(targets, inside, owners, labels, strict=True)
            if len(box)
        ]
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted).to(chosen))

    def moved(self, boxes: Boxes, shifts: Tensor, classes: Tensor, sizes: Sizes) -> Boxes:
        """Boxes shifted as their class says, inside their images; no gradient goes through them."""
        rows = torch.arange(len(classes), device=classes.device)
        chosen = torch.unflatten(shifts.detach(), 1, (-1, 4))[rows, classes]
        better = self.box_coder.decode_single(chosen, torch.cat(boxes))
        parts = torch.split(better, [len(one) for one in boxes])
        return [clip_boxes_to_image(one, size) for one, size in zip(parts, sizes, strict=True)]


def best(logits: Tensor) -> Tensor:
    """The likeliest class of each box, the background left out."""
    return logits[:, 1:].argmax(1) + 1


def _of(objects: Tensor, owners: Tensor) -> Tensor:
    return objects[owners] if len(objects) else objects.new_zeros((len(owners), 4))
