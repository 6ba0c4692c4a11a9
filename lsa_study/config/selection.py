"""What each study was last asked with under a results folder, so that its table finds its runs.

``lsa run table1 --set train.epochs=1`` trains other runs than ``lsa run table1``; the tables, plots
and states of that results folder are about the ones that were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsa_study.config.study import Study
from lsa_study.files import writable, write_json


@dataclass(frozen=True)
class Asked:
    """The overrides and seeds of a study's runs."""

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None


def _path(results: Path, tier: str, study: str) -> Path:
    return results / tier / "studies" / f"{study}.json"


def recall(results: Path, tier: str, study: str) -> Asked:
    """What the study was last asked with; nothing special where it never was."""
    try:
        found = json.loads(_path(results, tier, study).read_text("utf-8"))
        return Asked(tuple(found["overrides"]), tuple(found["seeds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Asked()


def remember(results: Path, studies: Iterable[Study], overrides: Sequence[str]) -> None:
    """Note what is asked now; seeds add up as long as the overrides stay the same."""
    for study in studies:
        before = recall(results, study.tier, study.name)
        same = set(before.overrides) == set(overrides)
        seeds = {*study.seeds, *((before.seeds or ()) if same else ())}
        path = _path(results, study.tier, study.name)
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"overrides": sorted(overrides), "seeds": sorted(seeds)})
