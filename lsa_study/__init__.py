"""What limits local self-attention? An ablation harness, from YAML to tables."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_results`` and ``curves``, see ``analysis.frame``; pandas is imported when asked."""
    if name in ("load_results", "curves"):
        return getattr(importlib.import_module("lsa_study.analysis.frame"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Lets timm know the study's networks as soon as timm is imported; never imports it itself.

    So ``timm.create_model("elsa_swin_tiny")`` works after ``import lsa_study``, whichever is
    imported first, while planning and reporting stay free of torch.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader)
        return spec


class _TimmLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register()


def _register() -> None:
    # By name: an import statement would tie the reporting side to the models for import-linter.
    importlib.import_module("lsa_study.models")


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _TimmFinder())
