"""Boxes that may hold an object: torchvision's region proposals, as mmdet sets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from lsa_study.models.dense.heads import Heads
from lsa_study.ops.precision import wide

STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image between two of each level of the pyramid."""
RATIOS = (0.5, 1.0, 2.0)
"""Height against width."""
WHOLE = 32
"""Images are padded to multiples of so many pixels."""
LOW, HIGH = 0.3, 0.7
"""Anchors below LOW of IoU show background, from HIGH on an object; between, nothing is learnt."""


class Anchors(nn.Module):
    """Boxes of three ratios around every pixel of every level.

    Not torchvision's: those have whole sides, take the stride from the sizes of maps, which is
    wrong where a side is odd, and are in half precision where the maps are.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Any, levels: Sequence[Tensor]) -> list[Tensor]:
        """The same (anchors, 4) for every image, level by level, pixel by pixel."""
        every = []
        for level, stride in zip(levels, STRIDES, strict=True):
            like = {"device": level.device, "dtype": wide(level[:0]).dtype}
            tall = torch.tensor(RATIOS, **like).sqrt()
            half = self.scale * stride / 2 * torch.stack([1 / tall, tall], 1)
            rows, columns = (stride * torch.arange(side, **like) for side in level.shape[2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centers = torch.stack([x, y], -1).reshape(-1, 1, 2)
            every.append(torch.cat([centers - half, centers + half], -1).reshape(-1, 4))
        return [torch.cat(every)] * len(images.image_sizes)


class ProposalHead(RPNHead):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's, whose answers are in float32 at least: coordinates need it."""

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels (B, C, H, W) to logits (B, 3, H, W) and shifts of anchors (B, 12, H, W)."""
        logits, shifts = super().forward(levels)
        return [wide(one) for one in logits], [wide(one) for one in shifts]


class BestOfObject(Matcher):  # type: ignore[misc]
    """Which object an anchor is to find, where the best anchor of each object is to find that one.

    As mmdet's, of several objects the last, if the anchor overlaps it by LOW at least. With
    torchvision's, an object's best anchor finds what it overlaps most itself, however little.
    """

    def set_low_quality_matches_(
        self, matches: Tensor, of_anchor: Tensor, overlaps: Tensor
    ) -> None:
        """Change ``matches`` (anchors,) by the IoU (objects, anchors)."""
        highest = overlaps.amax(1, keepdim=True)
        objects, anchors = torch.where((overlaps == highest) & (highest >= self.low_threshold))
        best = torch.full_like(matches, -1).scatter_reduce(0, anchors, objects, "amax")
        matches.copy_(torch.where(best >= 0, best, matches))


class Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """Region proposals with mmdet's numbers: 256 anchors, 0.7 and 0.3, suppression at 0.7.

    Args:
        beta: below it the loss of boxes is quadratic; 0: nowhere.
    """

    def __init__(self, heads: Heads, *, proposals: int, beta: float) -> None:
        most, tested = min(2000, 2 * proposals), min(1000, proposals)
        super().__init__(
            Anchors(heads.anchor_scale),
            ProposalHead(heads.width, len(RATIOS)),
            fg_iou_thresh=HIGH,
            bg_iou_thresh=LOW,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": most, "testing": tested},
            post_nms_top_n={"training": proposals, "testing": tested},
            nms_thresh=0.7,
        )
        self.beta = beta
        self.proposal_matcher = BestOfObject(HIGH, LOW, allow_low_quality_matches=True)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (anchors,) and objects' boxes (anchors, 4) of each image.

        Labels are 1 for an object, 0 for background and -1 for what is not to be learnt from, which
        as in mmdet are also anchors around what pads an image to the size of its batch.
        """
        every = []
        for boxes, target in zip(anchors, targets, strict=True):
            height, width = (-(-side // WHOLE) * WHOLE for side in target["masks"].shape[-2:])
            centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).round()  # whole numbers, until rounded
            (inside,) = torch.where((centers < centers.new_tensor([width, height])).all(1))
            (label,), (object_box,) = super().assign_targets_to_anchors([boxes[inside]], [target])
            labels, wanted = label.new_full((len(boxes),), -1), torch.zeros_like(boxes)
            labels[inside], wanted[inside] = label, object_box.to(wanted)
            every.append((labels, wanted))
        return [labels for labels, _ in every], [wanted for _, wanted in every]

    def filter_proposals(
        self, proposals: Tensor, objectness: Tensor, *others: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's; see ``need_finite``."""
        if not self.training:
            need_finite(proposals, objectness)
        kept: tuple[list[Tensor], list[Tensor]] = super().filter_proposals(
            proposals, objectness, *others
        )
        return kept

    def compute_loss(
        self, objectness: Tensor, shifts: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and box loss of sampled anchors, both over the number of all sampled."""
        positive, negative = (torch.cat(one) > 0 for one in self.fg_bg_sampler(labels))
        sampled = positive | negative
        judged = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled]
        )
        boxes = F.smooth_l1_loss(
            shifts[positive], torch.cat(targets)[positive], beta=self.beta, reduction="sum"
        )
        return judged, boxes / sampled.sum()


def need_finite(*answers: Tensor) -> None:
    """Refuse what weights that have diverged say of a test image.

    Suppression drops boxes and scores that are no numbers; nothing found would count as AP 0.

    Raises:
        FloatingPointError: a number is not finite.
    """
    if not torch.stack([one.isfinite().all() for one in answers]).all():
        raise FloatingPointError("what the network finds is not finite")
