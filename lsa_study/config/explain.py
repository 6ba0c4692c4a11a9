"""What every setting and every key of an experiment file means: for the terminal, as Markdown."""

from __future__ import annotations

import functools
import re
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lsa_study.config import shipped, yaml
from lsa_study.config.experiment import Resources, StudyFile
from lsa_study.config.fidelity import recorded, shown
from lsa_study.config.find import TIERS
from lsa_study.config.layers import every_field
from lsa_study.config.names import nearest
from lsa_study.config.operators import OP_KINDS
from lsa_study.config.schema import Schema, meanings, properties_of
from lsa_study.config.settings import Settings
from lsa_study.config.task import TASK_KINDS
from lsa_study.errors import ConfigError

APART = ("tier", "data.root", "runtime")
"""Settings, and groups of them, that can move no number: no part of a run's identity."""
HEAD = """\
# Settings

Written by `lsa explain --markdown`; `lsa explain KEY` shows one. A setting stands in the tiers of
`experiments/base`, under `set:` in a study or its row, or behind `--set`; each layer replaces what
those before it say. *Identity: yes* means that another value is another run. Sources are those of
the article's rows at the tier `paper`; where there are several, each names its rows. What stands
below under `variants.` is written under the name of a row.
"""


@dataclass(frozen=True)
class Form:
    """A key as one group of settings has it."""

    kinds: tuple[str, ...]
    """The operators or tasks that have it so; empty: all, or it is no operator's and no task's."""
    takes: str
    """Its type and range, in words."""
    default: str | None
    """None: it has to be given."""
    meaning: str

    @classmethod
    def of(cls, owner: type[BaseModel], name: str) -> Form:
        """The field of this name of a group."""
        schema, field = properties_of(owner)[name], owner.model_fields[name]
        default = None
        if isinstance(field.default, BaseModel):
            default = "those of its settings"
            if "oneOf" in schema:  # which settings those are depends on its kind
                default = f"kind {properties_of(type(field.default))['kind']['const']}"
        elif not field.is_required():
            default = shown(field.get_default(call_default_factory=True))
        meaning = meanings(owner).get(name)
        if meaning is None and isinstance(field.annotation, type):  # a group says it of itself
            meaning = " ".join((field.annotation.__doc__ or "").split())
        every = (*OP_KINDS.items(), *TASK_KINDS.items())
        kinds = tuple(kind for kind, of in every if of is owner)
        return cls(kinds, _worded(schema), default, meaning or "")


@dataclass(frozen=True)
class Key:
    """All that is known of a setting, or of a key of experiment files."""

    path: str
    forms: tuple[Form, ...]
    of_file: bool
    """A key of an experiment file, no setting."""

    @property
    def summary(self) -> str:
        """The first sentence of its meaning."""
        return re.split(r"(?<!Fig)(?<!Eq)\. ", self.forms[0].meaning)[0].rstrip(".") + "."

    def meant(self) -> list[str]:
        """What it means, to each operator or task that gives it a meaning of its own."""
        of: dict[str, list[str]] = {}
        for form in self.forms:
            of.setdefault(form.meaning, []).extend(form.kinds)
        return [f"{', '.join(kinds) or 'others'}: {text}" if of.keys() - {text} else text
                for text, kinds in of.items()]  # fmt: skip

    def facts(self) -> list[tuple[str, str]]:
        """What is known of it, each line with its topic."""
        lines: list[tuple[str, str]] = []
        for form in self.forms:
            default = "no default" if form.default is None else f"default {form.default}"
            whose = f"{', '.join(form.kinds) or 'others'}: "
            whose *= len(self.forms) > 1 or bool(form.kinds)
            lines.append(("type", f"{whose}{form.takes}; {default}"))
        if self.of_file:
            return lines
        apart = any(self.path == one or self.path.startswith(f"{one}.") for one in APART)
        says = "no: it can move no number" if apart else "yes: another value is another run"
        lines.append(("identity", says))
        if layers := self.set_by():
            lines.append(("set by", "; ".join(f"{who}: {value}" for who, value in layers)))
        lines += [("source", one.text) for one in recorded(self.path)]
        return lines

    def set_by(self) -> list[tuple[str, str]]:
        """The tiers and presets that set it, with their values."""
        found: list[tuple[str, str]] = []
        for tier in TIERS:
            value: Any = yaml.read(shipped.find(f"experiments/base/{tier}.yaml")).data
            for name in self.path.split("."):
                value = value.get(name, ...) if isinstance(value, dict) else ...
            if value is not ... and not isinstance(value, dict):
                found.append((tier, shown(value)))
        presets = yaml.read(shipped.find("experiments/base/presets.yaml")).data
        for name, settings in presets.items():
            for at, value in settings.items():
                rest = self.path.removeprefix(at).lstrip(".")
                inner = value.get(rest, {}) if isinstance(value, dict) and rest else value
                if f"{self.path}.".startswith(f"{at}.") and not isinstance(inner, dict):
                    found.append((f"preset {name}", shown(inner)))
        return found


