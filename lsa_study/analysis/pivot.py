"""A grid by two of its factors: mean accuracies with intervals, down and across."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsa_study.analysis.effects import levels_of
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, decimals, rounded
from lsa_study.config.names import nearest
from lsa_study.config.points import titles
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS
from lsa_study.errors import ConfigError


@dataclass(frozen=True)
class Pivot:
    """Rows of a grid by the values of one factor down and of another across."""

    down: str
    across: str
    columns: tuple[str, ...]
    """The values across."""
    blocks: dict[str, dict[str, tuple[Row | None, ...]]]
    """For every combination of the other factors, such as ``heads 1x``, the rows by the value
    down; a row that is not in the table is None."""
    digits: int
    """Decimals of its accuracies."""
    metric: str
    """The title of what its cells hold."""

    @property
    def about(self) -> str:
        """What a caption says of it."""
        return f"{self.metric} by {self.down} (down) and {self.across} (across)"

    def shown(self, row: Row | None, between: str = " ") -> str:
        """What stands in a cell: the mean with half its interval, or a word."""
        if row is None or row.word:
            return row.word if row else "–"
        mean, *half = row.accuracy.shown(self.digits).partition(" ± ")
        lost = f" ({row.outcome})" if row.ends else ""
        return f"{mean}{between}± {half[1]}{lost}" if half[1] else f"{mean}{lost}"


def pivot_of(study: Study, rows: Sequence[Row], choice: Sequence[str] = ()) -> Pivot | None:
    """A study's grid by two factors; None where it has no two.

    Args:
        study: whose grid it is.
        rows: those of its table.
        choice: the factor down and that across, by setting or its last part; else the first two.

    Raises:
        ConfigError: they are no two factors of the grid.
    """
    levels = levels_of(study, rows)
    called = titles(levels)
    if study.grid is None or len(levels) < 2:
        return None
    known = {**{title: key for key, title in called.items()}, **{key: key for key in levels}}
    for one in choice:
        if one not in known:
            hint = nearest(one, known)
            raise ConfigError(f"--pivot {one}: {study.name} has no such factor; {hint}")
    down, across = [known[one] for one in choice] or [*levels][:2]
    if down == across:
        raise ConfigError(f"--pivot {down},{across}: one factor; give two, as down,across")
    every = [*study.grid.factors]
    placed = {study.grid.rows[r.variant]: r for r in rows if r.variant in study.grid.rows}
    others = {key: found for key, found in levels.items() if key not in (down, across)}
    constant = next(iter(placed))
    blocks = {}
    for rest in itertools.product(*others.values()):
        fixed = dict(zip(others, rest, strict=True))
        title = ", ".join(f"{called[k]} {study.grid.factors[k][v]}" for k, v in fixed.items())
        blocks[title] = {
            study.grid.factors[down][one]: tuple(
                placed.get(tuple((fixed | {down: one, across: other}).get(k, constant[i])
                                 for i, k in enumerate(every)))
                for other in levels[across]
            )
            for one in levels[down]
        }  # fmt: skip
    columns = tuple(study.grid.factors[across][v] for v in levels[across])
    digits = decimals(run.test_images for row in rows for run in row.done)
    metric = METRICS[study.metrics[0]].title
    return Pivot(called[down], called[across], columns, blocks, digits, metric)


def facts(pivot: Pivot) -> list[dict[str, Any]]:
    """A pivot as data: one record for each of its lines."""
    records = []
    for block, lines in pivot.blocks.items():
        for value, cells in lines.items():
            found = {}
            for column, row in zip(pivot.columns, cells, strict=True):
                acc1 = row.accuracy if row else Estimate()
                found[column] = {
                    "mean": rounded(acc1.mean),
                    "low": rounded(acc1.low),
                    "high": rounded(acc1.high),
                    "n": acc1.n,
                    "variant": row.variant if row else None,
                }
            name = ", ".join(filter(None, (f"{pivot.down} {value}", block)))
            records.append({"row": name, "block": block, pivot.down: value, "cells": found})
    return records
