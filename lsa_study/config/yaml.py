"""Read YAML without its silent traps, and remember the line every key stands on.

Refused: keys set twice (PyYAML keeps the last without a word), tabs, anything but plain
mappings, lists and scalars, and keys that are not text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lsa_study.errors import ConfigError

Keys = tuple[str, ...]
PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
PLAIN_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int")

# The C parser reads the same language about ten times faster; not every build has it.
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """One YAML file: its ``data`` and, for every key path, the ``line`` it was written on."""

    path: Path
    data: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """Name the place of a key, ``file:line``; the nearest known parent if it is not there."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return f"{self.path}:{self.lines[keys[:end]]}"
        return str(self.path)


def read(path: Path) -> Document:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, holds a key twice, or is not a mapping.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a text file") from None
    reader = _Reader(path, _Loader(text))
    try:
        root = reader.loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: holds no settings; lines of 'key: value' were expected")
        data = reader.construct(root, ())
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_broken(path, text, error)) from None
    finally:
        reader.loader.dispose()
    if reader.mistakes:
        raise ConfigError(*reader.mistakes)
    return Document(path, data, reader.lines)


def parse(text: str) -> Any:
    """Read a value as YAML does, such as that of ``--set key=value``; else it is text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _broken(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    written = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return f"{path}:{line}:{column}: tab used for indentation; use two spaces"
    problem = (error.problem or "not YAML").replace("\t", "\\t")
    return f"{path}:{line}:{column}: {problem}; check indentation, colons and quotes near here"


@dataclass
class _Reader:
    path: Path
    loader: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def construct(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.CollectionNode) and not node.tag.startswith(PLAIN):
            self.refuse(node, f"{node.tag} cannot be read; use plain values, lists and mappings")
        elif isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys)
        elif isinstance(node, yaml.SequenceNode):
            return [self.construct(item, keys) for item in node.value]
        else:
            return self.loader.construct_object(node)

    def mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag not in PLAIN_KEYS:
                self.refuse(
                    key_node, f"{key_node.value!r} cannot be a key; quote it to make it text"
                )
            key = str(key_node.value)
            here = (*keys, key)
            if key in mapping:
                first = f"(first in line {self.lines[here]}); keep one"
                self.refuse(key_node, f"{'.'.join(here)} is set twice {first}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            mapping[key] = self.construct(value_node, here)
        return mapping

    def refuse(self, node: yaml.Node, mistake: str) -> None:
        self.mistakes.append(f"{self.path}:{node.start_mark.line + 1}: {mistake}")
