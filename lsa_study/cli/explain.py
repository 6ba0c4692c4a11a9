"""What can be written in experiment files: ``lsa explain`` and ``lsa schema``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lsa_study.errors import ConfigError


def explain(
    key: Annotated[
        str | None, typer.Argument(help="such as train.lr, train, lr or variants; else all")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="all of them as a page, docs/settings.md")
    ] = False,
) -> None:
    """Say what a setting means: type, range, default, source, who sets it, if it makes the run."""
    from lsa_study.config import explain as settings

    if key is not None and markdown:
        raise ConfigError("--markdown: is a page of all settings; drop KEY, or --markdown")
    if markdown:
        typer.echo(settings.as_markdown(), nl=False)
        return
    chosen = settings.keys().values() if key is None else settings.find_keys(key)
    typer.echo(settings.as_text(chosen))


def schema() -> None:
    """Print the JSON Schema of experiment files, for editors: lsa schema > study.schema.json."""
    from lsa_study.config.schema import study_schema

    typer.echo(json.dumps(study_schema(), indent=1))


COMMANDS = (explain, schema)
