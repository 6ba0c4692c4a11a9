"""UperNet around a Swin of any operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.errors import EnvironmentLacks
from lsa_study.models.dense.boxes import Targets
from lsa_study.models.dense.detector import together
from lsa_study.models.dense.features import detection_features
from lsa_study.models.dense.heads import Heads
from lsa_study.models.dense.proposals import need_finite

IGNORED = 255
"""The label of pixels that are not judged."""
AUXILIARY = 0.4
"""Weight of the auxiliary head's loss."""


class AuxiliaryHead(nn.Sequential):
    """Judge pixels by the third stage alone, in training: FCN with one 3 x 3 convolution."""

    training_only = True
    """Costs are counted without it."""

    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )


class Segmenter(nn.Module):
    """A class for every pixel: UperNet, Xiao et al. (2018), with an auxiliary head.

    Args:
        backbone: what ``detection_backbone`` returned.
        num_classes: their labels begin at 0.

    Raises:
        EnvironmentLacks: segmentation-models-pytorch is not installed, whose decoder this takes.
    """

    def __init__(self, backbone: Any, heads: Heads, num_classes: int) -> None:
        super().__init__()
        stages = [info["num_chs"] for info in backbone.feature_info]
        self.backbone = backbone
        self.decoder = _decoder(stages, heads.width)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(heads.width, num_classes, 1)
        self.auxiliary: Any = AuxiliaryHead(stages[2], heads.width // 2, num_classes)
        for head in (self.decoder, self.auxiliary):
            for part in head.modules():
                if isinstance(part, nn.Conv2d):
                    nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        last: Any
        for last in (self.classifier, self.auxiliary[-1]):
            nn.init.normal_(last.weight, std=heads.first_std)
            nn.init.zeros_(last.bias)

    def loss(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Cross-entropy of both heads, over all pixels, of which the ignored ones give nothing.

        Args:
            images: (3, H, W) each, normalised; sizes may differ.
            targets: of each image ``labels`` (H, W) int64 from 0, 255 where a pixel is ignored.

        Raises:
            ValueError: the network is not in training.
        """
        if not self.training:
            raise ValueError("loss: the network is in evaluation; call train() first")
        labels = together([target["labels"] for target in targets], fill=IGNORED)
        maps = detection_features(self.backbone, together(images))
        return {
            "class": _judged(self._head(maps), labels),
            "auxiliary": AUXILIARY * _judged(self.auxiliary(maps[2]), labels),
        }

    @torch.no_grad()
    def logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Logits (classes, H, W) of each image, whose sizes may differ.

        Raises:
            ValueError: the network is in training.
            FloatingPointError: one is not finite.
        """
        if self.training:
            raise ValueError("predict: the network is in training; call eval() first")
        batch = together(images)
        every = _enlarged(self._head(detection_features(self.backbone, batch)), batch)
        need_finite(every)
        return [one[:, : im.shape[1], : im.shape[2]] for one, im in zip(every, images, strict=True)]

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The likeliest class of every pixel: for each image ``labels`` (H, W) int64."""
        return [{"labels": one.argmax(0)} for one in self.logits(images)]

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, classes, ceil(H/4), ceil(W/4))."""
        return self._head(detection_features(self.backbone, images))

    def _head(self, maps: list[Tensor]) -> Tensor:
        # The decoder skips two maps that an encoder of its own package would give first.
        seen = self.decoder([maps[0], maps[0], *maps])
        logits: Tensor = self.classifier(self.dropout(seen))
        return logits


def _decoder(stages: Sequence[int], channels: int) -> nn.Module:
    try:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ImportError as error:
        raise EnvironmentLacks(
            f"task.framework: upernet needs the package segmentation-models-pytorch ({error}); "
            "install it: pip install 'lsa_study[detection]'",
            cause="import",
        ) from None
    decoder: nn.Module = UPerNetDecoder(
        encoder_channels=[1, 1, *stages], encoder_depth=len(stages) + 1, decoder_channels=channels
    )
    # The backbone has a norm for each map already.
    decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in stages)
    return decoder


def _enlarged(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=False)


def _judged(logits: Tensor, labels: Tensor) -> Tensor:
    every = F.cross_entropy(
        _enlarged(logits, labels), labels, ignore_index=IGNORED, reduction="sum"
    )
    return every / labels.numel()
