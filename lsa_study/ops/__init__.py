"""The article's operators: modules that map (B, H, W, C) to (B, H, W, C)."""

from typing import TYPE_CHECKING, Any

from lsa_study.ops.conv import Conv
from lsa_study.ops.ddf import DDF
from lsa_study.ops.ddf_up import DDFUp
from lsa_study.ops.dwconv import DepthwiseConv, DwConv, DwNetShell, DynamicDwConv, LinearShell
from lsa_study.ops.elsa import ELSA
from lsa_study.ops.involution import Involution
from lsa_study.ops.unified import UnifiedSpatialOp

if TYPE_CHECKING:
    from lsa_study.ops.outlook import OutlookAttention

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


def __getattr__(name: str) -> Any:
    # The one operator that is timm's. Importing timm registers the study's networks, which read
    # this package: it has to be complete by then.
    if name == "OutlookAttention":
        from lsa_study.ops.outlook import OutlookAttention

        return OutlookAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
