"""The article's findings as inequalities between rows, and what the collected runs say of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from lsa_study.analysis.article import counts_in, network_key
from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.contrasts import mismatches
from lsa_study.analysis.ledger import Claim, Claims
from lsa_study.analysis.notes import MEANING
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.statistics import (
    LEVEL,
    MOST_SEEDS,
    Estimate,
    pooled_deviation,
    rounded,
    seeds_needed,
    signed,
    t_interval,
)
from lsa_study.config import study as studies
from lsa_study.config.contrast import differing_rows, under
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

Word = Literal["supported", "contradicted", "unresolved", "not comparable", "not run", "no verdict"]
OPEN: Word = "unresolved"
NEAR = 0.2
"""A plain p up to which an open claim is listed as near to a decision."""
GROUPS = ("decided", "near", "open", "not run")
HIDDEN = {
    "outcome", "besides", "tiers", "minus", "value", "control", "precision", "memory_gib",
}  # fmt: skip
UNITS: Mapping[str, str] = {
    "acc1": "points",
    "params": "% parameters",
    "macs": "% multiply-adds",
    "speed": "% images a second",
    "memory": "% memory",
    "ends": "share of runs",
}
Side = tuple[Study, Row, Sequence[Estimate]]
"""One side of a claim: a study, its row, and the differences that all rows of the study show."""


@dataclass(frozen=True)
class ClaimVerdict:
    """What the runs of a tier say of a claim, and what that rests on."""

    claim: Claim
    word: Word = "not run"
    estimate: Estimate = field(default_factory=Estimate)
    """First row minus second, points or percent of the second; for ends, the share that did."""
    needs: str = ""
    """What would resolve it."""
    reason: str = ""
    notes: tuple[str, ...] = ()
    """Differences of the environment that may stand behind the estimate."""
    p: float | None = None
    """Two-sided, against the nearest bound of the claim."""
    adjusted: float | None = None
    """``p`` after Holm's correction over all claims of the tier."""
    plain: str = "not run"
    """The verdict before that correction."""
    comparable: bool | str = True
    """True, or why its runs cannot decide it."""
    method: str = ""
    """How the interval was found."""
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings in which its rows differ, with both values."""
    article: float | None = None
    """The article's own difference, points; None where it prints none."""

    @property
    def verdict(self) -> str:
        """The verdict as it is shown, such as ``unresolved (about 4 more seeds)``."""
        return f"{self.word} ({self.needs})" if self.needs else self.word

    @property
    def numbers(self) -> str:
        """The numbers behind it in words, such as ``+0.57 [+0.33, +0.81] points, 3 seeds``."""
        found, metric, margin = self.estimate, self.claim.metric, self.claim.margin
        if found.mean is None or self.reason:
            return self.reason
        interval = f" [{signed(found.low, 2)}, {signed(found.high, 2)}]" if found.n > 1 else ""
        seeds = f", {found.n} seed{'s' * (found.n != 1)}" if metric in ("acc1", "speed") else ""
        bound = f"; margin {signed(margin, 2)}" if margin else ""
        return f"{signed(found.mean, 2)}{interval} {UNITS[metric]}{seeds}{bound}"

    @property
    def grouped(self) -> str:
        """Where a ledger lists it: decided, near, open or not run.

        near: decided before Holm's correction, or a plain p of at most ``NEAR``.
        """
        if self.word == "not run":
            return "not run"
        if self.word in ("supported", "contradicted"):
            return "decided"
        near = self.word == OPEN and self.p is not None and self.p <= NEAR
        return "near" if near else "open"

    def adjust(self, adjusted: float | None) -> ClaimVerdict:
        """The same, decided by the p that Holm adjusted; a count of costs has none."""
        found = replace(self, adjusted=adjusted, plain=self.word)
        if adjusted is None or adjusted <= 1 - LEVEL or self.word == OPEN:
            return found
        return found.unresolved(f"p = {self.p:.2g} alone, {adjusted:.2g} among all claims")

    def incomparable(self, reason: str) -> ClaimVerdict:
        """The same, refused, and why."""
        return replace(self, word="not comparable", comparable=reason, reason=reason)

    def without_verdict(self) -> ClaimVerdict:
        """The same at a tier that is never evidence: what would be judged, and no verdict."""
        reason = self.needs if self.estimate.mean is None else self.reason
        word: Word = "no verdict"
        return replace(self, word=word, plain=word, needs="", reason=reason or self.reason)

    def unresolved(self, needs: str) -> ClaimVerdict:
        """The same, left open until there is what it ``needs``."""
        return replace(self, word=OPEN, needs=needs)

    def decided(self, found: Estimate, noise: float | None = None) -> ClaimVerdict:
        """The verdict that follows from holding an interval against the claim's inequality.

        above: supported once the whole interval lies above the margin, contradicted once it lies
        below. within: supported once it lies inside ±margin, contradicted once it lies outside.
        ``noise`` is the deviation between seeds seen in other rows, for rows with a single seed.
        """
        if found.mean is None:
            return self.unresolved("no seed in common")
        relation, margin = self.claim.relation, float(self.claim.margin)
        middle = float(self.claim.value) if relation == "near" else 0.0
        edges = (margin,) if relation == "above" else (middle - margin, middle + margin)
        word: Word = OPEN
        if found.low is not None and found.high is not None:
            supported, contradicted = found.low > edges[0], found.high < edges[0]
            if len(edges) > 1:
                supported = supported and found.high < edges[1]
                contradicted = contradicted or found.low > edges[1]
            word = "supported" if supported else "contradicted" if contradicted else OPEN
        if found.n > 1:
            if not found.half:
                return replace(self, estimate=found).unresolved("equal differences at every seed")
            # An interval leaves out both edges, or the nearer one, exactly as the larger p says.
            p = max(float(stats.ttest_1samp(found.values, edge).pvalue) for edge in edges)
            self = replace(self, p=p, method=self.method or "paired")
        numbers = replace(self, word=word, estimate=found)
        if word != OPEN:
            return numbers
        if (spread := found.deviation or noise) is None:
            return numbers.unresolved("at least 2 more seeds")
        distance = min(abs(found.mean - edge) for edge in edges)
        if (seeds := seeds_needed(distance, spread)) is None:
            return numbers.unresolved(f"more than {MOST_SEEDS} seeds")
        more = max(1, seeds - found.n)
        return numbers.unresolved(f"about {more} more seed{'s' * (more > 1)}")

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        return self.claim.model_dump(exclude=HIDDEN) | {
            "verdict": self.verdict,
            "estimate": rounded(self.estimate.mean),
            "low": rounded(self.estimate.low),
            "high": rounded(self.estimate.high),
            "n": self.estimate.n,
            "unit": UNITS.get(self.claim.relation, UNITS[self.claim.metric]),
            "paper": rounded(self.article),
            "reason": self.reason,
            "notes": list(self.notes),
            "p": self.p,
            "adjusted": self.adjusted,
            "plain": self.plain,
            "comparable": self.comparable,
            "grouped": self.grouped,
            "method": self.method,
            "sequential": False,
            "differs": {key: list(both) for key, both in self.differs.items()},
        }


