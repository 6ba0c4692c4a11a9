"""Which run folders a user means: by a study's name, or by the beginning of a run's name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lsa_study import rundir
from lsa_study.config import study, yaml
from lsa_study.config.selection import load_recalled
from lsa_study.config.study import TIERS, Run, Tier
from lsa_study.errors import ConfigError
from lsa_study.rundir import RunDir

NAME = re.compile(r"(?P<variant>.+)-s(?P<seed>\d+)-(?P<identity>[0-9a-f]{10})")


@dataclass(frozen=True, slots=True)
class Found:
    """A run folder and what its name says."""

    tier: Tier
    variant: str
    seed: int
    identity: str
    folder: RunDir

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.root.name


def tiers_of(results: Path, tier: str | None) -> list[Tier]:
    """The tier asked for, else those that have runs."""
    if tier is not None:
        if tier not in TIERS:
            raise ConfigError(f"--tier {tier}: no such tier; known: {', '.join(TIERS)}")
        return [name for name in TIERS if name == tier]
    return [name for name in TIERS if rundir.runs_folder(results, name).is_dir()]


def every(results: Path, tier: str | None = None) -> list[Found]:
    """All run folders, by tier, seed and variant."""
    found = []
    for name in tiers_of(results, tier):
        for folder in rundir.existing(results, name).values():
            if match := NAME.fullmatch(folder.root.name):
                seed = int(match["seed"])
                found.append(Found(name, match["variant"], seed, match["identity"], folder))
    place = [*TIERS].index
    return sorted(found, key=lambda run: (place(run.tier), run.seed, run.variant, run.identity))


def one(results: Path, text: str, tier: str | None = None) -> Found:
    """The run whose name or identity begins with ``text``.

    Raises:
        ConfigError: none does, or several do; they are named.
    """
    runs = every(results, tier)
    exact = [run for run in runs if text in (run.name, run.identity)]
    alike = exact or [run for run in runs if _begins(run, text)]
    if len(alike) == 1:
        return alike[0]
    if not alike:
        known = ", ".join(run.name for run in runs[:5]) or "none"
        raise ConfigError(f"{text}: no run under {results} begins so; there are: {known}")
    names = ", ".join(run.name for run in alike[:5])
    raise ConfigError(f"{text}: {len(alike)} runs begin so; write more: {names}")


def _begins(run: Found, text: str) -> bool:
    return run.name.startswith(text) or run.identity.startswith(text)


def chosen(results: Path, names: Sequence[str], tier: str | None = None) -> list[Found]:
    """The run folders of studies and runs; all of them where no name is given.

    A study means the runs it was last asked with, whichever study made their folders, and all
    others of its variants.

    Raises:
        ConfigError: a name is neither a study nor the beginning of a run's name.
    """
    runs = every(results, tier)
    if not names:
        return runs
    wanted: set[str] = set()
    for name in study.expand_names(names):
        if (variants := variants_of(name)) is not None:
            wanted |= {run.identity for run in runs if run.variant in variants}
            wanted |= {run.identity for run in asked_runs(results, [name], tier)}
        else:
            wanted.add(one(results, name, tier).identity)
    return [run for run in runs if run.identity in wanted]


def asked_runs(results: Path, names: Sequence[str], tier: str | None = None) -> list[Run]:
    """The runs of studies as they were last asked for, at the tiers that have runs."""
    loaded = []
    for name in study.expand_names(names):
        for place in tiers_of(results, tier) or ["toy"]:
            if variants_of(name) is None:
                continue
            try:
                loaded.append(load_recalled(results, place, name))
            except ConfigError:  # not a study of this tier
                continue
    return study.distinct(loaded)


def variants_of(name: str) -> set[str] | None:
    """The variants of a study; None if there is no study of that name."""
    try:
        path = study.find(name)
    except ConfigError:
        return None
    return set(yaml.read(path).data.get("variants", ()))
