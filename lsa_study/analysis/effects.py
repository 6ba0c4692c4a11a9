"""What each factor of a grid does: main effects and interactions of two, with intervals.

The model is that of every contrast (see :mod:`lsa_study.analysis.inference`): rows and seeds, with
the rest pooled over the rows and the noise of the test images; seeds are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lsa_study.analysis.contrasts import Contrast, contrast
from lsa_study.analysis.inference import holm
from lsa_study.analysis.rows import Row, not_judged
from lsa_study.analysis.statistics import Estimate, decimals, rounded
from lsa_study.config.grid import ROW, At
from lsa_study.config.points import titles
from lsa_study.config.study import Study

SHOWN = 12
"""So many effects stand in a note; files of data hold all."""
NOTHING = Contrast((), Estimate(), ())
"""What is known of an effect whose rows were not run."""


@dataclass(frozen=True)
class Effect:
    """One value of a factor against the baseline's, or how far that depends on another factor."""

    factors: tuple[str, ...]
    """One setting, or the two of an interaction."""
    values: tuple[str, ...]
    against: tuple[str, ...]
    """The baseline's values."""
    cells: int
    """Over so many values of the other factors together it is the mean."""
    of: int
    """So many there are; the others lack runs."""
    contrast: Contrast
    weights: Mapping[str, float]
    """Of the rows that it is the weighted sum of."""
    apart: str = ""
    """Why it is not judged, though there may be a number."""
    mark: str = ""
    """In what its rows were not made alike, which does not refuse a verdict."""
    adjusted: float | None = None
    """Its p value after Holm's correction over all effects of the grid that are judged."""

    def shown(self, digits: int) -> str:
        """Such as ``size 5 − 3: +0.4 ± 0.3 (p = 0.02)``."""
        called = titles(self.factors)
        pairs = zip(self.factors, self.values, self.against, strict=True)
        name = " × ".join(f"{called[key]} {value} − {base}" for key, value, base in pairs)
        beside = [f"p = {self.adjusted:.2g}"] if self.adjusted is not None else []
        beside += [f"over {self.cells} of {self.of}"] if self.cells < self.of else []
        beside += [self.apart] if self.apart else []
        beside += [f"not made alike: {self.mark}"] if self.mark else []
        said = f" ({', '.join(beside)})" if beside else ""
        return f"{name}: {self.contrast.difference.shown(digits, sign=True)}{said}"

    @property
    def p(self) -> float | None:
        """Of the contrast; None where it is not judged."""
        return None if self.apart else self.contrast.p()

    def facts(self) -> dict[str, Any]:
        """It as data."""
        found = self.contrast.difference
        return {
            "factors": [*self.factors],
            "values": [*self.values],
            "against": [*self.against],
            "mean": rounded(found.mean),
            "low": rounded(found.low),
            "high": rounded(found.high),
            "n": found.n,
            "p": rounded(self.p, 6),
            "adjusted": rounded(self.adjusted, 6),
            "method": self.contrast.noise.shown if self.contrast.noise else None,
            "cells": self.cells,
            "of": self.of,
            "apart": self.apart,
        }


def levels_of(study: Study, rows: Sequence[Row]) -> dict[str, list[int]]:
    """Which values the factors of a study's grid have among its rows; those with several alone."""
    if study.grid is None:
        return {}
    places = [study.grid.rows[row.variant] for row in rows if row.variant in study.grid.rows]
    found = {key: sorted({at[i] for at in places}) for i, key in enumerate(study.grid.factors)}
    return {key: levels for key, levels in found.items() if len(levels) > 1}


