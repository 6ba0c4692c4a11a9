"""What a contrast between rows is known to be: intervals, p values and the seeds that would decide.

Accuracies follow a model of rows and seeds, y = row + seed + rest, over the rows of a study that
have the compared seeds. Two sources of noise meet in one interval: the rest, whose variance is
pooled over the rows, and the test images, which all seeds share. Combined as Obuchowski and
Rockette do for readers and cases, with Hillis' degrees of freedom (Statistics in Medicine 26,
2007).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from lsa_study.analysis.statistics import LEVEL, MOST_SEEDS, POWER, Estimate

ALPHA = 1 - LEVEL
CHECK = 0.01
"""Level of the test whether a contrast varies more than the other rows do."""
PRIOR = 16.0
"""Variance of the effect, in units of the rest's, that always-valid intervals are mixed over."""
BESIDE = 0.2
"""Part of the chance to err that all looks beside the declared one share; that one takes all."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """How sure a mean over seeds is: the errors of both sources and how the first was found."""

    seed: float
    """Standard error from seed to seed, points."""
    freedom: float
    """Degrees of freedom of ``seed``."""
    image: float
    """Standard error from the finite test set, points."""
    seeds: int
    method: str
    """pooled over so many rows, Welch, or paired."""
    looks: float | None = None
    """None at the seeds that were declared. Else intervals are always valid, with this part of the
    chance to err for all looks together: 1 where no seeds were declared, else ``BESIDE``."""

    @property
    def shown(self) -> str:
        """How the error was found and whether it holds at every look, in one line."""
        return self.method if self.looks is None else f"{self.method}, always valid"

    def edge(self, alpha: float) -> float:
        """Half the width of the interval that misses the truth with chance ``alpha``, points."""
        if self.looks is not None:
            # The images stay the same at every look, so their error does not average out: each
            # source misses with half of the chance.
            alpha *= self.looks
            half = alpha / 2 if self.image else alpha
            seeds = _always_valid(half, self.seeds, self.freedom) * self.seed
            return math.hypot(seeds, float(special.ndtri(1 - half / 2)) * self.image)
        square = self.seed**2 + self.image**2
        if not square:
            return 0.0
        return float(stats.t.ppf(1 - alpha / 2, self._degrees)) * math.sqrt(square)

    def p(self, distance: float) -> float:
        """Smallest ``alpha`` whose interval leaves out what lies ``distance`` away; two-sided."""
        distance = abs(distance)
        if self.looks is not None:
            if self.edge(1e-12) < distance:
                return 1e-12
            if not self.edge(1 - 1e-9) < distance:
                return 1.0
            low, high = -12.0, math.log10(1 - 1e-9)
            return float(10 ** optimize.brentq(lambda a: self.edge(10**a) - distance, low, high))
        square = self.seed**2 + self.image**2
        if not square:
            return 0.0 if distance else 1.0
        return float(min(1.0, 2 * stats.t.sf(distance / math.sqrt(square), self._degrees)))

    @property
    def _degrees(self) -> float:
        """Hillis' degrees of freedom of both sources together."""
        if not self.seed:
            return 1e9
        return min(1e9, self.freedom * (1 + (self.image / self.seed) ** 2) ** 2)


def _always_valid(alpha: float, seeds: int, freedom: float) -> float:
    """The t value of a confidence sequence: the mixture of t tests over normal effects.

    Reject where the Bayes factor with a right-Haar prior on the deviation reaches 1/alpha, which
    under the null happens at any time with chance alpha at most (Hendriksen, de Heide and
    Grünwald, Bayesian Analysis 16, 2021; Wang and Ramdas, arXiv 2310.03722).
    """
    widening = 1 + PRIOR * seeds
    power = 2 / (freedom + 1)
    try:
        ratio = (math.sqrt(widening) / alpha) ** power
    except OverflowError:
        return math.inf
    if ratio >= widening:
        return math.inf
    return math.sqrt(max(0.0, freedom * (ratio - 1) / (1 - ratio / widening)))


