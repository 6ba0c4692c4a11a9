"""The article's findings as inequalities between rows, and what the collected runs say of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.contrasts import compare, mismatches
from lsa_study.analysis.notes import MEANING
from lsa_study.analysis.rows import COSTS, Row, rows_of
from lsa_study.analysis.statistics import (
    MOST_SEEDS,
    Estimate,
    pooled_deviation,
    rounded,
    seeds_needed,
    signed,
    t_interval,
)
from lsa_study.config import layers, shipped, yaml
from lsa_study.config import study as studies
from lsa_study.config.contrast import differing_rows, under
from lsa_study.config.settings import Tier
from lsa_study.config.study import Study

Word = Literal["supported", "contradicted", "unresolved", "not run"]
UNITS: Mapping[str, str] = {
    "acc1": "points",
    "params": "% parameters",
    "macs": "% multiply-adds",
    "speed": "% images a second",
    "ends": "share of runs",
}
Side = tuple[Study, Row, Sequence[Estimate]]
"""One side of a claim: a study, its row, and the differences that all rows of the study show."""


class Claim(BaseModel):
    """One finding: ``rows`` stand in ``relation``, by ``metric``, with ``margin``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    text: str
    source: str
    """Where the article says so."""
    rows: list[str] = Field(min_length=1, max_length=2)
    """``study/variant``; the first is the one that is said to be above."""
    relation: Literal["above", "within", "ends"]
    metric: Literal["acc1", "params", "macs", "speed"] = "acc1"
    margin: float | int = 0.0
    """Points for acc1, else percent of the second row."""
    outcome: Literal["diverged", "oom"] | None = None
    besides: list[str] = []
    """Settings that may differ beside the factor, where the claim compares whole networks."""
    tiers: list[Tier] = Field(default=list(studies.TIERS), min_length=1)
    """Where the claim has a meaning."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = (1, True) if self.relation == "ends" else (2, False)
        if (len(self.rows), self.outcome is not None) != wanted:
            raise ValueError("relation 'ends' takes one row and an outcome, the others two rows")
        if self.relation == "within" and self.margin <= 0:
            raise ValueError(f"margin={self.margin}: 'within' needs one above 0")
        if bad := [row for row in self.rows if row.count("/") != 1]:
            raise ValueError(f"rows {bad}; write study/variant, such as table1/net7")
        if bad := [key for key in self.besides if key not in layers.known_paths()]:
            raise ValueError(f"besides {bad}: no such settings; give dotted paths")
        return self


class Claims(BaseModel):
    """The file of claims."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    claims: list[Claim]

    @classmethod
    def read(cls, path: Path | None = None) -> list[Claim]:
        """Read the claims; ``experiments/claims.yaml`` unless another file is given.

        Raises:
            ConfigError: all mistakes of the file at once.
        """
        document = yaml.read(path or shipped.find("experiments/claims.yaml"))
        return layers.validate(cls, document.data, document.where).claims


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

    def unresolved(self, needs: str) -> ClaimVerdict:
        """The same, left open until there is what it ``needs``."""
        return replace(self, word="unresolved", needs=needs)

    def decided(self, found: Estimate, noise: float | None = None) -> ClaimVerdict:
        """The verdict that follows from holding an interval against the claim's inequality.

        above: supported once the whole interval lies above the margin, contradicted once it lies
        below. within: supported once it lies inside ±margin, contradicted once it lies outside.
        ``noise`` is the deviation between seeds seen in other rows, for rows with a single seed.
        """
        if found.mean is None:
            return self.unresolved("no seed in common")
        relation, margin = self.claim.relation, float(self.claim.margin)
        word: Word = "unresolved"
        if found.low is not None and found.high is not None:
            supported, contradicted = found.low > margin, found.high < margin
            if relation == "within":
                supported = -margin < found.low and found.high < margin
                contradicted = found.low > margin or found.high < -margin
            word = "supported" if supported else "contradicted" if contradicted else "unresolved"
        numbers = replace(self, word=word, estimate=found)
        if word != "unresolved":
            return numbers
        if (spread := found.deviation or noise) is None:
            return numbers.unresolved("at least 2 more seeds")
        distance = found.mean - margin if relation == "above" else margin - abs(found.mean)
        if (seeds := seeds_needed(distance, spread)) is None:
            return numbers.unresolved(f"more than {MOST_SEEDS} seeds")
        more = max(1, seeds - found.n)
        return numbers.unresolved(f"about {more} more seed{'s' * (more > 1)}")

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        return self.claim.model_dump(exclude={"outcome", "besides", "tiers"}) | {
            "verdict": self.verdict,
            "estimate": rounded(self.estimate.mean),
            "low": rounded(self.estimate.low),
            "high": rounded(self.estimate.high),
            "n": self.estimate.n,
            "unit": UNITS.get(self.claim.relation, UNITS[self.claim.metric]),
            "paper": rounded(self.article),
            "reason": self.reason,
            "notes": list(self.notes),
        }


