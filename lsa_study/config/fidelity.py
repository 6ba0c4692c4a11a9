"""Where every setting of the paper tier comes from: the article, released code, or ourselves.

What is recorded stands in ``experiments/base/fidelity.yaml``, beside what is known to differ.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lsa_study.config import shipped, yaml
from lsa_study.config.layers import known_paths, validate
from lsa_study.config.names import nearest, short
from lsa_study.config.operators import Group
from lsa_study.config.settings import Settings, flatten
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

FILE = "base/fidelity.yaml"
Kind = Literal["article", "code", "ours"]
KINDS: Mapping[Kind, str] = {
    "article": "stated in the article",
    "code": "read in released code",
    "ours": "ours",
}
"""What the kinds of sources mean."""
Where = dict[str, Any]
"""What a row has to be: settings, ``row`` or ``study``, each with a glob or several."""


class Source(Group):
    """Where one value of a setting comes from."""

    value: Any = Field(None, alias="is")
    any: bool = False
    """Whatever the value is."""
    article: str | None = None
    code: str | None = None
    ours: str | None = None
    why: str = ""
    """A remark for readers."""
    where: Where = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError("give one source: article, code or ours, with its place")
        if self.any == ("value" in self.model_fields_set):
            raise ValueError("give what the setting is, or any: true")
        return self

    @property
    def kind(self) -> Kind:
        """Whose choice it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def place(self) -> str:
        """Where it is found there; of ours, the reason."""
        return str(getattr(self, self.kind))

    @property
    def text(self) -> str:
        """All of it in one line."""
        value = "any value" if self.any else shown(self.value)
        whose = {"article": "the article, ", "code": "released code, ", "ours": "ours: "}[self.kind]
        where = ", ".join(f"{key} {shown(globs)}" for key, globs in self.where.items())
        why = f" ({self.why})" if self.why else ""
        return f"{value}: {whose}{self.place}{why}{f'; where {where}' if where else ''}"


class _Remark(Group):
    """What is known to differ from the article or is assumed, and of which rows."""

    text: str
    where: Where = Field(default_factory=dict)


class _Fidelity(Group):
    """The whole file; see its head."""

    conditions: dict[str, Where] = Field(default_factory=dict)
    settings: dict[str, tuple[Source, ...]]
    differs: tuple[_Remark, ...] = ()
    assumed: tuple[_Remark, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, data: Any) -> Any:
        """A setting's only source may stand without a list, a condition by its name."""
        named = data.get("conditions")

        def spelled(one: Any) -> Any:
            where = one.get("where") if isinstance(one, dict) else None
            if not isinstance(where, str) or not isinstance(named, dict):
                return one
            if where not in named:
                raise ValueError(f"{where!r} is no condition; {nearest(where, named)}")
            return one | {"where": named[where]}

        def each(found: Any) -> Any:
            return tuple(map(spelled, found)) if isinstance(found, list) else (spelled(found),)

        lists = {key: each(data[key]) for key in ("differs", "assumed") if key in data}
        settings = {name: each(found) for name, found in data["settings"].items()}
        return data | lists | {"settings": settings}

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, tuple[Source, ...]]) -> dict[str, tuple[Source, ...]]:
        known = known_paths()
        for name in settings:
            if name not in known:
                raise ValueError(f"{name} is not a setting; {nearest(name, known)}")
        return settings


UNKNOWN = Source(any=True, ours="no source recorded")
"""Of settings that ``fidelity.yaml`` says nothing of, as in a study of your own."""
COMMAND = Source(any=True, ours="--set")
"""Of settings that were given on the command line."""


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> _Fidelity:
    document = yaml.read(path)
    if not isinstance(document.data.get("settings"), dict):
        raise ConfigError(f"{path}: holds no settings; give their sources")
    return validate(_Fidelity, document.data, document.where)


def fidelity_of(study: Study) -> _Fidelity:
    """What is recorded beside a study's file, else what comes with the package.

    Raises:
        ConfigError: the file is not as its head says, or names what is not a setting.
    """
    beside = study.document.path.parent / FILE
    return _load(beside if beside.exists() else shipped.find(f"experiments/{FILE}"))


def sources(study: Study, variant: str) -> dict[str, Source]:
    """The source of every setting of a row, those included that move no number."""
    found = fidelity_of(study)
    given = {override.partition("=")[0].strip() for override in study.overrides}
    values = _values(study.variants[variant])
    sourced = {}
    for setting, value in values.items():
        groups = _around(setting)
        fitting = (
            one
            for group in groups
            for one in found.settings.get(group, ())
            if one.any or (group == setting and one.value == value)
            if _holds(one.where, study, variant, values)
        )
        sourced[setting] = COMMAND if given.intersection(groups) else next(fitting, UNKNOWN)
    return sourced


def recorded(setting: str) -> list[Source]:
    """All that the file with the package says of a setting, or of a group around it."""
    settings = _load(shipped.find(f"experiments/{FILE}")).settings
    return [one for group in _around(setting) for one in settings.get(group, ())]


def _around(setting: str) -> list[str]:
    """A setting, and the groups that it stands in."""
    parts = setting.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def remarks(study: Study) -> dict[str, dict[str, list[str]]]:
    """What ``differs`` and what is ``assumed`` in a study: each remark with its rows."""
    recorded, values = fidelity_of(study), {v: _values(s) for v, s in study.variants.items()}
    found: dict[str, dict[str, list[str]]] = {}
    for name, known in (("differs", recorded.differs), ("assumed", recorded.assumed)):
        rows = {
            one.text: [v for v, of in values.items() if _holds(one.where, study, v, of)]
            for one in known
        }
        found[name] = {text: of for text, of in rows.items() if of}
    return found


def shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _values(settings: Settings) -> dict[str, Any]:
    return flatten(settings.model_dump(mode="json"))


def _holds(where: Where, study: Study, variant: str, values: dict[str, Any]) -> bool:
    about = values | {"row": variant, "study": short(study.file.study)}
    for key, wanted in where.items():
        globs = [shown(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
        if key not in about:
            return False
        text = shown(about[key])
        if not any(text == glob or fnmatch.fnmatchcase(text, glob) for glob in globs):
            return False
    return True
