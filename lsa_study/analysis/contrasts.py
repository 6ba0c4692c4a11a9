"""Compare a row with its reference: over shared seeds and over test images."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats

from lsa_study.analysis import inference
from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.inference import ALPHA, NORMAL_EDGE, Noise, Seeds
from lsa_study.analysis.statistics import Estimate

FEW = 8
"""Rows whose pairs are looked at one by one."""


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
    """A weighted sum of rows, such as a row minus its reference, over the seeds that all have."""

    seeds: tuple[int, ...]
    difference: Estimate
    """Of the sums by seed, points; its interval holds the noise of seeds, and of the test images
    where ``noise`` knows that."""
    runs: tuple[tuple[RunRecord, ...], ...]
    """Those of every row, by seed."""
    noise: Noise | None = None
    """None below two seeds."""

    def p(self, value: float = 0.0) -> float | None:
        """Two-sided, against a true difference of ``value`` points; None below two seeds."""
        if self.noise is None or self.difference.mean is None:
            return None
        return self.noise.p(self.difference.mean - value)

    def more_seeds(self, value: float, alpha: float = ALPHA) -> Seeds | None:
        """How many more seeds would tell the difference from ``value``; see ``inference``."""
        if self.noise is None or self.difference.mean is None:
            return None
        return inference.more_seeds(self.noise, self.difference.mean - value, alpha)

    @cached_property
    def same(self) -> bool:
        """Whether all seeds gave the same answers, so that nothing is known of their noise."""
        rows = list(zip(*self.runs, strict=True))
        return len(self.seeds) > 1 and all(
            len({(run.accuracy, run.correct) for run in row}) == 1 for row in rows
        )

    @cached_property
    def by_image(self) -> ByImage | None:
        """None if correctness by image is missing, the test sets differ, or it is no pair."""
        pairs = [(of[0], of[1]) for of in self.runs if len(of) == 2]
        return by_image(pairs) if pairs else None


def compare(
    ours: Sequence[RunRecord],
    theirs: Sequence[RunRecord],
    pool: Sequence[Sequence[RunRecord]] = (),
    declared: Collection[int] = (),
) -> Contrast:
    """Compare the finished runs of two rows over the seeds they share, which may be none."""
    return contrast(((1.0, ours), (-1.0, theirs)), pool, declared)


def contrast(
    terms: Sequence[tuple[float, Sequence[RunRecord]]],
    pool: Sequence[Sequence[RunRecord]] = (),
    declared: Collection[int] = (),
) -> Contrast:
    """Add up rows with weights whose sum is 0, over the seeds that all of them have.

    Args:
        terms: each a weight and a row's finished runs.
        pool: the finished runs of all rows of the studies concerned; those with the same seeds
            tell how much accuracies vary.
        declared: the seeds that were said to be the study's before it ran, if they were.
    """
    added: dict[int, tuple[float, Sequence[RunRecord]]] = {}
    for at, (weight, row) in enumerate(terms):  # a row that is named twice is one row
        key = id(row) if row else at
        added[key] = weight + added.get(key, (0.0, row))[0], row
    terms = [term for term in added.values() if term[0]]
    weights = [weight for weight, _ in terms]
    by_seed = [{run.seed: run for run in runs} for _, runs in terms]
    seeds = tuple(sorted(set.intersection(*(set(one) for one in by_seed))))
    runs = tuple(tuple(one[seed] for one in by_seed) for seed in seeds)
    sums = [sum(w * run.accuracy for w, run in zip(weights, of, strict=True)) for of in runs]
    if len(seeds) < 2:
        mean = sums[0] if sums else None
        return Contrast(seeds, Estimate(tuple(sums), mean), runs)
    mine = {run.identity for _, row in terms for run in row}
    others: dict[str, list[float]] = {}
    for row in pool:
        known = {run.seed: run for run in row}
        if known.keys() >= {*seeds} and not mine & {run.identity for run in row}:
            others[known[seeds[0]].identity] = [known[seed].accuracy for seed in seeds]
    values = np.array([[run.accuracy for run in of] for of in runs]).T
    further = np.array(list(others.values())).reshape(-1, len(seeds))
    image, floor = _image_noise(weights, runs)
    seed, freedom, method = inference.seed_noise(weights, values, further)
    least = math.sqrt(floor / len(seeds))
    error = None if image is None else math.sqrt(image)
    noise = Noise(seed, freedom, error, len(seeds), method, least=least).looked(seeds, declared)
    mean = float(np.mean(sums))
    if not noise.edge(ALPHA):
        # Nothing varies and nothing says how coarse the counts are: their noise is unknown.
        return Contrast(seeds, Estimate(tuple(sums), mean), runs)
    return Contrast(seeds, Estimate(tuple(sums), mean, *noise.ends(mean)), runs, noise)


def _image_noise(
    weights: Sequence[float], runs: Sequence[tuple[RunRecord, ...]]
) -> tuple[float | None, float]:
    """Variance from the test images and the least from seeds, in squared points.

    Where correctness by image is not known, as if the rows' answers had nothing in common: more
    than there is. None: nothing is known of it.
    """
    if runs[0][0].metric != "acc1":
        return _noise_of_scores(weights, runs)
    tests = {(run.data_fingerprint, run.correct_count) for of in runs for run in of}
    if len(tests) == 1 and next(iter(tests))[1] is not None and len(weights) > FEW:
        # Pairs of rows would be too many.
        each = np.array([np.asarray(weights) @ correct(of) for of in runs])
        return inference.image_noise(each.sum(1), np.square(each).sum(1), each.sum(0))
    if len(tests) == 1 and next(iter(tests))[1] is not None:
        rows = [
            (w, row, _packed(row)) for w, row in zip(weights, zip(*runs, strict=True), strict=True)
        ]
        # Of packed bits: in a tenth of the time of one byte for each image.
        sums = np.sum([w * _ones(bits) for w, _, bits in rows], axis=0)
        squares = np.sum(
            [v * w * _ones(one & other) for v, _, one in rows for w, _, other in rows], axis=0
        )
        total = np.sum([w * _right(row) for w, row, _ in rows], axis=0)
        return inference.image_noise(sums, squares, total)
    images = min((run.test_images or 0 for of in runs for run in of), default=0)
    if not images:
        return None, 0.0
    shares = [np.mean([run.accuracy for run in row]) / 100 for row in zip(*runs, strict=True)]
    total = sum(w**2 * s * (1 - s) for w, s in zip(weights, shares, strict=True))
    # Accuracies are counts of images: a difference is not known better than to one of them.
    return 1e4 * float(total) / images, (100 / images) ** 2 / 6


def _noise_of_scores(
    weights: Sequence[float], runs: Sequence[tuple[RunRecord, ...]]
) -> tuple[float | None, float]:
    """The same of a metric that is known by image to first order, as mIoU is.

    Not of AP, which is no mean over images, nor where the scores of a run are missing.
    """
    known = [[run.image_scores for run in of] for of in runs]
    tests = {(run.data_fingerprint, len(run.image_scores or b"")) for of in runs for run in of}
    if len(tests) > 1 or not tests.pop()[1]:
        return None, 0.0
    each = np.array(
        [
            np.asarray(weights) @ [np.frombuffer(one or b"", np.float32) for one in of]
            for of in known
        ]
    )
    return inference.image_noise(each.sum(1), np.square(each).sum(1), each.sum(0))


def by_image(pairs: Sequence[tuple[RunRecord, RunRecord]]) -> ByImage | None:
    """Compare pairs of runs of equal seeds on the images of their common test set."""
    tests = {(run.data_fingerprint, run.correct_count) for pair in pairs for run in pair}
    images = tests.pop()[1] if len(tests) == 1 else None
    if images is None:
        return None
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    one, other = map(_packed, sides)
    gained, lost = (int(_ones(bits).sum()) for bits in (one & ~other, other & ~one))
    if len(pairs) == 1:
        # Wald's interval with half an image added to each cell: Agresti and Min, "Simple improved
        # confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005).
        # It holds its level where Wald's own, with few images that change sides, does not.
        n, b, c = images + 2, gained + 0.5, lost + 0.5
        middle, half = (b - c) / n, NORMAL_EDGE * math.sqrt(b + c - (b - c) ** 2 / n) / n
        difference, p = (gained - lost) / images, mcnemar(gained, lost)
    else:
        each = (_right(sides[0]) - _right(sides[1])) / len(pairs)
        difference = middle = float(each.mean())
        error = float(each.std(ddof=1)) / math.sqrt(images)
        half = NORMAL_EDGE * error
        p = float(2 * stats.norm.sf(abs(difference) / error)) if error else 1.0
    ends = (100 * difference, 100 * (middle - half), 100 * (middle + half))
    return ByImage(images, len(pairs), *ends, p, gained, lost)


def correct(runs: Sequence[RunRecord]) -> npt.NDArray[np.uint8]:
    """Which test images each run classified rightly, in the data set's order: (runs, images)."""
    packed = np.frombuffer(b"".join(run.correct or b"" for run in runs), np.uint8)
    return np.unpackbits(packed.reshape(len(runs), -1), axis=1, count=runs[0].correct_count)


