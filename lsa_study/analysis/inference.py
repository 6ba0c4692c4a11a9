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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from lsa_study.analysis.statistics import LEVEL, MOST_SEEDS, POWER, Estimate

ALPHA = 1 - LEVEL
ONE_MORE = "at least 1 more seed"
"""What an interval takes where one seed is there."""
CHECK = 0.05
"""Level of the test whether a row varies more than the others do: of each compared row by itself,
of the others together. Two compared rows of twice the deviation still pass it in one case of three
at five seeds; a higher level would cost the power that pooling brings."""
NORMAL_EDGE = float(special.ndtri(0.5 + LEVEL / 2))
"""Where the middle ``LEVEL`` of the normal distribution ends: 1.96."""
SURE = 1e9
"""Degrees of freedom of an error that is known."""
PRIOR = 16.0
"""Variance of the effect, in units of the rest's, that always-valid intervals are mixed over."""
BESIDE = 0.2
"""Part of the chance to err that all looks beside the declared one share; that one takes all."""
Floats = npt.NDArray[np.float64]
Seeds = tuple[int | None, int | None, int | None]
"""About how many more would decide, the fewest and the most; None: more than ``MOST_SEEDS``."""


@dataclass(frozen=True)
class Noise:
    """How sure a mean over seeds is: the errors of both sources and how the first was found."""

    seed: float
    """Standard error from seed to seed, points."""
    freedom: float
    """Degrees of freedom of ``seed``."""
    image: float | None
    """Standard error from the finite test set, points; None: unknown, and so in no interval."""
    seeds: int
    method: str
    """pooled over so many rows, Welch, or paired."""
    looks: float | None = None
    """None at the seeds that were declared. Else intervals are always valid, with this part of the
    chance to err for all looks together: 1 where no seeds were declared, else ``BESIDE``."""
    least: float = 0.0
    """The least that ``seed`` can truly be, by the counts of images behind it, points."""
    declared: int | None = None
    """So many seeds were declared, if these are some of them."""

    @property
    def shown(self) -> str:
        """How the error was found, what it lacks, whether it holds at every look: one line."""
        lacks = ", the noise of seeds alone" * (self.image is None)
        return f"{self.method}{lacks}{', always valid' * (self.looks is not None)}"

    @property
    def error(self) -> float:
        """Standard error of both sources together, points."""
        return math.hypot(max(self.seed, self.least), self.image or 0.0)

    def looked(self, seeds: Collection[int], declared: Collection[int]) -> Noise:
        """The same, knowing the seeds that were declared before anything ran, if any were.

        With other seeds an interval holds at every look: who adds seeds until a difference shows
        errs no more often.
        """
        ours, whole = {*seeds}, {*declared}
        if ours == whole:
            return replace(self, looks=None, declared=None)
        some = len(whole) if ours < whole else None
        return replace(self, looks=BESIDE if len(whole) > 1 else 1.0, declared=some)

    def edge(self, alpha: float) -> float:
        """Half the width of the interval that misses the truth with chance ``alpha``, points.

        At one or two degrees of freedom Hillis' can make a second source narrow the interval, so
        the one of the seeds alone is a bound. ``least`` is known, not estimated, so the normal
        distribution holds for it: with Student's, intervals at 2 seeds would always hold the truth.
        """
        if self.looks is not None:
            # The images stay the same at every look, so their error does not average out: each
            # source misses with half of the chance.
            alpha *= self.looks
            half = alpha / 2 if self.image else alpha
            times = _always_valid(half, self.seeds, self.freedom)
            seeds = times * self.seed if math.isfinite(times) else times
            least = _always_valid(half, self.seeds, SURE) * self.least if self.least else 0.0
            images = float(special.ndtri(1 - half / 2)) * (self.image or 0.0)
            return math.hypot(max(seeds, least), images)
        return max(
            float(special.stdtrit(degrees, 1 - alpha / 2)) * error
            for error, degrees in self._bounds
        )

    def ends(self, mean: float, alpha: float = ALPHA) -> tuple[float, float] | tuple[None, None]:
        """Where the interval around ``mean`` ends; None where it has no ends."""
        half = self.edge(alpha)
        return (mean - half, mean + half) if math.isfinite(half) else (None, None)

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
        bounds = [(error, degrees) for error, degrees in self._bounds if error]
        if not bounds:
            return 0.0 if distance else 1.0
        return max(2 * float(special.stdtr(degrees, -distance / e)) for e, degrees in bounds)

    @property
    def resolvable(self) -> float:
        """The true difference that such intervals tell from 0 in 4 of 5 cases, points; or infinite.

        Solves for the non-centrality at which the two-sided test rejects with chance ``POWER``.
        """
        edge, degrees = self.edge(ALPHA) / self.error, min(1e6, self._degrees)
        if math.isinf(edge):
            return edge
        # The other tail is below 1e-4 where the power is near 0.8. Over quantiles of the estimated
        # error: scipy's noncentral t is NaN at the many degrees of freedom that images bring.
        chances = (np.arange(400) + 0.5) / 400
        errors = np.sqrt(special.chdtri(degrees, chances) / degrees)

        def missing(size: float) -> float:
            return float(special.ndtr(size - edge * errors).mean()) - POWER

        return float(optimize.brentq(missing, 0.0, 50 * edge)) * self.error

    @property
    def _bounds(self) -> tuple[tuple[float, float], ...]:
        """Standard errors with their degrees of freedom; the widest of their intervals holds."""
        image = self.image or 0.0
        return (
            (math.hypot(self.seed, image), self._degrees),
            (self.seed, self.freedom),
            (math.hypot(self.least, image), SURE),
        )

    @property
    def _degrees(self) -> float:
        """Hillis' degrees of freedom of both sources together."""
        if not self.seed:
            return SURE
        return min(SURE, self.freedom * (1 + ((self.image or 0.0) / self.seed) ** 2) ** 2)


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


