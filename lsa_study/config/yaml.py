"""Read YAML without its silent traps, and remember the line every key stands on.

Refused: keys set twice (PyYAML keeps the last without a word), tabs, anything but plain mappings,
lists and scalars, keys that are not text, numbers in base 60 or 8, dates, control characters, and
what would fill the memory: deep nesting, aliases of aliases, files too large to be written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lsa_study.errors import ConfigError
from lsa_study.files import CONTROL

Keys = tuple[str, ...]
TAG = "tag:yaml.org,2002:"
SCALARS = {"str": "a text", "int": "a number", "float": "a number", "bool": "true or false",
           "null": "null"}  # fmt: skip
DEEPEST = 30
MOST_VALUES = 100_000
"""Of a file, those that aliases stand for counted again."""
MOST_BYTES = 2_000_000
MISREAD = re.compile(r"[-+]?(0[0-9_]+|.*:.*|.{100,})")
"""Numbers that YAML takes in base 8 or 60, or that nobody means."""

# The C parser reads the same language about ten times faster; not every build has it.
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """One YAML file: its ``data`` and, for every key path, the ``line`` it was written on."""

    path: Path
    data: dict[str, Any]
    lines: dict[Keys, int | str] = field(default_factory=dict)
    """A text is a place that is not in the file."""

    def where(self, *keys: str) -> str:
        """Name the place of a key, ``file:line``; the nearest known parent if it is not there."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                line = self.lines[keys[:end]]
                return line if isinstance(line, str) else f"{self.path}:{line}"
        return str(self.path)


def read(path: Path) -> Document:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, holds a key twice, or is not a mapping.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file; give a text file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a text file") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: is over {MOST_BYTES} bytes; give a file of settings")
    reader = _Reader(text, lambda line: f"{path}:{line}")
    try:
        data = reader.document()
    except yaml.YAMLError as error:
        raise ConfigError(_broken(path, text, error)) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds no settings; lines of 'key: value' were expected")
    return Document(path, data, reader.lines)


def parse(text: str, where: str = "text") -> Any:
    """Read a value as YAML does, such as that of ``--set key=value``; else it is text.

    Raises:
        ConfigError: it is YAML, but of what is refused in files; ``where`` it stands is named.
    """
    try:
        return _Reader(text, lambda line: where).document()
    except yaml.YAMLError:
        return text


