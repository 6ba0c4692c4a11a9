"""Compose settings from layers (tier, experiment, variant, command line) and name who set what.

A layer replaces what stands at its dotted path; it never merges into it, so ``model.op: {...}``
is the whole operator and leaves nothing of an earlier one behind.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lsa_study.config.names import LONGEST, nearest
from lsa_study.config.operators import OP_KINDS, OUTSIDE, OWN
from lsa_study.config.settings import Settings, Tier
from lsa_study.config.task import TASK_KINDS
from lsa_study.config.yaml import Document, Keys
from lsa_study.errors import ConfigError, all_at_once, noting

Model = TypeVar("Model", bound=BaseModel)
KINDS: Mapping[Keys, Mapping[str, type[BaseModel]]] = {
    ("model", "op"): OP_KINDS, ("task",): TASK_KINDS,
}  # fmt: skip
"""The groups that stand at a path, by their ``kind``."""
TIERS: tuple[str, ...] = get_args(Tier)
NOWHERE = "settings"
"""The place of what nobody wrote."""
Place = Callable[..., str]
"""From the keys of a setting to where it was written."""


@dataclass
class Layers:
    """Nested settings, and for every key the place (``file:line``) that set it."""

    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[Keys, Place] = field(default_factory=dict)

    def copy(self) -> Layers:
        """Return layers that can grow without touching these."""
        return Layers(copy.deepcopy(self.data), dict(self.origin))

    def set(self, path: str, value: Any, where: str | Place) -> None:
        """Put ``value`` at the dotted ``path``, replacing what stands there.

        Args:
            path: such as ``model.op``.
            value: a plain value, a list or a mapping.
            where: the place that wrote it, or of each key inside it.
        """
        *parents, last = keys = tuple(path.split("."))
        here, place = self.data, where() if callable(where) else where
        if not all(keys):
            raise ConfigError(f"{place}: {path!r} is not a setting; give names between its dots")
        for depth, key in enumerate(parents, start=1):
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                name = ".".join(keys[:depth])
                raise ConfigError(
                    f"{place}: {path}: {name} is a value, not a group; drop '.{last}'"
                )
        here[last] = copy.deepcopy(value)
        for old in [k for k in self.origin if k[: len(keys)] == keys]:
            del self.origin[old]
        self.origin[keys] = where if callable(where) else lambda *_: where

    def add(self, document: Document, settings: Any, at: Keys = ()) -> None:
        """Add a mapping of dotted paths written in ``document`` under the keys ``at``."""
        if not isinstance(settings, dict):
            raise ConfigError(f"{document.where(*at)}: {'.'.join(at)} holds no settings; give some")
        with all_at_once() as mistakes:
            for path, value in settings.items():
                with noting(mistakes):
                    self.set(path, value, functools.partial(document.where, *at, path))

    def use(self, presets: Document, names: Sequence[str], where: str, *, tier: str) -> None:
        """Add presets, mappings of dotted settings in ``presets``, that are named at ``where``.

        A preset whose keys are tiers holds other settings at each of them.

        Raises:
            ConfigError: there is no such preset, or two of them disagree on a setting.
        """
        used: dict[str, tuple[Keys, Any]] = {}
        if unknown := [one for one in names if one not in presets.data]:
            wrong = f"is no preset of {presets.path}"
            raise ConfigError(
                *(f"{where}: {o} {wrong}; {nearest(o, presets.data)}" for o in unknown)
            )
        for name in names:
            preset = presets.data[name]
            if not isinstance(preset, dict):
                raise ConfigError(f"{presets.where(name)}: {name} = {preset!r}; give it settings")
            at: Keys = (name,)
            if preset and preset.keys() <= set(TIERS):
                at, preset = (name, tier), preset.get(tier, {})
                if not isinstance(preset, dict):
                    raise ConfigError(
                        f"{presets.where(*at)}: {name}.{tier} = {preset!r}; give it settings"
                    )
            for path, value in preset.items():
                for other, (source, theirs) in used.items():
                    inside = path.startswith(f"{other}.") or other.startswith(f"{path}.")
                    if inside or (path == other and value != theirs):
                        places = presets.where(*source, other), presets.where(*at, path)
                        raise ConfigError(
                            f"{where}: presets {source[0]} and {name} disagree on {path} "
                            f"({' and '.join(places)}); use one of them"
                        )
                used[path] = at, value
            self.add(presets, preset, at)

    def where(self, *keys: str) -> str:
        """Name the place that set ``keys``, something inside, or the nearest group around it."""
        for known, place in self.origin.items():
            if known[: len(keys)] == keys:
                return place()
        for end in range(len(keys) - 1, 0, -1):
            if keys[:end] in self.origin:
                return self.origin[keys[:end]](*keys[end:])
        return NOWHERE


def validate(kind: type[Model], data: dict[str, Any], where: Place) -> Model:
    """Build ``kind`` from ``data``.

    Raises:
        ConfigError: every mistake at once, each with the place that wrote it, ``where(*keys)``.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = (_mistake(kind, detail, where) for detail in error.errors())
        raise ConfigError(*dict.fromkeys(mistakes)) from None