def seed_noise(weights: Sequence[float], values: Floats, pool: Floats) -> tuple[float, float, str]:
    """Standard error of a weighted mean over seeds, its degrees of freedom and the method.

    The variance is pooled over the rows that vary alike. A row that varies more than they do
    keeps its own, and the degrees of freedom are Welch's then; of the compared rows one that may.

    Args:
        weights: of the compared rows, with sum 0.
        values: their accuracies, (rows, seeds).
        pool: those of further rows with the same seeds, (rows, seeds).
    """
    seeds = values.shape[1]
    every = np.vstack([values, pool])
    if len(every) == 2:
        own = float(np.var(np.asarray(weights) @ values, ddof=1))
        return math.sqrt(own / seeds), seeds - 1.0, "paired"
    alike, compared = np.ones(len(every), bool), np.arange(len(every)) < len(values)

    def widest(tested: npt.NDArray[np.bool_]) -> tuple[float, int]:
        at = np.flatnonzero(alike)
        chances = np.where(tested[at], _chances(every[at]), 1.0)
        return float(chances.min()), int(at[chances.argmin()])

    for tested, others in ((np.ones_like(alike), True), (compared, False)):
        while (found := widest(tested))[0] * (alike.sum() if others else 1) < CHECK:
            alike[found[1]] = False
    count = int(alike.sum())
    total, freedom = float(np.square(_rest(every[alike])).sum()), (count - 1.0) * (seeds - 1)
    squares, compared = np.square(weights), alike[: len(weights)]
    parts = [(float(squares[compared].sum()) * total / freedom, freedom)]
    mean = every[alike].mean(0)
    for weight, row in zip(squares[~compared], values[~compared], strict=True):
        parts.append((float(weight) * float(np.var(row - mean, ddof=1)), seeds - 1.0))
    variance = sum(part for part, _ in parts)
    if len(parts) == 1 or not variance:
        return math.sqrt(variance / seeds), freedom, f"pooled over {count} rows"
    degrees = variance**2 / sum(part**2 / of for part, of in parts)
    return math.sqrt(variance / seeds), degrees, "Welch"