def _broken(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    written = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return f"{path}:{line}:{column}: tab used for indentation; use two spaces"
    problem = (getattr(error, "problem", None) or "not YAML").replace("\t", "\\t")
    return f"{path}:{line}:{column}: {problem}; check indentation, colons and quotes near here"


class _Reader:
    """Builds the values of a text from the parser's events, so that nothing grows unseen."""

    def __init__(self, text: str, place: Callable[[int], str]) -> None:
        self.text, self.place = text, place
        self.lines: dict[Keys, int | str] = {}
        self.mistakes: list[str] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}
        """What an alias stands for: its value, how many values those are, how deep."""
        self.values = 0

    def document(self) -> Any:
        """The value of the whole text; None if it is empty."""
        if found := CONTROL.search(self.text):
            line = self.text.count("\n", 0, found.start()) + 1
            raise ConfigError(f"{self.place(line)}: {_unwanted(found[0])}")
        self.loader = _Loader(self.text)
        try:
            self.loader.get_event()
            if self.loader.check_event(yaml.StreamEndEvent):
                return None
            self.loader.get_event()
            value, _ = self.value(self.loader.get_event(), (), 1)
            self.loader.get_event()
            if not self.loader.check_event(yaml.StreamEndEvent):
                self.stop(self.loader.get_event(), "a second document begins; keep one in a file")
        finally:
            self.loader.dispose()
        if self.mistakes:
            raise ConfigError(*self.mistakes)
        return value

    def value(self, event: Any, keys: Keys, depth: int) -> tuple[Any, int]:
        """The value that begins with an event, and how deep it is."""
        before, deep, self.values = self.values, 1, self.values + 1
        value: Any
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self.stop(event, f"*{event.anchor} stands for nothing written before; drop it")
            value, number, deep = self.anchors[str(event.anchor)]
            self.values += number
        elif isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif event.tag not in (None, "!", f"{TAG}map", f"{TAG}seq"):
            self.stop(event, f"{event.tag} cannot be read; use plain values, lists and mappings")
        self.bounded(event, depth + deep)
        if isinstance(event, yaml.MappingStartEvent):
            value, deep = self.mapping(keys, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := self.loader.get_event(), yaml.SequenceEndEvent):
                here = (*keys, str(len(value)))
                self.lines[here] = item.start_mark.line + 1
                found, under = self.value(item, here, depth + 1)
                value.append(found)
                deep = max(deep, 1 + under)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.values - before, deep
        return value, deep

    def mapping(self, keys: Keys, depth: int) -> tuple[dict[str, Any], int]:
        """The mapping whose first event has been taken, and how deep it is."""
        mapping: dict[str, Any] = {}
        deep = 1
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self.stop(event, "a list or mapping cannot be a key; give a text")
            if self.tag(event) not in (f"{TAG}str", f"{TAG}int"):
                self.refuse(event, f"{event.value!r} cannot be a key; quote it to make it text")
            self.wanted(event)
            here = (*keys, event.value)
            if event.value in mapping:
                first = f"(first in line {self.lines[here]}); keep one"
                self.refuse(event, f"{'.'.join(here)} is set twice {first}")
            else:
                self.lines[here] = event.start_mark.line + 1
            value, under = self.value(self.loader.get_event(), here, depth + 1)
            mapping.setdefault(event.value, value)
            deep = max(deep, 1 + under)
        return mapping, deep

    def tag(self, event: Any) -> str:
        """The kind of a scalar, as written or as YAML takes it."""
        if event.tag not in (None, "!"):
            return str(event.tag)
        return str(self.loader.resolve(yaml.ScalarNode, event.value, event.implicit))

    def scalar(self, event: Any) -> Any:
        """The value of a scalar; None where it is refused."""
        tag, value = self.tag(event), event.value
        kind = tag.removeprefix(TAG)
        if kind not in SCALARS:
            said = f"{value[:40]!r} would be a {kind}" if event.tag is None else f"{tag} is unknown"
            self.refuse(event, f"{said}; quote it to make it text")
        elif kind in ("int", "float") and MISREAD.fullmatch(value):
            said = "is read in base 8 or 60, or too long for a number"
            self.refuse(event, f"{value[:40]!r} {said}; write it out, or quote it to make it text")
        elif kind == "str":
            self.wanted(event)
            return value
        else:
            try:
                return _Loader.yaml_constructors[tag](self.loader, yaml.ScalarNode(tag, value))
            except (ValueError, LookupError, yaml.YAMLError):
                self.refuse(event, f"{value[:40]!r} is not {SCALARS[kind]}; quote it, without !!")
        return None

    def wanted(self, event: Any) -> None:
        """Refuse a text with control characters, which quotes can hold as escapes."""
        if found := CONTROL.search(event.value):
            self.refuse(event, _unwanted(found[0]))

    def bounded(self, event: Any, depth: int) -> None:
        """Stop where a value would be too deep, or all too many."""
        if depth > DEEPEST + 1:
            self.stop(event, f"nested over {DEEPEST} deep; write it flat")
        if self.values > MOST_VALUES:
            self.stop(event, f"holds over {MOST_VALUES} values, aliases counted; write fewer")

    def refuse(self, event: Any, mistake: str) -> None:
        """Note a mistake; reading goes on, to find the others."""
        self.mistakes.append(f"{self.place(event.start_mark.line + 1)}: {mistake}")

    def stop(self, event: Any, mistake: str) -> None:
        """Give up at a mistake after which nothing can be read."""
        self.refuse(event, mistake)
        raise ConfigError(*self.mistakes)


def _unwanted(sign: str) -> str:
    return f"holds the control character {sign!a}; drop it"
