"""What each study was last asked with under a results folder, so that its table finds its runs.

``lsa run table1 --set train.epochs=1`` trains other runs than ``lsa run table1``; the tables, plots
and states of that results folder are about the ones that were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lsa_study.config.study import Study, load
from lsa_study.files import writable, write_json


def load_recalled(
    results: Path | None,
    tier: str,
    study: str,
    *,
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    overrides: Sequence[str] | None = None,
) -> Study:
    """``study.load``, where what is None is as it was last asked for under ``results``, if any."""
    before: list[str] = []
    if results is not None:
        before, last = _recall(_path(results, tier, Path(study).stem))
        seeds = seeds or last
    overrides = before if overrides is None else overrides
    return load(study, tier=tier, seeds=seeds, only=only, overrides=overrides)


def remember(results: Path, studies: Iterable[Study], overrides: Sequence[str]) -> None:
    """Note what is asked now; seeds add up as long as the overrides stay the same."""
    for study in studies:
        path = _path(results, study.tier, study.name)
        before, last = _recall(path)
        seeds = {*study.seeds, *(last if set(before) == set(overrides) else ())}
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"overrides": sorted(overrides), "seeds": sorted(seeds)})


def _path(results: Path, tier: str, study: str) -> Path:
    return results / tier / "studies" / f"{study}.json"


def _recall(path: Path) -> tuple[list[str], list[int]]:
    """Overrides and seeds; none where the study was never asked for."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return list(found["overrides"]), list(found["seeds"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], []
