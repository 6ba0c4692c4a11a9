"""Means and t intervals over seeds, orders of rows, and how numbers are written."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.95
"""Share of repeated experiments whose interval would hold the true mean."""
POWER = 0.8
"""Chance to find a difference of the size that is called resolvable."""
MOST_SEEDS = 1000
UNLIKE = 0.02
"""Level of the test whether rows vary alike."""
ORDERS = math.factorial(8)
"""Orders of rows that a rank correlation is held against: all of them up to 8 rows."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval; ``mean`` is None without, the bounds below two values."""

    values: tuple[float, ...] = ()
    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def n(self) -> int:
        """How many values it rests on."""
        return len(self.values)

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.mean is None or self.high is None else self.high - self.mean

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the values; None below two."""
        return _deviation(self.values) if self.n > 1 else None

    def shown(self, digits: int, *, sign: bool = False) -> str:
        """The mean with half its interval, such as ``81.3 ± 0.4``; empty without a value."""
        if self.mean is None:
            return ""
        mean = signed(self.mean, digits) if sign else f"{self.mean:.{digits}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{digits}f}"


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean of ``values`` with Student's t interval at ``LEVEL``: mean ± t(n-1) s / sqrt(n).

    Unlike the bootstrap or "mean ± std", which hold the true mean in three of four cases at three
    seeds, it keeps its level however few values there are; one value has no interval.

    Raises:
        ValueError: a value is not finite.
    """
    values = tuple(float(value) for value in values)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values {values} are not all finite; leave out runs without an accuracy")
    if not values:
        return Estimate()
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return Estimate(values, mean)
    half = _t_edge(n - 1) * _deviation(values) / math.sqrt(n)
    return Estimate(values, mean, mean - half, mean + half)


def pooled_interval(values: Sequence[float], others: Sequence[Sequence[float]]) -> Estimate:
    """Mean of ``values`` with an interval whose deviation is pooled over rows.

    Their own where rows vary otherwise (Bartlett's test); one value has no interval.

    Raises:
        ValueError: a value is not finite.
    """
    own = t_interval(values)
    rows = [row for row in (values, *others) if len(row) > 1]
    deviations = [_deviation(tuple(row)) for row in rows]
    if own.mean is None or own.n < 2 or len(rows) < 2 or not any(deviations):
        return own
    if all(deviations) and stats.bartlett(*rows).pvalue < UNLIKE:
        return own
    freedom = [len(row) - 1 for row in rows]
    square = sum(d**2 * f for d, f in zip(deviations, freedom, strict=True)) / sum(freedom)
    half = _t_edge(sum(freedom)) * math.sqrt(square / own.n)
    return Estimate(own.values, own.mean, own.mean - half, own.mean + half)


_deviation = functools.lru_cache(maxsize=4096)(statistics.stdev)


@functools.lru_cache(maxsize=4096)
def _t_edge(freedom: int) -> float:
    """Where the middle ``LEVEL`` of Student's t distribution ends."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


def kendall(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, str] | None:
    """Kendall's tau-b between two orders of the same rows, its p, and how that was found.

    p is the chance of a tau at least this high if one order had nothing to do with the other; it
    respects ties, and comes from all orders (``exact``) or random ones (``sampled``).

    Returns:
        tau, p, method; None below three rows, or if all tie.
    """
    n = len(ours)
    # Rounded: 81.3 + 0.1 and 81.4 must tie.
    one, other = (np.round(np.asarray(side, float), 9) for side in (ours, theirs))
    tau = stats.kendalltau(one, other).statistic if n > 2 else math.nan
    if math.isnan(tau):
        return None

    def signs(values: npt.NDArray[np.float64]) -> Any:
        return np.sign(values[..., :, None] - values[..., None, :])

    def score(order: npt.NDArray[np.float64], axis: int) -> Any:
        return (signs(order) * wanted).sum((-2, -1))

    wanted = signs(other)
    found = stats.permutation_test(
        (one,), score, permutation_type="pairings", alternative="greater", vectorized=True,
        n_resamples=ORDERS, batch=5040, random_state=0,
    )  # fmt: skip
    method = "exact" if math.factorial(n) <= ORDERS else "sampled"
    return float(tau), float(found.pvalue), method


def decimals(test_images: Iterable[int | None]) -> int:
    """Decimals of percentages that the largest of these test sets can carry.

    One image of 50,000 is 0.002 points, one of 360 is 0.3: more digits would be noise.
    """
    return 2 if max((images or 0 for images in test_images), default=0) >= 10_000 else 1


def signed(value: float | None, digits: int) -> str:
    """A difference with its sign, such as ``+0.4``, ``−0.3`` or ``0.0``; empty without a value."""
    if value is None:
        return ""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round for files that people compare; -0.0 becomes 0.0."""
    return None if value is None else round(value, digits) + 0.0