def _right(runs: Sequence[RunRecord]) -> npt.NDArray[np.int32]:
    """How many of the runs classified each test image rightly."""
    return _counted(tuple(run.correct or b"" for run in runs), runs[0].correct_count)


@functools.lru_cache(maxsize=256)
def _counted(answers: tuple[bytes, ...], count: int | None) -> npt.NDArray[np.int32]:
    # Kept: a row is asked for by its own contrasts, by its reference's and by claims.
    packed = np.frombuffer(b"".join(answers), np.uint8).reshape(len(answers), -1)
    return np.asarray(np.unpackbits(packed, axis=1, count=count).sum(0, dtype=np.int32))


def _packed(runs: Sequence[RunRecord]) -> npt.NDArray[np.uint64]:
    """The answers of each run as bits of whole words, 0 beyond the last image."""
    count = runs[0].correct_count or 0
    packed = np.zeros((len(runs), -(-count // 64) * 8), np.uint8)
    answers = np.frombuffer(b"".join(run.correct or b"" for run in runs), np.uint8)
    packed[:, : -(-count // 8)] = answers.reshape(len(runs), -1)
    if count % 8:
        packed[:, count // 8] &= 0xFF << (8 - count % 8) & 0xFF
    return packed.view(np.uint64)


def _ones(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many bits of each row are set."""
    if hasattr(np, "bitwise_count"):  # from NumPy 2
        return np.asarray(np.bitwise_count(words).sum(1, dtype=np.int64))
    return np.asarray(np.unpackbits(words.view(np.uint8), axis=1).sum(1, dtype=np.int64))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: were the images that changed sides a fair coin?"""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)
