"""Detectors and segmenters around a Swin of any operator.

All have one protocol: ``loss(images, targets)`` in training, ``predict(images)`` in evaluation.
"""

from __future__ import annotations

from typing import get_args

from lsa_study.config.names import nearest
from lsa_study.config.settings import Model
from lsa_study.errors import ConfigError
from lsa_study.models import registry
from lsa_study.models.dense.detector import Detector
from lsa_study.models.dense.features import begin_from, detection_backbone, detection_features
from lsa_study.models.dense.heads import Framework, Heads
from lsa_study.models.dense.segmenter import Segmenter

__all__ = [
    "Detector",
    "Heads",
    "Segmenter",
    "begin_from",
    "build",
    "build_detector",
    "detection_backbone",
    "detection_features",
]

BUILT_FOR = 224
"""Images that a backbone is built for; it takes all sizes, with the windows of this one."""
FRAMEWORKS = get_args(Framework)
CLASSES = {"detect": 80, "segment": 150}
"""Of COCO and of ADE20K."""


def build(heads: Heads, model: Model, num_classes: int) -> Detector | Segmenter:
    """Build a detector or segmenter.

    Args:
        heads: what stands around the backbone.
        model: the backbone, as a run's settings ask for it.
        num_classes: of objects, or of pixels.

    Raises:
        ConfigError: the backbone is no Swin of four stages, or cannot hold its operator; a
            segmenter is asked to upsample as a detector.
        EnvironmentLacks: a segmenter is asked for and its package is not installed.
    """
    if heads.kind == "segment" and heads.upsample != "nearest":
        raise ConfigError(
            f"task.upsample={heads.upsample!r}: {heads.framework} has no such pyramid; give nearest"
        )
    network = registry.from_settings(model, image_size=BUILT_FOR, num_classes=0)
    try:
        backbone = detection_backbone(network)
    except ValueError as error:
        raise ConfigError(
            f"model.backbone={model.backbone!r}: {error}, such as swin_tiny"
        ) from None
    kind = Segmenter if heads.kind == "segment" else Detector
    return kind(backbone, heads, num_classes)


def build_detector(framework: Framework, backbone: str) -> Detector | Segmenter:
    """Build a network of Table 9 or 10 by name, for COCO's or ADE20K's classes.

    Args:
        framework: mask_rcnn, cascade_mask_rcnn or upernet.
        backbone: one of ``MODELS`` that is a Swin, such as elsa_swin_tiny.

    Raises:
        ConfigError: there is no such framework or network, or it is no Swin.
        EnvironmentLacks: as for ``build``.
    """
    for name, known in ((framework, FRAMEWORKS), (backbone, registry.MODELS)):
        if name not in known:
            raise ConfigError(f"detector: {name!r} is unknown; {nearest(name, list(known))}")
    heads = Heads(framework)
    return build(heads, registry.MODELS[backbone], CLASSES[heads.kind])
