"""The article's operators: modules that map (B, H, W, C) to (B, H, W, C)."""

from lsa_study.ops.dwconv import DwConv
from lsa_study.ops.elsa import ELSA
from lsa_study.ops.unified import UnifiedSpatialOp

__all__ = ["ELSA", "DwConv", "UnifiedSpatialOp"]