def effects(study: Study, rows: Sequence[Row], *, lacking: bool = False) -> tuple[Effect, ...]:
    """The main effects of a grid of two factors or more, then the interactions of every two.

    A main effect is the mean, over the values of the other factors, of what a value gives against
    the baseline's. An interaction is the mean of how much more it gives with another value of a
    second factor than with the baseline's. Values that lack runs on one side are left out of both.
    Rows that ``--grid`` repeats differ in what the study says: they have interactions alone.

    ``lacking``: also those of which no seed was run on both sides.
    """
    levels, grid = levels_of(study, rows), study.grid
    if grid is None or len(levels) < 2:
        return ()
    index = [[*grid.factors].index(key) for key in levels]
    every = {
        tuple(grid.rows[row.variant][i] for i in index): row
        for row in rows
        if row.variant in grid.rows
    }
    known = {
        at: row.done
        for at, row in every.items()
        if row.done and not row.alike.refused and not row.cut
    }
    base = tuple(
        grid.base[i] if grid.base[i] in found else found[0]
        for i, found in zip(index, levels.values(), strict=True)
    )
    made = []
    single = [(at,) for at, key in enumerate(levels) if key != ROW]
    for places in [*single, *itertools.combinations(range(len(levels)), 2)]:
        keys = tuple([*levels][place] for place in places)
        other = [[v for v in levels[[*levels][place]] if v != base[place]] for place in places]
        for values in itertools.product(*other):
            cells = [*_cells([*levels.values()], base, dict(zip(places, values, strict=True)))]
            whole = [cell for cell in cells if all(at in known for at in cell)]
            terms = [(sign / len(whole), known[at]) for cell in whole for at, sign in cell.items()]
            found = contrast(terms, [*known.values()], study.declared) if whole else NOTHING
            if not (found.seeds or lacking):
                continue
            weights, taken = dict[str, float](), dict[str, Row]()
            for cell in whole or cells:
                for at, sign in cell.items():
                    of = every[at].variant if at in every else f"no row at {at}"
                    weights[of] = weights.get(of, 0.0) + sign / len(whole or cells)
                    taken |= {of: every[at]} if at in every else {}
            refused = [why for row in taken.values() for why in row.alike.refused]
            apart = not_judged([*taken.values()], refused, found.seeds)
            marks = dict.fromkeys(why for row in taken.values() for why in row.alike.marked)
            called, against = (
                tuple(grid.factors[key][v] for key, v in zip(keys, of, strict=True))
                for of in (values, [base[place] for place in places])
            )
            size, mark = (len(whole), len(cells)), "; ".join(marks)
            made.append(Effect(keys, called, against, *size, found, weights, apart, mark))
    adjusted = holm([one.p for one in made])
    return tuple(replace(one, adjusted=p) for one, p in zip(made, adjusted, strict=True))


def _cells(levels: Sequence[list[int]], base: At, moved: dict[int, int]) -> Iterator[dict[At, int]]:
    """For all values of the other factors: the rows with and without each move, with signs."""
    others = [[base[i]] if i in moved else found for i, found in enumerate(levels)]
    for rest in itertools.product(*others):
        cell = {}
        for done in itertools.product((1, 0), repeat=len(moved)):
            at = [*rest]
            for (place, value), here in zip(moved.items(), done, strict=True):
                at[place] = value if here else at[place]
            cell[tuple(at)] = (-1) ** done.count(0)
        yield cell


def effect_notes(found: Sequence[Effect], rows: Sequence[Row]) -> Iterator[str]:
    """Lines under a table on the effects of its grid."""
    digits = decimals(run.test_images for row in rows for run in row.done)
    means = {
        1: "Main effects, in points: each value against the baseline's, as the mean over the other "
        "factors",
        2: "Interactions, in points: how much more a value gives with that of the other factor",
    }
    for number, meaning in means.items():
        lines = [one.shown(digits) for one in found if len(one.factors) == number]
        more = f"; and {len(lines) - SHOWN} more in the JSON" * (len(lines) > SHOWN)
        if lines:
            tested = "; p after Holm's correction over all effects of the grid"
            tested *= any(one.adjusted is not None for one in found)
            yield f"{meaning}{tested}. {'; '.join(lines[:SHOWN])}{more}."
