"""From two rows and an inequality to a verdict: supported, contradicted, unresolved, not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lsa_study.analysis import comparability
from lsa_study.analysis.contrasts import compare
from lsa_study.analysis.rows import COSTS, Row
from lsa_study.analysis.statistics import (
    MOST_SEEDS,
    Estimate,
    pooled_deviation,
    seeds_needed,
    signed,
    t_interval,
)
from lsa_study.config.contrast import differing_rows, under
from lsa_study.config.study import Study

Word = Literal["supported", "contradicted", "unresolved", "not run"]
UNITS: Mapping[str, str] = {
    "acc1": "points",
    "params": "% parameters",
    "macs": "% multiply-adds",
    "speed": "% images a second",
    "ends": "share of runs",
}


@dataclass(frozen=True)
class Side:
    """One side of a claim: a row, its study, and all rows of that study."""

    study: Study
    row: Row
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """How claims call it."""
        return f"{self.study.name}/{self.row.variant}"


@dataclass(frozen=True)
class Judged:
    """A verdict and what it rests on."""

    word: Word
    estimate: float | None = None
    """First row minus second, points or percent of the second; for ends, the share that did."""
    low: float | None = None
    high: float | None = None
    n: int = 0
    needs: str = ""
    """What would resolve it."""
    reason: str = ""
    notes: tuple[str, ...] = ()
    """Differences of the environment that may stand behind the estimate."""

    @property
    def verdict(self) -> str:
        """The verdict as it is shown, such as ``unresolved (about 4 more seeds)``."""
        return f"{self.word} ({self.needs})" if self.needs else self.word

    def shown(self, metric: str, margin: float) -> str:
        """The numbers behind it in words, such as ``+0.57 [+0.33, +0.81] points, 3 seeds``."""
        if self.estimate is None or self.reason:
            return self.reason
        interval = ""
        if self.low is not None and self.n > 1:
            interval = f" [{signed(self.low, 2)}, {signed(self.high, 2)}]"
        seeds = f", {self.n} seed{'s' * (self.n != 1)}" if metric in ("acc1", "speed") else ""
        bound = f"; margin {signed(margin, 2)}" if margin else ""
        return f"{signed(self.estimate, 2)}{interval} {UNITS[metric]}{seeds}{bound}"


def ends(side: Side, outcome: str) -> Judged:
    """Judge whether a row's runs end with an outcome: all do, none does, or some."""
    count, total = side.row.ends.get(outcome, 0), len(side.row.runs)
    reason = f"{outcome} {count}/{total}"
    share = count / total
    if 0 < count < total:
        return Judged("unresolved", share, n=total, needs=reason, reason=reason)
    return Judged("supported" if count else "contradicted", share, n=total, reason=reason)


def compared(
    one: Side, other: Side, metric: str, relation: str, margin: float, besides: Sequence[str] = ()
) -> Judged:
    """Judge an inequality between two rows, over the seeds they share.

    Rows that differ in more than their studies' factors and the settings of ``besides`` are not
    compared. What does differ by ``besides`` stands in the notes.
    """
    factors = [*one.study.file.factor, *other.study.file.factor, "model.op", "seed"]
    rows = ((one.study, one.row.variant), (other.study, other.row.variant))
    differing = {
        key: values for key, values in differing_rows(*rows).items() if not under(key, factors)
    }
    if confounds := [key for key in differing if not under(key, besides)]:
        return Judged("unresolved", needs=f"the rows also differ in {', '.join(confounds)}")
    wanted = (f"{key} {ours}, the other {theirs}" for key, (ours, theirs) in differing.items())
    notes = (*wanted, *comparability.environment_mismatches(one.row.runs, other.row.runs))
    found, noise = _estimate(one, other, metric), None
    if isinstance(found, Judged):
        return replace(found, notes=notes)
    if metric == "acc1":
        contrasts = [row.contrast for side in (one, other) for row in side.rows]
        noise = pooled_deviation(contrast.difference for contrast in contrasts if contrast)
    return replace(decide(found, relation, margin, noise), notes=notes)


def _estimate(one: Side, other: Side, metric: str) -> Estimate | Judged:
    """The first row's metric against the second's, or why there is none."""
    if metric in ("params", "macs"):
        cost = COSTS["params_m" if metric == "params" else "gmacs"]
        ours, theirs = (
            next((fact for run in side.row.runs if (fact := cost.fact(run)) is not None), None)
            for side in (one, other)
        )
        if ours is None or not theirs:
            return Judged("not run", reason=f"no {metric} known")
        percent = 100 * (ours / theirs - 1)
        return Estimate((percent,), percent, percent, percent)
    unfinished = [f"{side.name}: {side.row.outcome}" for side in (one, other) if not side.row.done]
    if unfinished:
        return Judged("unresolved", needs=", ".join(unfinished))
    if metric == "speed":
        if len({run.device for side in (one, other) for run in side.row.done}) > 1:
            return Judged("unresolved", needs="the rows ran on different devices")
        seconds = {run.seed: run.seconds_per_epoch for run in other.row.done}
        pairs = [(run.seconds_per_epoch, seconds.get(run.seed)) for run in one.row.done]
        found = t_interval([100 * (b / a - 1) for a, b in pairs if a and b])
    else:
        contrast = compare(one.row.done, other.row.done)
        found = contrast.difference if contrast else Estimate()
    return found if found.n else Judged("unresolved", needs="no seed in common")


def decide(found: Estimate, relation: str, margin: float, noise: float | None) -> Judged:
    """Hold an interval against an inequality.

    above: supported once the whole interval lies above the margin, contradicted once it lies
    below. within: supported once it lies inside ±margin, contradicted once it lies outside.
    ``noise`` is the deviation between seeds seen in other rows, for rows with a single seed.
    """
    assert found.mean is not None
    word: Word = "unresolved"
    if found.low is not None and found.high is not None:
        supported, contradicted = found.low > margin, found.high < margin
        if relation == "within":
            supported = -margin < found.low and found.high < margin
            contradicted = found.low > margin or found.high < -margin
        word = "supported" if supported else "contradicted" if contradicted else "unresolved"
    needs = ""
    if word == "unresolved":
        distance = found.mean - margin if relation == "above" else margin - abs(found.mean)
        needs = "at least 2 more seeds"
        if (spread := found.deviation or noise) is not None:
            seeds = seeds_needed(distance, spread)
            needs = f"more than {MOST_SEEDS} seeds"
            if seeds is not None:
                more = max(1, seeds - found.n)
                needs = f"about {more} more seed{'s' * (more > 1)}"
    return Judged(word, found.mean, found.low, found.high, found.n, needs)
