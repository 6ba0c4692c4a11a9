"""The article's operators: modules that map (B, H, W, C) to (B, H, W, C)."""

from lsa_study.ops.conv import Conv
from lsa_study.ops.ddf import DDF
from lsa_study.ops.ddf_up import DDFUp
from lsa_study.ops.dwconv import DepthwiseConv, DwConv, DwNetShell, DynamicDwConv, LinearShell
from lsa_study.ops.elsa import ELSA
from lsa_study.ops.involution import Involution
from lsa_study.ops.outlook import OutlookAttention
from lsa_study.ops.unified import UnifiedSpatialOp

__all__ = [
    "DDF",
    "ELSA",
    "Conv",
    "DDFUp",
    "DepthwiseConv",
    "DwConv",
    "DwNetShell",
    "DynamicDwConv",
    "Involution",
    "LinearShell",
    "OutlookAttention",
    "UnifiedSpatialOp",
]
