"""Compare a row with its reference: over shared seeds and over test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats

from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.statistics import LEVEL, Estimate, t_interval

NORMAL_EDGE = float(stats.norm.ppf(0.5 + LEVEL / 2))
"""Where the middle ``LEVEL`` of the normal distribution ends: 1.96."""


@dataclass(frozen=True)
class ByImage:
    """A difference judged on the test images alone: the noise of the test set, not of training.

    With one seed the images that changed sides decide (exact McNemar test, Agresti and Min's
    interval); with several, every image's mean difference over the seeds does.
    """

    images: int
    seeds: int
    difference: float
    """Points."""
    low: float
    high: float
    p: float
    """Two-sided."""
    gained: int
    """Images that only the row got right, over all seeds."""
    lost: int
    """Images that only the reference got right."""

    @property
    def noise(self) -> float:
        """Standard error of the difference from the finite test set, points."""
        return (self.high - self.low) / (2 * NORMAL_EDGE)


@dataclass(frozen=True)
class Contrast:
    """A row against its reference, over the seeds that both have an accuracy for."""

    seeds: tuple[int, ...]
    difference: Estimate
    """Of the paired differences, points; its interval is Student's over seeds."""
    runs: tuple[tuple[RunRecord, RunRecord], ...]
    """The row's and the reference's, by seed."""

    @cached_property
    def p(self) -> float | None:
        """Two-sided paired t test; None below two seeds or without any spread."""
        differences = self.difference.values
        # Accuracies are counts of images: differences equal to rounding have no spread to test.
        if len(differences) < 2 or np.ptp(differences) < 1e-9:
            return None
        return float(stats.ttest_1samp(differences, 0.0).pvalue)

    @cached_property
    def by_image(self) -> ByImage | None:
        """None if correctness by image is missing or the test sets differ."""
        return by_image(self.runs)


def compare(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Contrast:
    """Compare the finished runs of two rows over the seeds they share, which may be none."""
    one, other = ({run.seed: run for run in runs} for runs in (ours, theirs))
    seeds = tuple(sorted(one.keys() & other.keys()))
    pairs = tuple((one[seed], other[seed]) for seed in seeds)
    return Contrast(seeds, t_interval([a.accuracy - b.accuracy for a, b in pairs]), pairs)


def by_image(pairs: Sequence[tuple[RunRecord, RunRecord]]) -> ByImage | None:
    """Compare pairs of runs of equal seeds on the images of their common test set."""
    tests = {(run.data_fingerprint, run.correct_count) for pair in pairs for run in pair}
    images = tests.pop()[1] if len(tests) == 1 else None
    if images is None:
        return None
    one, other = (correct([pair[side] for pair in pairs]) for side in (0, 1))
    gained, lost = (int(np.count_nonzero(side)) for side in (one > other, one < other))
    if len(pairs) == 1:
        # Wald's interval with half an image added to each cell: Agresti and Min, "Simple improved
        # confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005).
        # It holds its level where Wald's own, with few images that change sides, does not.
        n, b, c = images + 2, gained + 0.5, lost + 0.5
        middle, half = (b - c) / n, NORMAL_EDGE * math.sqrt(b + c - (b - c) ** 2 / n) / n
        difference, p = (gained - lost) / images, mcnemar(gained, lost)
    else:
        each = (one.sum(0, dtype=np.int32) - other.sum(0, dtype=np.int32)) / len(pairs)
        difference = middle = float(each.mean())
        error = float(each.std(ddof=1)) / math.sqrt(images)
        half = NORMAL_EDGE * error
        p = float(2 * stats.norm.sf(abs(difference) / error)) if error else 1.0
    ends = (100 * difference, 100 * (middle - half), 100 * (middle + half))
    return ByImage(images, len(pairs), *ends, p, gained, lost)


def correct(runs: Sequence[RunRecord]) -> npt.NDArray[np.uint8]:
    """Which test images each run classified rightly, in the data set's order: (runs, images)."""
    packed = np.frombuffer(b"".join(run.correct or b"" for run in runs), np.uint8)
    count = runs[0].correct_count
    return np.unpackbits(packed.reshape(len(runs), -1), axis=1, count=count)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: were the images that changed sides a fair coin?"""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)