def seed_noise(
    weights: Sequence[float], values: Floats, pool: Floats, floor: float = 0.0
) -> tuple[float, float, str]:
    """Standard error of a weighted mean over seeds, its degrees of freedom and the method.

    Args:
        weights: of the compared rows, with sum 0.
        values: their accuracies, (rows, seeds).
        pool: those of further rows with the same seeds, (rows, seeds).
        floor: the least variance of the contrast that its counts of images allow.
    """
    seeds = values.shape[1]
    scale = float(np.square(weights).sum())
    own = float(np.var(np.asarray(weights) @ values, ddof=1))
    every = np.vstack([values, pool])
    rest = every - every.mean(0) - every.mean(1, keepdims=True) + every.mean()
    total, freedom = float(np.square(rest).sum()), (len(every) - 1) * (seeds - 1)
    others = freedom - (seeds - 1)
    method = "paired"
    variance, degrees = max(own, floor), float(seeds - 1)
    if others > 0:
        beside = max(0.0, total - own * (seeds - 1) / scale) / others
        ratio = own / scale / beside if beside else math.inf
        tail = float(stats.f.sf(ratio, seeds - 1, others)) if beside else 0.0
        if tail >= CHECK:
            variance, degrees = max(total / freedom * scale, floor), float(freedom)
            method = f"pooled over {len(every)} rows"
        else:
            parts = np.square(weights) * np.var(values, axis=1, ddof=1)
            if parts.sum():
                degrees = float(parts.sum() ** 2 / np.square(parts).sum() * (seeds - 1))
            variance, method = max(float(parts.sum()), floor), "Welch"
    return math.sqrt(variance / seeds), degrees, method


def image_noise(bits: npt.NDArray[np.int8]) -> tuple[float, float]:
    """Variance of a mean from the images that all seeds share, and the least that seeds add.

    Args:
        bits: a contrast of correctness, (seeds, images), in images.

    Returns:
        Both in squared points; the second is of one seed's mean.
    """
    seeds, images = bits.shape
    # In whole numbers: ten times as fast as in floating point where there are many seeds.
    squares = np.square(bits, dtype=np.int16).sum(1, dtype=np.int64)
    sums = bits.sum(1, dtype=np.int64)
    each = 1e4 * float(np.mean(squares - sums**2 / images)) / (images - 1)
    mean = 1e4 * float(np.var(bits.sum(0, dtype=np.int32), ddof=1)) / seeds**2
    common = (seeds * mean - each) / (seeds - 1)
    return max(0.0, common) / images, max(0.0, each - common) / images


def t_test(found: Estimate, value: float) -> float | None:
    """Two-sided p of Student's test against a true mean of ``value``; None without a spread."""
    if found.mean is None or not found.deviation:
        return None
    t = abs(found.mean - value) / found.deviation * math.sqrt(found.n)
    return float(2 * stats.t.sf(t, found.n - 1))


def proportion(count: int, of: int) -> Estimate:
    """The share of runs that ended so, with Clopper and Pearson's exact interval."""
    found = stats.binomtest(count, of).proportion_ci(LEVEL, method="exact")
    values = tuple([1.0] * count + [0.0] * (of - count))
    return Estimate(values, count / of, float(found.low), float(found.high))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values: at or below 5 %, all such decisions are right 19 times of 20.

    A claim without a p value was not tested and does not count.
    """
    order = sorted((value, at) for at, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    most = 0.0
    for rank, (value, at) in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * value))
        adjusted[at] = most
    return adjusted


def more_seeds(noise: Noise, distance: float) -> tuple[int, int | None, int | None] | None:
    """How many more seeds find a difference ``distance`` away from the margin, in 4 of 5 cases.

    Returns:
        About so many, and the fewest and most if the distance were a standard error larger or
        smaller (None: no number of seeds would do); None where no number of seeds would.
    """
    error = math.hypot(noise.seed, noise.image)
    about = _needed(noise, abs(distance))
    if about is None:
        return None
    return about, _needed(noise, abs(distance) + error), _needed(noise, abs(distance) - error)


@functools.lru_cache(maxsize=4096)
def _needed(noise: Noise, distance: float) -> int | None:
    if distance <= 0:
        return None

    def finds(seeds: int) -> bool:
        degrees = noise.freedom / (noise.seeds - 1) * (seeds - 1)
        seed = noise.seed * math.sqrt(noise.seeds / seeds)
        later = Noise(
            seed, degrees, noise.image, seeds, "", BESIDE if noise.looks is None else noise.looks
        )
        error = math.hypot(seed, noise.image)
        return bool(error == 0 or special.ndtr((distance - later.edge(ALPHA)) / error) >= POWER)

    first = noise.seeds + 1
    if not finds(MOST_SEEDS):
        return None
    low, high = first, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle + 1, high)
    return low - noise.seeds