def _rest(values: Floats) -> Floats:
    """What rows and seeds leave of values (rows, seeds)."""
    return np.asarray(values - values.mean(0) - values.mean(1, keepdims=True) + values.mean())


def _chances(values: Floats) -> Floats:
    """That each row varies so much more than the others by luck; 1 where too few are left."""
    count, each = len(values), values.shape[1] - 1
    # Of a row against the mean of the others, in units of one row's variance.
    apart = np.square(_rest(values)).sum(1) * count / (count - 1)
    total, others = float(apart.sum()) * (count - 1) / count, each * (count - 2)
    if others <= 0 or not total:
        return np.ones(count)
    with np.errstate(divide="ignore"):
        ratios = apart / each / (np.maximum(total - apart, 0.0) / others)
    return np.asarray(special.fdtrc(each, others, ratios))


def image_noise(sums: Floats, squares: Floats, total: Floats) -> tuple[float, float]:
    """Variance of a mean from the images that all seeds share, and the least that seeds add.

    Args:
        sums: of a contrast of correctness over the images, by seed.
        squares: the same of its squares.
        total: of the contrast over the seeds, by image.

    Returns:
        Both in squared points; the second is of one seed's mean.
    """
    seeds, images = len(sums), len(total)
    each = 1e4 * float(np.mean(squares - sums**2 / images)) / (images - 1)
    mean = 1e4 * float(np.var(total, ddof=1)) / seeds**2
    common = (seeds * mean - each) / (seeds - 1)
    return max(0.0, common) / images, max(0.0, each - common) / images


def of_values(
    found: Estimate, seeds: Collection[int] = (), declared: Collection[int] = ()
) -> Noise | None:
    """The noise of a mean of which nothing is known but its values; None without a spread."""
    if not found.deviation:
        return None
    error = found.deviation / math.sqrt(found.n)
    return Noise(error, found.n - 1, 0.0, found.n, "paired").looked(seeds, declared)


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


def more_seeds(noise: Noise, distance: float, alpha: float = ALPHA) -> Seeds:
    """How many more seeds find a difference ``distance`` away from the margin, in 4 of 5 cases.

    ``alpha`` is the level of the test that is to find it.

    Returns:
        About so many, and the fewest and most: if the distance were a standard error larger or
        smaller. None where it takes more than ``MOST_SEEDS``.
    """
    about, error = abs(distance), noise.error
    far, near = (_needed(noise, one, alpha) for one in (about + error, about - error))
    return _needed(noise, about, alpha), far, near


def more_runs(count: int, of: int, alpha: float) -> Seeds | None:
    """About how many more runs, of which the same share ends so, tell it from one half at a level.

    None where no number would.
    """
    for runs in range(of + 1, MOST_SEEDS + 1):
        if stats.binomtest(round(count / of * runs), runs, 0.5).pvalue <= alpha:
            return runs - of, None, None
    return None


@functools.lru_cache(maxsize=4096)
def _needed(noise: Noise, distance: float, alpha: float) -> int | None:
    if distance <= 0:
        return None

    always = BESIDE if noise.looks is None else noise.looks

    def finds(seeds: int, looks: float | None = always) -> bool:
        degrees, less = noise.freedom / (noise.seeds - 1), math.sqrt(noise.seeds / seeds)
        later = replace(
            noise, seed=noise.seed * less, least=noise.least * less, seeds=seeds,
            freedom=degrees * (seeds - 1), looks=looks,
        )  # fmt: skip
        error = later.error
        return bool(error == 0 or special.ndtr((distance - later.edge(alpha)) / error) >= POWER)

    # The declared seeds have the narrow interval.
    found = [one for one in (noise.declared,) if one is not None and finds(one, None)]
    if finds(MOST_SEEDS):
        low, high = noise.seeds + 1, MOST_SEEDS
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if finds(middle) else (middle + 1, high)
        found.append(low)
    return min(found) - noise.seeds if found else None