@functools.cache
def keys() -> dict[str, Key]:
    """Every key by its path: first those of experiment files, then the settings."""
    found: dict[tuple[str, bool], list[Form]] = {}
    resources = every_field(Resources, "resources.")
    for of_file, fields in (
        (True, (*every_field(StudyFile), *resources)),
        (False, (*every_field(Settings),)),
    ):
        for path, owner, name in fields:
            forms, new = found.setdefault((path, of_file), []), Form.of(owner, name)
            alike = [one for one in forms if one == Form(one.kinds, *_said(new))]
            if alike:
                forms[forms.index(alike[0])] = Form(alike[0].kinds + new.kinds, *_said(new))
            else:
                forms.append(new)
    return {path: Key(path, tuple(forms), of) for (path, of), forms in found.items()}


def _said(form: Form) -> tuple[str, str | None, str]:
    return form.takes, form.default, form.meaning


def _worded(schema: Schema) -> str:
    """A type and its range in words, from its JSON Schema."""
    match schema:
        case {"anyOf": [*ways]} | {"oneOf": [{"enum": _}, *_] as ways}:
            return " or ".join(map(_worded, ways))
        case {"oneOf": _}:  # those of layers are nested, as one may come from outside
            kinds = schema.get("discriminator", {}).get("mapping")
            what, named = ("a group of settings", kinds) if kinds else ("a layer", OP_KINDS)
            return f"{what}; its kind is one of {', '.join(named)}"
        case {"$ref": _} | {"allOf": [{"$ref": _}]}:
            return "a group of settings"
        case {"const": value}:
            return str(value)
        case {"enum": [*values]}:
            return f"one of {', '.join(map(str, values))}"
        case {"type": "array", "prefixItems": [*parts]}:
            return f"a list of {len(parts)}, each {_worded(parts[0])}"
        case {"type": "array"}:
            return f"a list, each {_worded(schema.get('items', {}))}"
        case {"type": "integer" | "number" as kind}:
            return _ranged("whole number" if kind == "integer" else "number", schema)
        case {"type": str(kind)}:
            names = {"string": "text", "boolean": "true or false", "object": "a mapping"}
            return names.get(kind, kind)
    return "anything"


def _ranged(noun: str, schema: Schema) -> str:
    low, above, high = map(schema.get, ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None and noun == "whole number":
        low, above = above + 1, None
    low = None if above is not None else low
    words = [("from", low), ("above", above), ("up to", high)]
    # Pydantic's versions differ in whether a whole bound of a number is written as one.
    ends = [(word, f"{end:,}".removesuffix(".0")) for word, end in words if end is not None]
    return " ".join([noun, *(f"{word} {end}" for word, end in ends)])


def find_keys(asked: str) -> list[Key]:
    """The key of this path; else all in the group of this name, or all whose last part it is.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    known = keys()
    inside = [key for path, key in known.items() if path.startswith(f"{asked}.")]
    if asked in known:
        return [known[asked], *inside]
    if not inside:
        inside = [key for path, key in known.items() if path.endswith(f".{asked}")]
    if not inside:
        last = {path.rpartition(".")[2]: path for path in known}
        hint = nearest(asked, known)
        if not hint.startswith("did") and not (hint := nearest(asked, last)).startswith("did"):
            hint = "lsa explain names all"
        raise ConfigError(f"{asked}: is not a setting; {hint}")
    return inside


def as_text(chosen: Iterable[Key]) -> str:
    """One key as a page, several as a list, as wide as the terminal."""
    chosen, width = list(chosen), min(shutil.get_terminal_size().columns, 120)
    if len(chosen) > 1:
        room = max(len(key.path) for key in chosen) + 2
        return "\n".join(
            textwrap.fill(
                f"{key.path:<{room}}{key.summary}", width, subsequent_indent=" " * room,
                break_on_hyphens=False,
            )
            for key in chosen
        )  # fmt: skip
    (key,) = chosen
    lines = [key.path]
    for text in key.meant():
        lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  "))
    for topic, fact in key.facts():
        begin = f"  {topic:<10}"
        lines.append(textwrap.fill(f"{begin}{fact}", width, subsequent_indent=" " * len(begin)))
    return "\n".join(lines)


def as_markdown() -> str:
    """The page of all keys, as ``docs/settings.md`` has it."""
    lines, group = [HEAD], ""
    for key in keys().values():
        top, alone = key.path.partition(".")[0], key.path in ("tier", "seed")
        title = "An experiment file" if key.of_file else "A run" if alone else top
        if title != group:
            lines += [f"## {title}\n"]
            group = title
        lines += [f"### `{key.path}`\n", "\n\n".join(key.meant()), ""]
        lines += [f"- {topic}: {fact}" for topic, fact in key.facts()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
