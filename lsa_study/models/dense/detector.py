"""Mask R-CNN and Cascade Mask R-CNN around a Swin of any operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lsa_study.models.dense.boxes import BOX_SIDE, Rule, Sizes, Stage, Targets, best
from lsa_study.models.dense.features import detection_features
from lsa_study.models.dense.heads import Heads
from lsa_study.models.dense.masks import paste
from lsa_study.models.dense.proposals import WHOLE, Proposals, need_finite
from lsa_study.models.dense.pyramid import Pyramid

RULES = {
    "mask_rcnn": (Rule(),),
    "cascade_mask_rcnn": (
        Rule(0.5, (0.1, 0.2), 1.0),
        Rule(0.6, (0.05, 0.1), 0.5),
        Rule(0.7, (0.033, 0.067), 0.25),
    ),
}
"""The stages that judge boxes, one after the other."""
COUNTED_BOXES, COUNTED_MASKS = 1000, 100
"""Of an image, where costs are counted."""


class Detector(nn.Module):
    """Boxes, classes and masks of objects: He et al. (2017), or the cascade of Cai et al. (2019).

    Args:
        backbone: what ``detection_backbone`` returned.
        num_classes: of objects; their labels begin at 1.
    """

    def __init__(self, backbone: Any, heads: Heads, num_classes: int) -> None:
        super().__init__()
        cascade = heads.framework == "cascade_mask_rcnn"
        self.backbone = backbone
        stages = [info["num_chs"] for info in backbone.feature_info]
        self.pyramid = Pyramid(stages, heads.width, heads.upsample)
        proposals = heads.proposals or (2000 if cascade else 1000)
        self.proposals: Any = Proposals(heads, proposals=proposals, beta=1 / 9 if cascade else 0.0)
        self.stages: Any = nn.ModuleList(
            Stage(heads, num_classes, rule, cascade=cascade) for rule in RULES[heads.framework]
        )

    def loss(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Weighted losses by name, of a network in training; their sum is to be made small.

        Args:
            images: (3, H, W) each, normalised; sizes may differ.
            targets: of each image ``boxes`` (N, 4) as x1 y1 x2 y2 in pixels, ``labels`` (N,) int64
                from 1, ``masks`` (N, H, W) of zeros and ones. N may be 0.

        Raises:
            ValueError: a box has no area, or the network is not in training.
        """
        if not self.training:
            raise ValueError("loss: the network is in evaluation; call train() first")
        for index, target in enumerate(targets):
            if (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any():
                name = target.get("image_id", f"number {index}")
                raise ValueError(f"boxes of image {name}: one has no area; leave it out")
        levels, boxes, losses, sizes = self._proposed(images, targets)
        named = {"rpn_class": losses["loss_objectness"], "rpn_box": losses["loss_rpn_box_reg"]}
        for number, stage in enumerate(self.stages):
            found, boxes = stage.losses(levels, boxes, targets, sizes)
            named |= {f"{name}{number + 1}": loss for name, loss in found.items()}
        return named

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What is found in each image, the surest first, at most 100 objects.

        Args:
            images: (3, H, W) each, normalised; sizes may differ.

        Returns:
            for each image ``boxes`` (N, 4) as x1 y1 x2 y2 inside the image, ``scores`` (N,) above
            0.05, ``labels`` (N,) from 1, ``masks`` (N, H, W) bool.

        Raises:
            ValueError: the network is in training.
            FloatingPointError: what it computes is not finite.
        """
        if self.training:
            raise ValueError("predict: the network is in training; call eval() first")
        levels, boxes, _, sizes = self._proposed(images, None)
        first, *others = self.stages
        logits, shifts = first.judged(levels, boxes)
        every, last = [logits], first
        for stage in others:
            boxes = last.moved(boxes, shifts, best(every[-1]), sizes)
            logits, shifts = stage.judged(levels, boxes)
            every, last = [*every, logits], stage
        mean = torch.stack(every).mean(0)
        boxes, scores, labels = last.postprocess_detections(mean, shifts, boxes, sizes)
        classes = torch.cat(labels)
        rows = torch.arange(len(classes), device=classes.device)
        masks = [stage.masked(levels, boxes)[rows, classes].sigmoid() for stage in self.stages]
        need_finite(mean, shifts, *masks)
        parts = torch.split(torch.stack(masks).mean(0), [len(one) for one in boxes])
        return [
            {"boxes": box, "scores": score, "labels": label, "masks": paste(mask, box, size)}
            for box, score, label, mask, size in zip(
                boxes, scores, labels, parts, sizes, strict=True
            )
        ]

    def forward(self, images: Tensor) -> None:
        """Compute what costs are counted of: 1000 boxes and 100 masks of an image, whatever it is.

        Args:
            images: (B, 3, H, W).
        """
        levels = self.pyramid(detection_features(self.backbone, images))
        self.proposals.head(levels)
        channels = levels[0].shape[1]
        for stage in self.stages:
            cells = levels[0].new_zeros((len(images) * COUNTED_BOXES, channels, BOX_SIDE, BOX_SIDE))
            stage.box_predictor(stage.box_head(cells))
            side = stage.mask_roi_pool.side
            cells = levels[0].new_zeros((len(images) * COUNTED_MASKS, channels, side, side))
            stage.mask_predictor(stage.mask_head(cells))

    def _proposed(
        self, images: Sequence[Tensor], targets: Targets | None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], Sizes]:
        batch = together(images, WHOLE)
        sizes = [(one.shape[1], one.shape[2]) for one in images]
        levels = self.pyramid(detection_features(self.backbone, batch))
        named = {str(index): level for index, level in enumerate(levels)}
        boxes, losses = self.proposals(ImageList(batch, sizes), named, targets)
        return levels, boxes, losses, sizes


def together(images: Sequence[Tensor], whole: int = 1, fill: int = 0) -> Tensor:
    """Images, or maps of labels, as one batch, padded at the bottom and right.

    Args:
        images: (..., H, W) each, of one kind.
        whole: the batch's sides are multiples of it.
        fill: what is padded with.
    """
    height, width = (
        -(-max(one.shape[axis] for one in images) // whole) * whole for axis in (-2, -1)
    )
    batch = images[0].new_full((len(images), *images[0].shape[:-2], height, width), fill)
    for place, one in zip(batch, images, strict=True):
        place[..., : one.shape[-2], : one.shape[-1]] = one
    return batch
