"""From two rows and an inequality to a verdict: supported, contradicted, unresolved, not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lsa_study.analysis import comparability
from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.contrasts import Contrast, compare
from lsa_study.analysis.power import MOST_SEEDS, pooled_noise, seeds_needed
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, signed, t_interval
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
    """One side of a claim: a row, its study, and all that is compared there."""

    study: Study
    row: Row
    compared: tuple[Contrast, ...] = ()

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


def not_run(reason: str) -> Judged:
    """Nothing can be said."""
    return Judged("not run", reason=reason)


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
    differing = _beside_the_factor(one, other)
    if confounds := [key for key in differing if not under(key, besides)]:
        return Judged("unresolved", needs=f"the rows also differ in {', '.join(confounds)}")
    wanted = (f"{key} {ours}, the other {theirs}" for key, (ours, theirs) in differing.items())
    notes = (*wanted, *comparability.environment_mismatches(one.row.runs, other.row.runs))
    if metric in ("params", "macs"):
        found = _counted(one.row, other.row, metric)
        judged = decide(found, relation, margin, None) if found else not_run(f"no {metric} known")
        return replace(judged, notes=notes)
    unfinished = [f"{side.name}: {side.row.outcome}" for side in (one, other) if not side.row.done]
    if unfinished:
        return Judged("unresolved", needs=", ".join(unfinished), notes=notes)
    if metric == "speed":
        if len({run.device for side in (one, other) for run in side.row.done}) > 1:
            return Judged("unresolved", needs="the rows ran on different devices", notes=notes)
        paired = _speeds(one.row, other.row)
    else:
        contrast = compare(one.row, other.row)
        paired = contrast.difference if contrast else t_interval([])
    if not paired.n:
        return Judged("unresolved", needs="no seed in common", notes=notes)
    noise = None if metric == "speed" else _noise(one, other)
    return replace(decide(paired, relation, margin, noise), notes=notes)


def decide(found: Estimate, relation: str, margin: float, noise: float | None) -> Judged:
    """Hold an interval against an inequality.

    above: supported once the whole interval lies above the margin, contradicted once it lies
    below. within: supported once it lies inside ±margin, contradicted once it lies outside.
    ``noise`` is the deviation between seeds seen in other rows, for rows with a single seed.
    """
    assert found.mean is not None
    if found.low is None or found.high is None:
        return _unresolved(found, relation, margin, noise)
    if relation == "above":
        supported, contradicted = found.low > margin, found.high < margin
    else:
        supported = -margin < found.low and found.high < margin
        contradicted = found.low > margin or found.high < -margin
    if not (supported or contradicted):
        return _unresolved(found, relation, margin, noise)
    word: Word = "supported" if supported else "contradicted"
    return Judged(word, found.mean, found.low, found.high, found.n)


def _unresolved(found: Estimate, relation: str, margin: float, noise: float | None) -> Judged:
    assert found.mean is not None
    distance = found.mean - margin if relation == "above" else margin - abs(found.mean)
    spread = _deviation(found) or noise
    needs = "at least 2 more seeds"
    if spread is not None:
        seeds = seeds_needed(distance, spread)
        more = None if seeds is None else max(1, seeds - found.n)
        needs = f"about {more} more seeds" if more else f"more than {MOST_SEEDS} seeds"
        needs = needs.replace("about 1 more seeds", "about 1 more seed")
    return Judged("unresolved", found.mean, found.low, found.high, found.n, needs)


def _deviation(found: Estimate) -> float | None:
    if found.n < 2 or found.mean is None:
        return None
    mean = found.mean
    variance = sum((value - mean) ** 2 for value in found.values) / (found.n - 1)
    return variance**0.5 or None


def _beside_the_factor(one: Side, other: Side) -> dict[str, tuple[Any, Any]]:
    factors = [*one.study.file.factor, *other.study.file.factor, "model.op", "seed"]
    rows = ((one.study, one.row.variant), (other.study, other.row.variant))
    return {key: values for key, values in differing_rows(*rows).items() if not under(key, factors)}


def _noise(one: Side, other: Side) -> float | None:
    return pooled_noise([*one.compared, *other.compared])


def _counted(one: Row, other: Row, metric: str) -> Estimate | None:
    ours, theirs = _cost(one.runs, metric), _cost(other.runs, metric)
    if ours is None or not theirs:
        return None
    percent = 100 * (ours / theirs - 1)
    return Estimate((percent,), percent, percent, percent)


def _cost(runs: Sequence[RunRecord], metric: str) -> int | None:
    known = (run.params if metric == "params" else run.macs for run in runs)
    return next((cost for cost in known if cost is not None), None)


def _speeds(one: Row, other: Row) -> Estimate:
    theirs = {run.seed: run.seconds_per_epoch for run in other.done}
    pairs = [(run.seconds_per_epoch, theirs.get(run.seed)) for run in one.done]
    return t_interval([100 * (b / a - 1) for a, b in pairs if a and b])


def shown(judged: Judged, metric: str, margin: float) -> str:
    """The numbers behind a verdict in words, such as ``+0.57 [+0.33, +0.81] points, 3 seeds``."""
    if judged.estimate is None:
        return judged.reason
    if judged.reason:
        return judged.reason
    interval = ""
    if judged.low is not None and judged.n > 1:
        interval = f" [{signed(judged.low, 2)}, {signed(judged.high, 2)}]"
    seeds = f", {judged.n} seed{'s' * (judged.n != 1)}" if metric in ("acc1", "speed") else ""
    bound = f"; margin {signed(margin, 2)}" if margin else ""
    return f"{signed(judged.estimate, 2)}{interval} {UNITS[metric]}{seeds}{bound}"
