"""How small a difference a number of seeds can resolve, and how many seeds a difference needs."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable

from scipy import optimize, stats

from lsa_study.analysis.contrasts import Contrast
from lsa_study.analysis.statistics import LEVEL, t_edge

POWER = 0.8
"""Chance to find a difference of the size that is called resolvable."""
MOST_SEEDS = 1000


@functools.lru_cache(maxsize=1024)
def resolvable(seeds: int, *, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest difference a paired t test over this many seeds finds with the given power.

    In units of the standard deviation of a paired difference over seeds; None below two seeds.
    Solves for the non-centrality at which the two-sided test rejects with probability ``power``.
    """
    if seeds < 2:
        return None
    freedom = seeds - 1
    edge = t_edge(freedom, level)

    def missing(size: float) -> float:
        # The other tail is below 1e-4 where the power is near 0.8.
        return float(stats.nct.sf(edge, freedom, size)) - power

    return float(optimize.brentq(missing, 0.0, 50 * edge)) / math.sqrt(seeds)


def seeds_needed(distance: float, deviation: float, *, level: float = LEVEL) -> int | None:
    """Seeds at which an interval of this deviation is half as wide as ``distance`` on each side.

    None if more than 1000 would be needed.
    """
    if deviation == 0:
        return 2

    # Every seed more narrows the interval, so the first that is enough can be bisected.
    def enough(seeds: int) -> bool:
        return t_edge(seeds - 1, level) / math.sqrt(seeds) * deviation < abs(distance)

    seeds = 2 + bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=enough)
    return seeds if seeds <= MOST_SEEDS else None


def pooled_noise(found: Iterable[Contrast]) -> float | None:
    """Standard deviation of a paired difference over seeds, pooled over rows; None if unknown."""
    squares, freedom = 0.0, 0
    for contrast in found:
        noise, n = contrast.seed_noise, contrast.difference.n
        if noise is not None:
            squares += noise**2 * (n - 1)
            freedom += n - 1
    return math.sqrt(squares / freedom) if freedom else None
