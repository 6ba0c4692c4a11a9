"""Code from outside the package, by import path: found, read as a signature, digested.

``package.module:Name`` is what Python itself finds: installed, ``pip install -e`` included, or in a
folder of ``PYTHONPATH``. The working directory does not count, though ``python -m`` puts it first:
workers, jobs and resumed runs would each import what happens to lie where they start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from lsa_study.config.names import nearest
from lsa_study.errors import ConfigError

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
GROUP = "lsa_study.ops"
"""Entry points of packages that give their operators names."""
SUFFIXES = {".py", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"}
VERSIONED = {"builtins", "lsa_study", "timm", "torch"}
"""Packages of which runs record the version or a digest anyway."""
PLAIN = (bool, int, float, str, type(None))
Parameters = Mapping[str, inspect.Parameter]


class ImportFails(ConfigError):
    """What an import path names cannot be had, or is not what it should be."""

    cause = "import"


def _path(written: str) -> str:
    path = written if ":" in written else entry_point(written) or written
    if not PATH.fullmatch(path):
        raise ValueError(f"{path[:80]!r} is no import path; write package.module:Name")
    return path


ImportPath = Annotated[str, AfterValidator(_path), Field(json_schema_extra={"pattern": ":"})]
"""``package.module:Name``; a name of ``GROUP`` becomes the path that it stands for."""


def entry_point(name: str) -> str | None:
    """The import path that an installed package gives an operator's name, if one does."""
    found = next(iter(metadata.entry_points(group=GROUP, name=name)), None)
    return found.value.replace(" ", "") if found else None


@contextlib.contextmanager
def _as_installed() -> Iterator[None]:
    """Import without the working directory; what modules print is no answer of ours."""
    here = {"", *(() if sys.flags.safe_path else (str(Path.cwd()),))}
    first = sys.path.pop(0) if sys.path and sys.path[0] in here else None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if first is not None:
            sys.path.insert(0, first)


def load(path: str) -> Any:
    """Import what a path names.

    Raises:
        ImportFails: there is no such module or name, or the module raises.
    """
    module, _, name = path.partition(":")
    try:
        with _as_installed():
            found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and (module == absent or module.startswith(f"{absent}.")):
            raise ImportFails(
                f"{path}: Python finds no module {absent}; install its package (pip install -e "
                "FOLDER) or put its folder on PYTHONPATH: the working directory does not count"
            ) from None
        raise ImportFails(
            f"{path}: importing {module} raised {type(error).__name__}: {error}; mend the module, "
            f'to see where: python -c "import {module}"'
        ) from error
    if not hasattr(found, name):
        known = [one for one in vars(found) if not one.startswith("_")]
        raise ImportFails(f"{path}: {module} has no {name}; {nearest(name, known)}")
    return getattr(found, name)


def digests(path: str) -> dict[str, str]:
    """SHA-256, ten digits, of the sources behind a path: of its outermost package, or its file.

    Where the name comes from another package, of that too.
    """
    found = load(path)
    modules = [path.partition(":")[0], str(getattr(found, "__module__", "builtins"))]
    result = {}
    for at, module in enumerate(modules):
        if at and module.partition(".")[0] in VERSIONED:
            continue
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            raise ImportFails(f"{path}: {module} has no file; give one that lies in a file")
        place, name = Path(file), module.split(".")
        if place.name == "__init__.py":
            place = place.parent
        while (place.parent / "__init__.py").is_file():
            place, name = place.parent, name[:-1]
        inside = place.rglob("*") if place.is_dir() else [place]
        files = sorted(one for one in inside if one.suffix in SUFFIXES)
        states = [(one, (stat := one.stat()).st_mtime_ns, stat.st_size) for one in files]
        result[".".join(name)] = _digest(place.parent, tuple(states))
    return result


@functools.lru_cache(maxsize=64)
def _digest(root: Path, states: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, size in states:
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def parameters(path: str, leading: Sequence[str] = ()) -> tuple[Parameters, bool]:
    """The keyword parameters that a class or function takes, and whether it takes any others.

    Args:
        leading: what it is given first, by place.

    Raises:
        ImportFails: it cannot be called so.
    """
    found = load(path)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        raise ImportFails(f"{path}: cannot be called; give a class or function") from None
    every = [*signature.parameters.values()]
    kinds = {one.kind for one in every}
    by_place = [
        one for one in every if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    rest = [one for one in every if one not in by_place[: len(leading)]]
    short = len(by_place) < len(leading) and inspect.Parameter.VAR_POSITIONAL not in kinds
    if short or any(one.kind is one.POSITIONAL_ONLY and one.default is one.empty for one in rest):
        call = ", ".join([*leading, "**arguments"])
        shown = re.sub(" -> .*", "", str(signature))
        raise ImportFails(f"{path}: takes {shown}; it is called as {path.split(':')[1]}({call})")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return (
        {one.name: one for one in rest if one.kind in named},
        inspect.Parameter.VAR_KEYWORD in kinds,
    )


def arguments(path: str, given: Mapping[str, Any], leading: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments as YAML gives them, of the types that a signature asks for.

    Raises:
        ImportFails: all that are unknown, missing or of a wrong type.
    """
    known, others = parameters(path, leading)
    function = load(path)
    try:
        hints = typing.get_type_hints(
            function.__init__ if inspect.isclass(function) else function, include_extras=True
        )
    except (NameError, TypeError, AttributeError):  # of names that are there for type checkers only
        hints = {}
    wrong = [
        f"{name} is no argument of {path}; {nearest(name, known)}"
        for name in given
        if name not in known and not others
    ]
    wrong += [
        f"{name} is missing; {path} has no default for it"
        for name, one in known.items()
        if name not in given and one.default is one.empty
    ]
    typed = {}
    for name, value in given.items():
        try:
            typed[name] = _typed(hints.get(name, Any), value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should be ", "")
            wrong.append(f"{name} = {value!r:.100} will not do; it should be {message}")
        except PydanticUserError:  # a type that cannot be checked
            typed[name] = value
    if wrong:
        raise ImportFails(*wrong)
    return typed


def _typed(hint: Any, value: Any) -> Any:
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        adapter = TypeAdapter[Any](hint, config=config)
    except PydanticUserError:  # a model or a dataclass, which has its own
        adapter = TypeAdapter[Any](hint)
    # As JSON, a list may become a tuple and a text a member of an enumeration.
    return adapter.validate_json(json.dumps(value), strict=True)


def defaults(known: Parameters) -> dict[str, Any]:
    """The defaults of a signature that YAML could hold."""
    found = {name: one.default for name, one in known.items() if _is_plain(one.default)}
    return {name: [*v] if isinstance(v, tuple) else v for name, v in found.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) and not (isinstance(value, float) and not math.isfinite(value))


def is_installed(module: str) -> bool:
    """Whether Python finds a top-level module of this name without the working directory."""
    with _as_installed():
        return importlib.util.find_spec(module) is not None
