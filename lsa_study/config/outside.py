"""What a study takes from outside: looked up, checked and digested before it is a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsa_study.config import imports
from lsa_study.config.imports import ImportFails
from lsa_study.config.layers import Place
from lsa_study.config.operators import OP_KINDS, OutsideOp
from lsa_study.config.settings import Settings
from lsa_study.errors import ConfigError

OF_OPERATOR = ("dim", "num_heads")
"""What an operator's class is given by place."""
OF_METRIC = ("logits", "targets")
OF_DATA = ("train", "test", "fingerprint")
"""What a data set's class has, as methods or attributes."""


def bound(settings: Settings, where: Place) -> Settings:
    """Settings whose import paths were found: with their arguments' defaults and their digests.

    Args:
        where: names the place that set a key.

    Raises:
        ConfigError: all that cannot be imported, called or given their arguments.
    """
    mistakes: list[str] = []
    packages: dict[str, str] = {}
    model = settings.model
    for key, path in settings.paths().items():
        try:
            packages |= imports.digests(path)
            if key == "model.op.kind":
                model = model.model_copy(update={"op": _complete(path, model.op)})
            else:
                _check(key, path, settings)
        except ConfigError as error:
            place = where(*key.split("."))
            name = "model.op" if key == "model.op.kind" else key
            mistakes += [f"{place}: {name}: {mistake}" for mistake in error.mistakes]
    if mistakes:
        raise ConfigError(*mistakes)
    return settings.model_copy(update={"model": model, "outside": packages})


def argument_paths(written: Mapping[tuple[str, ...], Mapping[str, Any]], where: Place) -> list[str]:
    """The dotted settings that are arguments of operators from outside.

    Args:
        written: mappings of dotted settings, by their keys in a file.
        where: names the place of a key there.

    Raises:
        ConfigError: an operator cannot be imported or called.
    """
    found: set[str] = set()
    for keys, settings in written.items():
        op = settings.get("model.op")
        kind = op.get("kind") if isinstance(op, dict) else settings.get("model.op.kind")
        if isinstance(kind, str) and kind not in OP_KINDS:
            path = kind if ":" in kind else imports.entry_point(kind)
            if path is None or not imports.PATH.fullmatch(path):
                continue  # it is refused where rows are resolved
            try:
                known, _ = imports.parameters(path, OF_OPERATOR)
            except ImportFails as error:
                place = where(*keys, "model.op")
                raise ConfigError(f"{place}: model.op: {error}") from error
            found |= {f"model.op.{name}" for name in known}
    return sorted(found)


def _complete(path: str, op: Any) -> OutsideOp:
    known, _ = imports.parameters(path, OF_OPERATOR)
    if "kind" in known:
        raise ImportFails(f"{path}: takes an argument kind, which names the operator; rename it")
    imports.arguments(path, op.arguments, OF_OPERATOR)
    return OutsideOp(kind=path, **(imports.defaults(known) | op.arguments))


def _check(key: str, path: str, settings: Settings) -> None:
    if key == "data.name":
        found = imports.load(path)
        if lacks := [name for name in OF_DATA if not hasattr(found, name)]:
            raise ImportFails(
                f"{path}: has no {' and no '.join(lacks)}; give the class {', '.join(OF_DATA)}"
            )
        known, _ = imports.parameters(path)
        if lacks := [n for n, one in known.items() if one.default is one.empty and n != "root"]:
            raise ImportFails(
                f"{path}: wants {', '.join(lacks)}; a data set is built with root, or with nothing"
            )
    elif key == "model.backbone":
        known, others = imports.parameters(path)
        if lacks := [] if others else [n for n in ("op", "num_classes") if n not in known]:
            raise ImportFails(
                f"{path}: takes no {', '.join(lacks)}; a backbone is built as Class(op=..., "
                "num_classes=...), with image_size and drop_path where it takes them"
            )
        if settings.model.drop_path and "drop_path" not in known and not others:
            raise ImportFails(
                f"{path}: takes no drop_path, so that model.drop_path={settings.model.drop_path:g} "
                "changes nothing; set that to 0.0"
            )
    else:
        known, _ = imports.parameters(path, OF_METRIC)
        if lacks := [name for name, one in known.items() if one.default is one.empty]:
            raise ImportFails(
                f"{path}: wants {', '.join(lacks)} too; a metric is called as f(logits, targets)"
            )


def takes_root(path: str) -> bool:
    """Whether a data set's class is given the folder of the data sets."""
    return "root" in imports.parameters(path)[0]


def verify(settings: Settings) -> None:
    """Check that a run's code from outside is what it was when the run was asked for.

    Raises:
        ImportFails: it cannot be imported here, or its sources have changed.
    """
    found: dict[str, str] = {}
    for path in settings.paths().values():
        found |= imports.digests(path)
    changed = [
        f"{name} ({settings.outside.get(name)}, now {found.get(name)})"
        for name in sorted({*found, *settings.outside})
        if found.get(name) != settings.outside.get(name)
    ]
    if changed:
        raise ImportFails(
            f"{', '.join(changed)}: its sources have changed since the run was asked for; ask for "
            "the study again, which makes new runs, or bring the old sources back"
        )
