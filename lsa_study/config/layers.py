"""Compose settings from layers (tier, experiment, variant, command line) and name who set what.

A layer replaces what stands at its dotted path; it never merges into it, so ``model.op: {...}``
is the whole operator and leaves nothing of an earlier one behind.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lsa_study.config import yaml
from lsa_study.config.operators import (
    DdfOp,
    DwConvOp,
    DwNetOp,
    DynamicDwConvOp,
    ElsaOp,
    OutlookOp,
    UnifiedOp,
)
from lsa_study.config.settings import Settings
from lsa_study.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Keys = tuple[str, ...]

OP_KINDS: dict[str, type[BaseModel]] = {
    "unified": UnifiedOp,
    "elsa": ElsaOp,
    "dwconv": DwConvOp,
    "dwnet": DwNetOp,
    "ddwconv": DynamicDwConvOp,
    "ddf": DdfOp,
    "outlook": OutlookOp,
}


@dataclass
class Layers:
    """Nested settings, and for every key the place (``file:line``) that set it."""

    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[Keys, str] = field(default_factory=dict)

    def copy(self) -> Layers:
        """Return layers that can grow without touching these."""
        return Layers(copy.deepcopy(self.data), dict(self.origin))

    def set(self, path: str, value: Any, where: str) -> None:
        """Put ``value`` at the dotted ``path``, replacing what stands there."""
        *parents, last = keys = tuple(path.split("."))
        here = self.data
        for depth, key in enumerate(parents, start=1):
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                name = ".".join(keys[:depth])
                raise ConfigError(
                    f"{where}: {path}: {name} is a value, not a group; drop '.{last}'"
                )
        here[last] = copy.deepcopy(value)
        for old in [k for k in self.origin if k[: len(keys)] == keys]:
            del self.origin[old]
        self.origin[keys] = where

    def add(self, document: yaml.Document, settings: dict[str, Any], at: Keys = ()) -> None:
        """Add a mapping of dotted paths written in ``document`` under the keys ``at``."""
        for path, value in settings.items():
            self.set(path, value, document.where(*at, path))
            for keys in nested_keys(value):
                inner = (*path.split("."), *keys)
                self.origin[inner] = document.where(*at, path, *keys)

    def where(self, keys: Keys) -> str:
        """Name the place that set ``keys`` or the nearest group around it."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.origin:
                return self.origin[keys[:end]]
        inside = (place for known, place in self.origin.items() if known[: len(keys)] == keys)
        return next(inside, "settings")


def nested_keys(value: Any) -> Iterator[Keys]:
    """Walk the key paths of a nested mapping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (key,)
            yield from ((key, *rest) for rest in nested_keys(inner))


def settings(layers: Layers) -> Settings:
    """Validate layered settings.

    Raises:
        ConfigError: every mistake at once, each with the place that wrote it.
    """
    return validate(Settings, layers.data, layers.where)


def validate(kind: type[Model], data: dict[str, Any], where: Callable[[Keys], str]) -> Model:
    """Build ``kind`` from ``data``; name every mistake, ``where(keys)`` giving its place."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = (_mistake(kind, detail, where) for detail in error.errors())
        raise ConfigError(*dict.fromkeys(mistakes)) from None


def _mistake(kind: type[BaseModel], detail: ErrorDetails, where: Callable[[Keys], str]) -> str:
    # A discriminated union puts the chosen kind into the location; users never wrote it.
    loc = tuple(str(k) for k in detail["loc"])
    keys = (*loc[:2], *loc[3:]) if loc[:2] == ("model", "op") and loc[2:3] else loc
    name = ".".join(keys) or "settings"
    place = f"{where(keys)}: "
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return f"{place}{name} is not a setting{_nearest(kind, keys, detail)}"
    if detail["type"] == "missing":
        return f"{place}{name} is missing; it has no default"
    if detail["type"] == "value_error":
        return f"{place}{name}: {detail['ctx']['error']}"
    if detail["type"] == "union_tag_not_found":
        return f"{place}{name}.kind is missing; give one of {', '.join(OP_KINDS)}"
    if detail["type"] == "union_tag_invalid":
        tag = detail["ctx"]["tag"]
        return f"{place}{name}.kind = {tag!r} is no operator; known: {', '.join(OP_KINDS)}"
    if isinstance(value, str) and detail["type"] in ("float_type", "int_type"):
        return f"{place}{name} = {value!r} {_as_number(value)}"
    shown = "a group of settings" if isinstance(value, dict) else repr(value)
    message = detail["msg"].replace("Input should be ", "").replace("a valid ", "a ")
    return f"{place}{name} = {shown} will not do; it should be {message}"


def _as_number(text: str) -> str:
    try:
        float(text)
    except ValueError:
        return "is not a number; give one"
    return "was read as text: YAML wants a dot and a sign in exponents; write it like 1.0e-3"


def _nearest(kind: type[BaseModel], keys: Keys, detail: ErrorDetails) -> str:
    known = sorted(_fields(kind, tuple(str(k) for k in detail["loc"][:-1])))
    if close := difflib.get_close_matches(keys[-1], known, n=1):
        return f"; did you mean {'.'.join((*keys[:-1], close[0]))}?"
    everywhere = {path.split(".")[-1]: path for path in known_paths()}
    if kind is Settings and (close := difflib.get_close_matches(keys[-1], everywhere, n=1)):
        return f"; did you mean {everywhere[close[0]]}?"
    return f"; known here: {', '.join(known)}"


def _fields(kind: type[BaseModel], keys: Keys) -> set[str]:
    for key in keys:
        if key in OP_KINDS:
            kind = OP_KINDS[key]
        elif key in kind.model_fields:
            kind = _group(kind.model_fields[key]) or kind
    return set(kind.model_fields)


def _group(spec: FieldInfo) -> type[BaseModel] | None:
    """The settings inside a field, be it optional; None where it holds a value or an operator."""
    kinds = {k for k in (spec.annotation, *get_args(spec.annotation)) if isinstance(k, type)}
    groups = [k for k in kinds if issubclass(k, BaseModel)]
    return groups[0] if len(groups) == 1 else None


def known_paths() -> list[str]:
    """List every dotted path that can be set."""
    paths: list[str] = []
    for group, spec in Settings.model_fields.items():
        paths += _paths(group, spec)
    for op in OP_KINDS.values():
        paths += [f"model.op.{key}" for key in op.model_fields]
    return sorted(set(paths))


def is_setting(path: str) -> bool:
    """Whether a dotted path names a setting or a group of them."""
    return any(known == path or known.startswith(f"{path}.") for known in known_paths())


def _paths(name: str, spec: FieldInfo) -> list[str]:
    inner = _group(spec)
    fields = {} if inner is None else inner.model_fields
    inside = [path for key, field in fields.items() for path in _paths(f"{name}.{key}", field)]
    # An optional group is a setting too: null leaves it out.
    return inside if inner is spec.annotation and inner is not None else [name, *inside]
