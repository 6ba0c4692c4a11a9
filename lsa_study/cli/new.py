"""`lsa new`: a small working package or study to begin from, with its test."""

from __future__ import annotations

import keyword
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lsa_study.config.find import list_studies
from lsa_study.config.imports import is_installed
from lsa_study.config.names import RESERVED
from lsa_study.errors import ConfigError
from lsa_study.files import write_whole

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
SHARED = "package"
"""Files of all kinds that are packages, and the folder that takes the package's name."""
NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")


class Kind(StrEnum):
    """What can be begun."""

    operator = "operator"
    study = "study"
    dataset = "dataset"
    metric = "metric"


def new(
    kind: Annotated[Kind, typer.Argument(help="what to begin")],
    name: Annotated[str, typer.Argument(help="of its package: small letters, digits and _")],
    folder: Annotated[
        Path | None, typer.Option(help="where its files go; else a new one of its name here")
    ] = None,
) -> None:
    """Write a small working operator, study, data set or metric with a test, to begin from."""
    root, package = folder or Path(name), kind is not Kind.study
    _check(name, package=package)
    sources = {
        path.relative_to(origin): path
        for origin in ([TEMPLATES / SHARED] if package else []) + [TEMPLATES / kind]
        for path in sorted(origin.rglob("*.tmpl"))
    }
    title = "".join(part.capitalize() for part in name.split("_"))
    files = {
        root / str(path).removesuffix(".tmpl").replace(SHARED, name): text
        for path, source in sources.items()
        for text in [source.read_text("utf-8").replace("@name@", name).replace("@Class@", title)]
    }
    if package:
        files[root / name / "__init__.py"] = f'"""{title}, for ablations with lsa_study."""\n'
    if there := [path for path in files if path.exists()]:
        more = f" and {len(there) - 1} more" if there[1:] else ""
        raise ConfigError(f"{there[0]}{more}: is there already; give another name, or --folder")
    for path in sorted(files):
        write_whole(path, files[path], make_folder=True)
        typer.echo(path)
    install = ["pip install -e ."] if package else []
    steps = [f"cd {root}", *install, "python -m pytest tests", "lsa run study.yaml"]
    typer.echo(f"Next: {' && '.join(steps)}")


def _check(name: str, *, package: bool) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"lsa new: {name[:80]!r} cannot be its name; give 2 to 40 small letters, digits and _, "
            "a letter first, and no word of Python"
        )
    if not package and name in (*RESERVED, *list_studies()):
        raise ConfigError(f"lsa new: {name} means something else to lsa; give another name")
    if package and is_installed(name):
        raise ConfigError(f"lsa new: there is a package {name} that it would hide; give another")
