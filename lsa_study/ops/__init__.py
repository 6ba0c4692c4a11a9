"""The article's operators: modules that map (B, H, W, C) to (B, H, W, C).

Each is imported when it is first asked for: ``ops.vocabulary`` must not need torch, and importing
timm, which has OutlookAttention, registers the study's networks, which read this package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsa_study.ops.ddf import DDF
    from lsa_study.ops.dwconv import DepthwiseConv, DwConv, DwNetShell, DynamicDwConv
    from lsa_study.ops.elsa import ELSA
    from lsa_study.ops.involution import Involution
    from lsa_study.ops.outlook import OutlookAttention
    from lsa_study.ops.unified import UnifiedSpatialOp

__all__ = [
    "DDF",
    "ELSA",
    "DepthwiseConv",
    "DwConv",
    "DwNetShell",
    "DynamicDwConv",
    "Involution",
    "OutlookAttention",
    "UnifiedSpatialOp",
]
_MODULES = {
    "DepthwiseConv": "dwconv", "DwNetShell": "dwconv", "DynamicDwConv": "dwconv",
    "OutlookAttention": "outlook", "UnifiedSpatialOp": "unified",
}  # fmt: skip
"""Where they are, unless in a module of their own name."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"lsa_study.ops.{_MODULES.get(name, name.lower())}")
    return getattr(module, name)