def _mistake(kind: type[BaseModel], detail: ErrorDetails, where: Place) -> str:
    # A discriminated union puts the chosen kind into the location; users never wrote it.
    loc = tuple(str(k) for k in detail["loc"] if k not in ("[key]", OWN))
    loc = loc[:-1] if loc[-1:] == (OUTSIDE,) else loc
    union = next((path for path in KINDS if loc[: len(path)] == path), loc)
    keys = (*union, *loc[len(union) + 1 :])
    kinds = KINDS.get(union, {})
    name = ".".join(keys) or "settings"
    value = detail.get("input")
    shown = "a group of settings" if isinstance(value, dict) else repr(value)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
    message = detail["msg"].replace("Input should be ", "").replace("a valid ", "a ")
    message = message.replace("a integer", "an integer")
    said = f"{name} = {shown} will not do; it should be {message}"
    match detail["type"]:
        case "extra_forbidden":
            said = f"{name} is not a setting; {_nearest(kind, loc, keys)}"
        case "too_short":
            said = f"{name} is empty; give one at least"
        case "dict_type" | "model_type" | "model_attributes_type":
            said = f"{name} = {shown} is not a group of settings; give {{name: value}}"
        case "missing":
            said = f"{name} is missing; it has no default"
        case "value_error":
            said = f"{name}: {detail['ctx']['error']}" if keys else str(detail["ctx"]["error"])
            return f"{_place_of_named(str(detail['ctx']['error']), keys, where)}: {said}"
        case "literal_error" if isinstance(value, str):
            hint = nearest(value, re.findall("'(.*?)'", message))
            said += f"; {hint}" * hint.startswith("did")
        case "union_tag_not_found":
            said = f"{name}.kind is missing; give one of {', '.join(kinds)}"
        case "union_tag_invalid":
            tag = detail["ctx"]["tag"]
            what = "operator" if union == ("model", "op") else "task"
            said = f"{name}.kind = {tag!r} is no {what}; known: {', '.join(kinds)}"
        case "float_type" | "int_type" if isinstance(value, str):
            said = f"{name} = {value!r} is not a number; give one"
            with contextlib.suppress(ValueError):
                float(value)
                said = (
                    f"{name} = {value!r} was read as text: YAML wants a dot and a sign in "
                    "exponents; write it like 1.0e-3"
                )
    return f"{where(*keys)}: {said}"


def _place_of_named(error: str, keys: Keys, where: Place) -> str:
    """Where the settings that do not fit each other were written: the command's own if any were."""
    named = [(*keys, *path.split(".")) for path in re.findall(r"([a-z_][\w.]*)=", error)]
    places = [place for one in named if (place := where(*one)) != NOWHERE] or [where(*keys)]
    return next((place for place in places if place.startswith("--set")), places[0])


def _nearest(kind: type[BaseModel], loc: Keys, keys: Keys) -> str:
    groups = [kind]
    for key in loc[:-1]:
        if len(groups) > 1:  # operators or tasks, of which the location names the chosen one
            groups = [{**OP_KINDS, **TASK_KINDS}[key]]
        elif key in groups[0].model_fields:
            groups = _groups(groups[0].model_fields[key]) or groups
    known = sorted(groups[0].model_fields)
    if close := difflib.get_close_matches(keys[-1], known, n=1):
        return f"did you mean {'.'.join((*keys[:-1], close[0]))}?"
    everywhere = {path.split(".")[-1]: path for path in known_paths()}
    close = difflib.get_close_matches(keys[-1], everywhere, n=1) if kind is Settings else []
    # Where another operator has a setting of this very name, it is no slip.
    if close and everywhere[close[0]] != ".".join(keys):
        return f"did you mean {everywhere[close[0]]}?"
    return f"known here: {', '.join(known)}"


def _groups(spec: FieldInfo) -> list[type[BaseModel]]:
    """The groups of settings that a field may hold: none, one, or any of the operators."""
    kinds = [spec.annotation]
    while any(map(get_args, kinds)):
        kinds = [inner for kind in kinds for inner in get_args(kind) or (kind,)]
    return [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]


def every_field(
    kind: type[BaseModel] = Settings, prefix: str = ""
) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Every dotted path that can be set, the group that holds it, and its name there.

    A path of several operators comes once for each.
    """
    for name, spec in kind.model_fields.items():
        yield f"{prefix}{name}", kind, name
        for group in _groups(spec):
            yield from every_field(group, f"{prefix}{name}.")


def known_paths() -> list[str]:
    """List every dotted path that can be set, a group of settings included."""
    return sorted({path for path, _, _ in every_field()})
