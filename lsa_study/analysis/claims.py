"""The article's findings as inequalities between rows, and what the collected runs say of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.contrasts import Contrast, compare, mismatches
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
Side = tuple[Study, Row, Sequence[Row]]
"""One side of a claim: a study, its row, and all rows of that study."""


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
        path = path or shipped.find("experiments/claims.yaml")
        document = yaml.read(path)
        return layers.validate(cls, document.data, document.where).claims


@dataclass(frozen=True)
class ClaimVerdict:
    """What the runs of a tier say of a claim, and what that rests on."""

    claim: Claim
    word: Word = "not run"
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
    article: float | None = None
    """The article's own difference, points; None where it prints none."""

    @property
    def verdict(self) -> str:
        """The verdict as it is shown, such as ``unresolved (about 4 more seeds)``."""
        return f"{self.word} ({self.needs})" if self.needs else self.word

    @property
    def numbers(self) -> str:
        """The numbers behind it in words, such as ``+0.57 [+0.33, +0.81] points, 3 seeds``."""
        if self.estimate is None or self.reason:
            return self.reason
        metric, margin, interval = self.claim.metric, self.claim.margin, ""
        if self.low is not None and self.n > 1:
            interval = f" [{signed(self.low, 2)}, {signed(self.high, 2)}]"
        seeds = f", {self.n} seed{'s' * (self.n != 1)}" if metric in ("acc1", "speed") else ""
        bound = f"; margin {signed(margin, 2)}" if margin else ""
        return f"{signed(self.estimate, 2)}{interval} {UNITS[metric]}{seeds}{bound}"

    def decided(self, found: Estimate, noise: float | None = None) -> ClaimVerdict:
        """The verdict that follows from holding an interval against the claim's inequality.

        above: supported once the whole interval lies above the margin, contradicted once it lies
        below. within: supported once it lies inside ±margin, contradicted once it lies outside.
        ``noise`` is the deviation between seeds seen in other rows, for rows with a single seed.
        """
        if found.mean is None:
            return replace(self, word="unresolved", needs="no seed in common")
        relation, margin = self.claim.relation, float(self.claim.margin)
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
        return replace(
            self, word=word, estimate=found.mean, low=found.low, high=found.high, n=found.n,
            needs=needs,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        claim = self.claim
        return {
            "id": claim.id,
            "text": claim.text,
            "source": claim.source,
            "verdict": self.verdict,
            "estimate": rounded(self.estimate),
            "low": rounded(self.low),
            "high": rounded(self.high),
            "n": self.n,
            "unit": UNITS.get(claim.relation, UNITS[claim.metric]),
            "relation": claim.relation,
            "metric": claim.metric,
            "margin": claim.margin,
            "rows": claim.rows,
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
            sides |= {f"{study.name}/{row.variant}": (study, row, rows) for row in rows}
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
    count, total = row.ends.get(claim.outcome, 0), len(row.runs)
    reason = f"{claim.outcome} {count}/{total}"
    found = replace(found, estimate=count / total, n=total, reason=reason)
    if 0 < count < total:
        return replace(found, word="unresolved", needs=reason)
    return replace(found, word="supported" if count else "contradicted")


def _compared(found: ClaimVerdict, one: Side, other: Side) -> ClaimVerdict:
    """Judge an inequality between two rows, over the seeds they share.

    Rows that differ in more than their studies' factors and the settings of ``besides`` are not
    compared. What does differ by ``besides`` stands in the notes.
    """
    claim = found.claim
    (study, ours, rows), (other_study, theirs, other_rows) = one, other
    factors = [*study.file.factor, *other_study.file.factor, "model.op", "seed"]
    pairs = differing_rows((study, ours.variant), (other_study, theirs.variant))
    differing = {key: pair for key, pair in pairs.items() if not under(key, factors)}
    if confounds := [key for key in differing if not under(key, claim.besides)]:
        needs = f"the rows also differ in {', '.join(confounds)}"
        return replace(found, word="unresolved", needs=needs)
    wanted = (f"{key} {a}, the other {b}" for key, (a, b) in differing.items())
    found = replace(found, notes=(*wanted, *mismatches(ours.runs, theirs.runs)))
    if claim.metric in ("params", "macs"):
        fact = COSTS["params_m" if claim.metric == "params" else "gmacs"].fact
        counts = [[n for run in row.runs if (n := fact(run))] for row in (ours, theirs)]
        if not all(counts):
            return replace(found, reason=f"no {claim.metric} known")
        percent = 100 * (counts[0][0] / counts[1][0] - 1)
        return found.decided(Estimate((percent,), percent, percent, percent))
    contrasts = [row.contrast for row in (*rows, *other_rows) if row.contrast]
    return _compared_over_seeds(found, ours, theirs, contrasts)


def _compared_over_seeds(
    found: ClaimVerdict, ours: Row, theirs: Row, contrasts: Sequence[Contrast]
) -> ClaimVerdict:
    ended = zip(found.claim.rows, (ours, theirs), strict=True)
    if unfinished := [f"{name}: {row.outcome}" for name, row in ended if not row.done]:
        return replace(found, word="unresolved", needs=", ".join(unfinished))
    if found.claim.metric == "speed":
        if len({run.device for run in (*ours.done, *theirs.done)}) > 1:
            needs = "the rows ran on different devices"
            return replace(found, word="unresolved", needs=needs)
        seconds = {run.seed: run.seconds_per_epoch for run in theirs.done}
        times = [(run.seconds_per_epoch, seconds.get(run.seed)) for run in ours.done]
        return found.decided(t_interval([100 * (b / a - 1) for a, b in times if a and b]))
    noise = pooled_deviation(contrast.difference for contrast in contrasts)
    contrast = compare(ours.done, theirs.done)
    return found.decided(contrast.difference if contrast else Estimate(), noise)


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
