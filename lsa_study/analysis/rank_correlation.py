"""Does the order of a table's rows agree with the article's: Kendall's tau and its exact p."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lsa_study.analysis.rows import Row

EXACT_UP_TO = 8
"""Rows whose orders are all counted, 40,320 at most."""
DRAWS = 40_000
"""Random orders that stand for all beyond that."""


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between our order and the article's."""

    tau: float
    p: float
    """Chance of a tau at least this high if our order had nothing to do with the article's."""
    rows: int
    method: str
    """exact: all orders were counted; sampled: random ones."""


def agreement(rows: Sequence[Row]) -> Agreement | None:
    """Compare the rows that have a number on both sides; None below three, or if all are tied."""
    pairs = [
        (row.accuracy.mean, row.article.value)
        for row in rows
        if row.accuracy.mean is not None and row.article.value is not None
    ]
    return kendall([a for a, _ in pairs], [b for _, b in pairs])


def kendall(ours: Sequence[float], theirs: Sequence[float]) -> Agreement | None:
    """Tau-b with a one-sided permutation p that respects ties; see ``agreement``."""
    n = len(ours)
    one, other = _signs(np.asarray(ours, float)), _signs(np.asarray(theirs, float))
    untied = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    if n < 3 or untied == 0:
        return None
    score = int((one * other).sum())
    exact = n <= EXACT_UP_TO
    at_least = total = 0
    for orders in _orders(n, exact):
        scores = (one[orders[:, :, None], orders[:, None, :]] * other).sum(axis=(1, 2))
        at_least += int((scores >= score).sum())
        total += len(orders)
    # A sampled p counts the observed order itself, so that it is never zero.
    p = at_least / total if exact else (at_least + 1) / (total + 1)
    return Agreement(score / untied, p, n, "exact" if exact else "sampled")


def _signs(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    # Rounded: 81.3 + 0.1 and 81.4 must tie.
    rounded = np.round(values, 9)
    return np.sign(rounded[:, None] - rounded[None, :]).astype(np.int8)


def _orders(n: int, exact: bool) -> Iterator[npt.NDArray[np.intp]]:
    if exact:
        every = itertools.permutations(range(n))
        while chunk := list(itertools.islice(every, 5040)):
            yield np.array(chunk)
        return
    draws = np.random.default_rng(0)
    for _ in range(DRAWS // 4000):
        yield np.argsort(draws.random((4000, n)), axis=1)