def judge_tier(
    results: Path,
    tier: str,
    *,
    path: Path | None = None,
    collected: Collected | None = None,
    only: Collection[str] | None = None,
) -> list[ClaimVerdict]:
    """Judge every claim by the finished runs of a tier.

    Studies are read as they were last asked for under ``results``; one that has no such tier, or
    is not there, leaves its claims ``not run``. Reads the runs unless ``collected`` holds them.
    ``only`` keeps the claims on rows of these studies, after all were corrected together.
    """
    claims, runs = Claims.read(path), collected or collect(results, tier, update=True)
    sides: dict[str, Side] = {}
    for name in dict.fromkeys(row.split("/")[0] for claim in claims for row in claim.every_row):
        if tier in _tiers(name):
            study = studies.load_study(name, tier=tier, recall=results)
            rows = rows_of(study, runs)
            shown = [row.contrast.difference for row in rows]
            sides |= {f"{study.name}/{row.variant}": (study, row, shown) for row in rows}
    found = corrected([_judge(claim, sides, tier) for claim in claims])
    if tier == "toy":
        found = [one if one.word == "not run" else one.without_verdict() for one in found]
    kept = [v for v in found if not only or {r.split("/")[0] for r in v.claim.every_row} & {*only}]
    return kept


def _tiers(name: str) -> Sequence[str]:
    """Tiers of a study; none for one that is not there, whose claims stay ``not run``."""
    try:
        return studies.tiers_of(name)
    except ConfigError:
        return ()


