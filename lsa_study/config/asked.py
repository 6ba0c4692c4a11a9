"""What a results folder remembers: the seeds a study was asked for with, and its side studies."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lsa_study.errors import ConfigError
from lsa_study.files import read_json, write_json

LONGEST_NAME = 60


class Asked(BaseModel):
    """One file of ``studies``; a side study names the study that it is of."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    overrides: list[str] = []
    seeds: list[int] = []
    study: str = ""
    """Stem or path of the study; empty: this is the study itself."""
    only: str | None = None


def memory(results: Path, tier: str, name: str) -> Path:
    """Where is written what was asked for."""
    return results / tier / "studies" / f"{name}.json"


def read_asked(results: Path | None, tier: str, name: str) -> Asked | None:
    """What was asked for under this name; None if nothing was, or it cannot be read."""
    if results is None or "/" in name:
        return None
    with contextlib.suppress(ConfigError, ValidationError):
        return Asked.model_validate(read_json(memory(results, tier, name)))
    return None


def plain_asked(results: Path | None, tier: str, stem: str) -> Asked:
    """What a study's own table is about.

    That is what was asked for without overrides; where only side studies of it were asked for,
    all with the same overrides, it is these.
    """
    own = read_asked(results, tier, stem)
    if own is not None or results is None:
        return own or Asked()
    paths = memory(results, tier, stem).parent.glob("*.json")
    found = [read_asked(results, tier, path.stem) for path in sorted(paths)]
    sides = {tuple(one.overrides) for one in found if one and Path(one.study).stem == stem}
    return Asked(overrides=list(sides.pop())) if len(sides) == 1 else Asked()


def derived_name(stem: str, overrides: Sequence[str], only: str | None) -> str:
    """A name for a side study: readable, and another for every other ask."""
    parts = [one.split("=")[0].split(".")[-1] + "-" + one.partition("=")[2] for one in overrides]
    parts += [f"only-{only}"] if only else []
    digest = hashlib.sha256(repr((stem, sorted(overrides), only)).encode()).hexdigest()[:8]
    words = re.sub("[^a-zA-Z0-9]+", "-", "-".join([stem, *parts])).strip("-")
    return f"{words[: LONGEST_NAME - 9].strip('-')}-{digest}"


def remember_side(results: Path, tier: str, name: str, asked: Asked) -> None:
    """Note a side study; its seeds add up.

    Raises:
        ConfigError: the name is taken by another ask.
    """
    before = read_asked(results, tier, name)
    fields = {"study", "overrides", "only"}
    if before is not None and before.model_dump(include=fields) != asked.model_dump(include=fields):
        raise ConfigError(f"--as {name}: is the name of something else there; give another")
    seeds = sorted({*asked.seeds, *(before.seeds if before else ())})
    asked = asked.model_copy(update={"seeds": seeds})
    write_json(memory(results, tier, name), asked.model_dump(), make_folder=True)
