"""Backbones that receive an operator, by settings or by name; importing it tells timm the names."""

from lsa_study.models.dense import build_detector, detection_features
from lsa_study.models.pretrained import load_official, read_checkpoint
from lsa_study.models.registry import MODELS, TIMM_MODELS, build_model, from_settings
from lsa_study.models.stem import ConvStem

__all__ = [
    "MODELS",
    "TIMM_MODELS",
    "ConvStem",
    "build_detector",
    "build_model",
    "detection_features",
    "from_settings",
    "load_official",
    "read_checkpoint",
]