def corrected(found: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """Decide by Holm's adjusted p over all claims that were tested together."""
    tested = sorted((one.p, at) for at, one in enumerate(found) if one.p is not None)
    adjusted: dict[int, float] = {}
    most = 0.0
    for rank, (p, at) in enumerate(tested):
        most = adjusted[at] = max(most, min(1.0, (len(tested) - rank) * p))
    return [one.adjust(adjusted.get(at)) for at, one in enumerate(found)]


def _judge(claim: Claim, sides: Mapping[str, Side], tier: str) -> ClaimVerdict:
    rows = {name: sides[name][1] for name in claim.every_row if name in sides}
    found = ClaimVerdict(claim)
    match [rows[name].article.value for name in claim.rows if name in rows]:
        case float(one), float(other) if claim.metric == "acc1":
            found = ClaimVerdict(claim, article=one - other)
    if claim.metric in ("params", "macs") and tier != "toy":
        return _counted(found)
    if tier not in claim.tiers:
        reason = f"has a meaning at tier {' and '.join(claim.tiers)} only"
        if claim.outcome and any(row.runs for row in rows.values()):
            return found.incomparable(reason)
        return replace(found, reason=reason)
    if absent := [name for name in claim.every_row if name not in rows]:
        return replace(found, reason=f"{', '.join(absent)}: no such row at tier {tier}")
    if lacking := [name for name, row in rows.items() if not row.runs]:
        return replace(found, reason=f"{', '.join(lacking)}: not run")
    if claim.outcome is None:
        return _compared(found, sides)
    return _ended(found, rows)


def _ended(found: ClaimVerdict, rows: Mapping[str, Row]) -> ClaimVerdict:
    """Judge how runs end: their share against one half, by Clopper and Pearson's interval."""
    claim = found.claim
    row = rows[claim.rows[0]]
    ended = tuple(float(run.outcome == claim.outcome) for run in row.runs)
    count, total = int(sum(ended)), len(ended)
    exact = stats.binomtest(count, total)
    ends = exact.proportion_ci(LEVEL, method="exact")
    share = Estimate(ended, count / total, float(ends.low), float(ends.high))
    reason = f"{claim.outcome} {count}/{total}"
    found = replace(found, estimate=share, reason=reason, method="Clopper-Pearson")
    used = {run.precision for run in row.runs}
    if claim.precision and used != {claim.precision}:
        shown = " and ".join(sorted(str(one or "unknown") for one in used))
        return found.incomparable(f"precision {shown}; the claim is about {claim.precision}")
    if claim.memory_gib:
        sizes = {getattr(run, "device_memory_bytes", None) for run in row.runs}
        if any(size is None or round(size / 2**30) != claim.memory_gib for size in sizes):
            wanted = f"{claim.memory_gib} GiB"
            return found.incomparable(
                f"device memory unknown or other; the claim is about {wanted}"
            )
    if claim.control and any(run.outcome == claim.outcome for run in rows[claim.control].runs):
        return found.unresolved(f"the control {claim.control}: {claim.outcome} too")
    word: Word = "supported" if ends.low > 0.5 else "contradicted" if ends.high < 0.5 else OPEN
    found = replace(found, p=float(exact.pvalue), word=word)
    return found.unresolved(reason) if word == OPEN else found


def _counted(found: ClaimVerdict) -> ClaimVerdict:
    """Judge parameters or multiply-adds by the counts of the paper tier's networks."""
    counts = []
    for name in found.claim.rows:
        stem, variant = name.split("/")
        if "paper" not in _tiers(stem):
            return replace(found, reason=f"{name}: no such row at tier paper")
        study = studies.load_study(stem, tier="paper")
        if variant not in study.variants:
            return replace(found, reason=f"{name}: no such row at tier paper")
        path = study.document.path.parent / "../results/benchmarks/costs.json"
        network = counts_in(path.resolve()).get(network_key(study.variants[variant]))
        if network is None:
            return replace(found, reason=f"{name}: not counted; run python benchmarks/costs.py")
        counts.append(network[found.claim.metric])
    percent = 100 * (counts[0] / counts[1] - 1)
    found = replace(found, notes=("counted on the paper tier's networks, without a run",))
    return replace(found, method="counted").decided(Estimate((percent,), percent, percent, percent))


def _compared(found: ClaimVerdict, sides: Mapping[str, Side]) -> ClaimVerdict:
    """Judge an inequality between two rows, or two differences, over the seeds they share.

    Rows that differ in more than their studies' factors and the settings of ``besides`` are not
    compared. What does differ by ``besides`` stands in the notes.
    """
    claim, notes, shown = found.claim, [], []
    differs: dict[str, tuple[Any, Any]] = {}
    for pair in filter(None, (claim.rows, claim.minus)):
        (study, ours, first), (other_study, theirs, second) = (sides[name] for name in pair)
        factors = [*study.file.factor, *other_study.file.factor, "model.op", "seed"]
        pairs = differing_rows((study, ours.variant), (other_study, theirs.variant))
        differs |= pairs
        differing = {key: both for key, both in pairs.items() if not under(key, factors)}
        if confounds := [key for key in differing if not under(key, claim.besides)]:
            return found.unresolved(f"the rows also differ in {', '.join(confounds)}")
        notes += [f"{key} {a}, the other {b}" for key, (a, b) in differing.items()]
        notes += mismatches(ours.runs, theirs.runs)
        shown += [*first, *second]
    found = replace(found, notes=tuple(dict.fromkeys(notes)), differs=differs)
    return _over_seeds(found, sides, pooled_deviation(shown))


def _over_seeds(
    found: ClaimVerdict, sides: Mapping[str, Side], noise: float | None
) -> ClaimVerdict:
    claim = found.claim
    named = {name: sides[name][1] for name in claim.every_row}
    lost = [
        f"{name}: {count} of {len(row.runs)} {end}"
        for name, row in named.items()
        for end, count in row.ends.items()
    ]
    if lost:
        return found.unresolved(", ".join(lost))
    ours, theirs = (named[name] for name in claim.rows)
    if claim.metric in ("speed", "memory"):
        if len({run.device for run in (*ours.done, *theirs.done)}) > 1:
            return found.unresolved("the rows ran on different devices")
        fact = "seconds_per_epoch" if claim.metric == "speed" else "peak_memory_bytes"
        others = {run.seed: getattr(run, fact) for run in theirs.done}
        both = [(getattr(run, fact), others.get(run.seed)) for run in ours.done]
        ratios = [b / a if claim.metric == "speed" else a / b for a, b in both if a and b]
        return found.decided(t_interval([100 * (ratio - 1) for ratio in ratios]))
    by_seed = [{run.seed: run.accuracy for run in row.done} for row in named.values()]
    seeds = sorted(set.intersection(*(set(one) for one in by_seed)))
    signs = (1, -1, -1, 1)
    values = [sum(s * one[k] for s, one in zip(signs, by_seed, strict=False)) for k in seeds]
    return found.decided(t_interval(values), noise)


def claims_json(found: Sequence[ClaimVerdict], tier: str) -> dict[str, Any]:
    """All verdicts as data, with what the tier's results may be taken for."""
    return {
        "tier": tier,
        "caution": MEANING[tier],
        "counts": dict(Counter(verdict.word for verdict in found)),
        "claims": [verdict.as_json() for verdict in found],
    }


def claims_text(found: Sequence[ClaimVerdict], tier: str) -> str:
    """All verdicts as lines for a terminal."""
    lines = [MEANING[tier]]
    for group in GROUPS:
        among = [verdict for verdict in found if verdict.grouped == group]
        lines += ["", f"{group} ({len(among)})"] if among else []
        for verdict in among:
            lines.append(f"{verdict.verdict:<34} {verdict.claim.id}: {verdict.claim.text}")
            if verdict.numbers:
                lines.append(f"{'':<34} {verdict.numbers}  [{verdict.claim.source}]")
            if verdict.p is not None and verdict.adjusted is not None:
                among_all = f"{verdict.adjusted:.2g} among all claims"
                lines.append(f"{'':<34} {verdict.method}, p = {verdict.p:.2g}, {among_all}")
    counts = Counter(verdict.word for verdict in found)
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    return "\n".join(lines)
