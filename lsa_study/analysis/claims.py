"""The article's findings as inequalities between rows, and what the collected runs say of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsa_study.analysis import verdicts
from lsa_study.analysis.collect import Collected, refresh
from lsa_study.analysis.notes import MEANING
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.statistics import rounded
from lsa_study.analysis.verdicts import Judged, Side
from lsa_study.config import layers, yaml
from lsa_study.config import study as studies
from lsa_study.config.study import Study, Tier


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


@dataclass(frozen=True)
class Verdict:
    """What the runs of a tier say of a claim."""

    claim: Claim
    judged: Judged
    article: float | None = None
    """The article's own difference, points; None where it prints none."""

    @property
    def numbers(self) -> str:
        """What the verdict rests on, in words."""
        return self.judged.shown(self.claim.metric, self.claim.margin)

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        claim, judged = self.claim, self.judged
        return {
            "id": claim.id,
            "text": claim.text,
            "source": claim.source,
            "verdict": judged.verdict,
            "estimate": rounded(judged.estimate),
            "low": rounded(judged.low),
            "high": rounded(judged.high),
            "n": judged.n,
            "unit": verdicts.UNITS.get(claim.relation, verdicts.UNITS[claim.metric]),
            "relation": claim.relation,
            "metric": claim.metric,
            "margin": claim.margin,
            "rows": claim.rows,
            "paper": rounded(self.article),
            "reason": judged.reason,
            "notes": list(judged.notes),
        }


def read(path: Path | None = None) -> list[Claim]:
    """Read the claims; ``experiments/claims.yaml`` unless another file is given.

    Raises:
        ConfigError: all mistakes of the file at once.
    """
    path = path or studies.repository_folder("experiments") / "claims.yaml"
    document = yaml.read(path)
    return layers.validate(Claims, document.data, document.where).claims


def judge_tier(
    results: Path, tier: str, *, path: Path | None = None, collected: Collected | None = None
) -> list[Verdict]:
    """Judge every claim by the finished runs of a tier.

    Studies are read as they were last asked for under ``results``; one that has no such tier, or
    is not there, leaves its claims ``not run``. Reads the runs unless ``collected`` holds them.
    """
    claims = read(path)
    loaded = []
    for name in dict.fromkeys(row.split("/")[0] for claim in claims for row in claim.rows):
        if tier in studies.tiers_of(name):
            loaded.append(studies.load(name, tier=tier, recall=results))
    return judge(claims, loaded, collected or refresh(results, tier), tier)


def judge(
    claims: Sequence[Claim], loaded: Sequence[Study], collected: Collected, tier: str
) -> list[Verdict]:
    """Judge claims by collected runs; rows of studies that are not given count as not run."""
    sides: dict[str, Side] = {}
    for study in loaded:
        rows = rows_of(study, collected)
        sides |= {f"{study.name}/{row.variant}": Side(study, row, rows) for row in rows}
    return [_judge(claim, sides, tier) for claim in claims]


def _judge(claim: Claim, sides: Mapping[str, Side], tier: str) -> Verdict:
    chosen = [sides[row] for row in claim.rows if row in sides]
    if tier not in claim.tiers:
        reason = f"has a meaning at tier {' and '.join(claim.tiers)} only"
    elif absent := [row for row in claim.rows if row not in sides]:
        reason = f"{', '.join(absent)}: no such row at tier {tier}"
    elif lacking := [side.name for side in chosen if not side.row.runs]:
        reason = f"{', '.join(lacking)}: not run"
    else:
        reason = ""
    if reason:
        judged = Judged("not run", reason=reason)
    elif claim.outcome is not None:
        judged = verdicts.ends(chosen[0], claim.outcome)
    else:
        one, other = chosen
        judged = verdicts.compared(
            one, other, claim.metric, claim.relation, float(claim.margin), claim.besides
        )
    printed = [side.row.article.value for side in chosen]
    if claim.metric != "acc1" or len(printed) != 2 or printed[0] is None or printed[1] is None:
        return Verdict(claim, judged)
    return Verdict(claim, judged, printed[0] - printed[1])


def as_json(found: Sequence[Verdict], tier: str) -> dict[str, Any]:
    """All verdicts as data, with what the tier's results may be taken for."""
    return {
        "tier": tier,
        "caution": MEANING[tier],
        "counts": dict(Counter(verdict.judged.word for verdict in found)),
        "claims": [verdict.as_json() for verdict in found],
    }


def as_text(found: Sequence[Verdict], tier: str) -> str:
    """All verdicts as lines for a terminal."""
    lines = [MEANING[tier], ""]
    for verdict in found:
        lines.append(f"{verdict.judged.verdict:<34} {verdict.claim.id}: {verdict.claim.text}")
        if verdict.numbers:
            lines.append(f"{'':<34} {verdict.numbers}  [{verdict.claim.source}]")
    counts = Counter(verdict.judged.word for verdict in found)
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    return "\n".join(lines)