def judge_tier(
    results: Path, tier: str, *, path: Path | None = None, collected: Collected | None = None
) -> list[ClaimVerdict]:
    """Judge every claim by the finished runs of a tier.

    Studies are read as they were last asked for under ``results``; one that has no such tier, or
    is not there, leaves its claims ``not run``. Reads the runs unless ``collected`` holds them.
    """
    claims, runs = Claims.read(path), collected or collect(results, tier, update=True)
    sides: dict[str, Side] = {}
    for name in dict.fromkeys(row.split("/")[0] for claim in claims for row in claim.rows):
        if tier in studies.tiers_of(name):
            study = studies.load_study(name, tier=tier, recall=results)
            rows = rows_of(study, runs)
            shown = [row.contrast.difference for row in rows]
            sides |= {f"{study.name}/{row.variant}": (study, row, shown) for row in rows}
    return [_judge(claim, sides, tier) for claim in claims]


def _judge(claim: Claim, sides: Mapping[str, Side], tier: str) -> ClaimVerdict:
    rows = {name: sides[name][1] for name in claim.rows if name in sides}
    found = ClaimVerdict(claim)
    match [row.article.value for row in rows.values()]:
        case float(one), float(other) if claim.metric == "acc1":
            found = ClaimVerdict(claim, article=one - other)
    if tier not in claim.tiers:
        return replace(found, reason=f"has a meaning at tier {' and '.join(claim.tiers)} only")
    if absent := [name for name in claim.rows if name not in rows]:
        return replace(found, reason=f"{', '.join(absent)}: no such row at tier {tier}")
    if lacking := [name for name, row in rows.items() if not row.runs]:
        return replace(found, reason=f"{', '.join(lacking)}: not run")
    if claim.outcome is None:
        return _compared(found, *(sides[name] for name in claim.rows))
    (row,) = rows.values()
    ended = tuple(float(run.outcome == claim.outcome) for run in row.runs)
    count, total = sum(ended), len(ended)
    reason = f"{claim.outcome} {count:.0f}/{total}"
    found = replace(found, estimate=Estimate(ended, count / total), reason=reason)
    if 0 < count < total:
        return found.unresolved(reason)
    return replace(found, word="supported" if count else "contradicted")


def _compared(found: ClaimVerdict, one: Side, other: Side) -> ClaimVerdict:
    """Judge an inequality between two rows, over the seeds they share.

    Rows that differ in more than their studies' factors and the settings of ``besides`` are not
    compared. What does differ by ``besides`` stands in the notes.
    """
    claim = found.claim
    (study, ours, shown), (other_study, theirs, other_shown) = one, other
    factors = [*study.file.factor, *other_study.file.factor, "model.op", "seed"]
    pairs = differing_rows((study, ours.variant), (other_study, theirs.variant))
    differing = {key: pair for key, pair in pairs.items() if not under(key, factors)}
    if confounds := [key for key in differing if not under(key, claim.besides)]:
        return found.unresolved(f"the rows also differ in {', '.join(confounds)}")
    wanted = (f"{key} {a}, the other {b}" for key, (a, b) in differing.items())
    found = replace(found, notes=(*wanted, *mismatches(ours.runs, theirs.runs)))
    if claim.metric in ("params", "macs"):
        fact = COSTS["params_m" if claim.metric == "params" else "gmacs"].fact
        counts = [[n for run in row.runs if (n := fact(run))] for row in (ours, theirs)]
        if not all(counts):
            return replace(found, reason=f"no {claim.metric} known")
        percent = 100 * (counts[0][0] / counts[1][0] - 1)
        return found.decided(Estimate((percent,), percent, percent, percent))
    noise = pooled_deviation([*shown, *other_shown])
    return _compared_over_seeds(found, ours, theirs, noise)


def _compared_over_seeds(
    found: ClaimVerdict, ours: Row, theirs: Row, noise: float | None
) -> ClaimVerdict:
    ended = zip(found.claim.rows, (ours, theirs), strict=True)
    if unfinished := [f"{name}: {row.outcome}" for name, row in ended if not row.done]:
        return found.unresolved(", ".join(unfinished))
    if found.claim.metric == "speed":
        if len({run.device for run in (*ours.done, *theirs.done)}) > 1:
            return found.unresolved("the rows ran on different devices")
        seconds = {run.seed: run.seconds_per_epoch for run in theirs.done}
        times = [(run.seconds_per_epoch, seconds.get(run.seed)) for run in ours.done]
        return found.decided(t_interval([100 * (b / a - 1) for a, b in times if a and b]))
    return found.decided(
        compare(ours.done, theirs.done, (*ours.peers, *theirs.peers)).difference, noise
    )


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
    lines = [MEANING[tier], ""]
    for verdict in found:
        lines.append(f"{verdict.verdict:<34} {verdict.claim.id}: {verdict.claim.text}")
        if verdict.numbers:
            lines.append(f"{'':<34} {verdict.numbers}  [{verdict.claim.source}]")
    counts = Counter(verdict.word for verdict in found)
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    return "\n".join(lines)
