"""Means and t intervals over seeds, and how they are written."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95
"""Share of repeated experiments whose interval would hold the true mean."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval; ``mean`` is None without, the bounds below two values."""

    values: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """How many values it rests on."""
        return len(self.values)

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.mean is None or self.high is None else self.high - self.mean


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Mean of ``values`` with Student's t interval: mean ± t(n-1) s / sqrt(n).

    Unlike the bootstrap or "mean ± std", which hold the true mean in three of four cases at three
    seeds, it keeps its level however few values there are; one value has no interval.

    Raises:
        ValueError: a value is not finite, or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}; give a share between 0 and 1, such as 0.95")
    values = tuple(float(value) for value in values)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values {values} are not all finite; leave out runs without an accuracy")
    n = len(values)
    if n == 0:
        return Estimate(values, None, None, None)
    # Exact for equal values: math.fsum(...) / n may miss them by one rounding.
    mean = values[0] if len(set(values)) == 1 else math.fsum(values) / n
    if n == 1:
        return Estimate(values, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_edge(n - 1, level) * deviation / math.sqrt(n)
    return Estimate(values, mean, mean - half, mean + half)


@functools.lru_cache(maxsize=4096)
def t_edge(freedom: int, level: float) -> float:
    """Where the middle ``level`` of Student's t distribution ends."""
    return float(stats.t.ppf(0.5 + level / 2, freedom))


def decimals(test_images: int | None) -> int:
    """Decimals of a percentage that a test set of this size can carry.

    One image of 50,000 is 0.002 points, one of 360 is 0.3: more digits would be noise.
    """
    return 2 if test_images is not None and test_images >= 10_000 else 1


def shown(estimate: Estimate, digits: int) -> str:
    """The mean with half its interval, such as ``81.3 ± 0.4``; empty without a value."""
    if estimate.mean is None:
        return ""
    half = "" if estimate.half is None else f" ± {estimate.half:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{half}"


def signed(value: float | None, digits: int) -> str:
    """A difference with its sign, such as ``+0.4``, ``−0.3`` or ``0.0``; empty without a value."""
    if value is None:
        return ""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"
