"""The article's findings as inequalities between rows, and what the collected runs say of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.comparability import comparability, paired
from lsa_study.analysis.contrasts import Contrast, compare
from lsa_study.analysis.inference import holm, proportion, t_test
from lsa_study.analysis.notes import MEANING
from lsa_study.analysis.rows import COSTS, Row, rows_of
from lsa_study.analysis.statistics import LEVEL, Estimate, rounded, signed, t_interval
from lsa_study.config import layers, shipped, yaml
from lsa_study.config import study as studies
from lsa_study.config.contrast import beyond, under
from lsa_study.config.names import nearest
from lsa_study.config.settings import Tier
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

Word = Literal["supported", "contradicted", "unresolved", "not comparable", "no verdict", "not run"]
"""no verdict: what the toy tier gives, whose results are never evidence."""
DECIDED = ("supported", "contradicted")
NEAR = 10
"""So many more seeds at most make an open claim near to being decided."""
GROUPS: Mapping[str, str] = {
    "decided": "Decided",
    "near": f"Nearest to being decided: at most {NEAR} more seeds",
    "open": "Open",
    "not run": "Not run",
}
UNITS: Mapping[str, str] = {
    "acc1": "points",
    "params": "% parameters",
    "macs": "% multiply-adds",
    "speed": "% images a second",
    "ends": "share of runs",
}
Side = tuple[Study, Row]
"""One side of a claim."""


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
    """Of 'ends': how most runs of the row end."""
    control: str | None = None
    """Of 'ends': a row that must not end so, as study/variant."""
    precision: str | None = None
    """Of 'ends': the only precision of the runs that it is about."""
    device: str | None = None
    """Of 'ends': what the name of the device must hold, as its memory decides."""
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
        if self.relation != "ends" and (self.control or self.precision or self.device):
            raise ValueError("control, precision and device belong to relation 'ends'")
        if bad := [row for row in self.sides if row.count("/") != 1]:
            raise ValueError(f"rows {bad}; write study/variant, such as table1/net7")
        if bad := [key for key in self.besides if key not in layers.known_paths()]:
            raise ValueError(f"besides {bad}: no such settings; give dotted paths")
        return self

    @property
    def sides(self) -> list[str]:
        """Its rows, and the one that it is controlled by."""
        return [*self.rows, *([self.control] if self.control else [])]


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
    p: float | None = None
    """Chance of an estimate so far from what is decided against; None where nothing was tested."""
    adjusted: float | None = None
    """The same after Holm, over all claims that were tested."""
    plain: Word | None = None
    """The verdict before that."""
    comparable: str = ""
    """Why the rows cannot be compared, or what their verdict is marked with; empty if they can."""
    method: str = ""
    """How the estimate's error was found."""
    wanted: int | None = None
    """About how many more seeds would decide it."""

    @property
    def grouped(self) -> str:
        """Where the ledger lists it: decided, near, open or not run."""
        if self.word in DECIDED:
            return "decided"
        if self.word == "not run":
            return "not run"
        return "near" if self.wanted is not None and self.wanted <= NEAR else "open"

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
        tested = "" if self.p is None else f"; p = {self.p:.2g}"
        tested += "" if self.adjusted is None else f", {self.adjusted:.2g} after Holm"
        return f"{signed(found.mean, 2)}{interval} {UNITS[metric]}{seeds}{bound}{tested}"

    def unresolved(self, needs: str) -> ClaimVerdict:
        """The same, left open until there is what it ``needs``."""
        return replace(self, word="unresolved", needs=needs)

    def decided(self, found: Estimate, contrast: Contrast | None = None) -> ClaimVerdict:
        """The verdict that follows from holding an interval against the claim's inequality.

        above: supported once the whole interval lies above the margin, contradicted once it lies
        below. within: supported once it lies inside ±margin, contradicted once it lies outside.
        ``contrast`` tells its p value and how many more seeds would decide it.
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
        # The edge that the estimate is held against: of two, the nearer.
        edge = math.copysign(margin, found.mean) if relation == "within" else margin
        tested = contrast.p(edge) if contrast else t_test(found, edge)
        method = contrast.noise.shown if contrast and contrast.noise else ""
        made = replace(self, word=word, plain=word, estimate=found, p=tested, method=method)
        if word != "unresolved":
            return made
        if contrast is None or contrast.noise is None:
            return made.unresolved("at least 2 more seeds" if found.n < 2 else "more seeds")
        if (seeds := contrast.more_seeds(edge)) is None:
            return made.unresolved("no number of seeds would decide it")
        about, fewest, most = seeds
        span = f"{about if fewest is None else fewest} to {'any number' if most is None else most}"
        needs = f"about {about} more seed{'s' * (about > 1)}, {span}"
        return replace(made.unresolved(needs), wanted=about)

    def after_holm(self, adjusted: float | None, tested: int) -> ClaimVerdict:
        """The verdict that stands among so many claims that were tested together."""
        found = replace(self, adjusted=adjusted, plain=self.plain or self.word)
        if self.word not in DECIDED or adjusted is None or adjusted <= 1 - LEVEL:
            return found
        return found.unresolved(f"{self.word} alone, open among {tested} claims")

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        return self.claim.model_dump(
            exclude={"outcome", "besides", "tiers", "control", "precision", "device"}
        ) | {
            "verdict": self.verdict,
            "estimate": rounded(self.estimate.mean),
            "low": rounded(self.estimate.low),
            "high": rounded(self.estimate.high),
            "n": self.estimate.n,
            "unit": UNITS.get(self.claim.relation, UNITS[self.claim.metric]),
            "paper": rounded(self.article),
            "p": rounded(self.p, 6),
            "adjusted": rounded(self.adjusted, 6),
            "plain": self.plain or self.word,
            "comparable": self.comparable or True,
            "grouped": self.grouped,
            "method": self.method,
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
    for name in dict.fromkeys(row.split("/")[0] for claim in claims for row in claim.sides):
        if tier in studies.tiers_of(name):
            study = studies.load_study(name, tier=tier, recall=results)
            sides |= {f"{study.name}/{row.variant}": (study, row) for row in rows_of(study, runs)}
    found = [_judge(claim, sides, tier) for claim in claims]
    if tier == "toy":
        # A check of the pipeline is no evidence: numbers are shown, and nothing is judged.
        return [
            one if one.word == "not run" else replace(one, word="no verdict", plain="no verdict")
            for one in found
        ]
    adjusted = holm([one.p for one in found])
    tested = sum(p is not None for p in adjusted)
    return [one.after_holm(p, tested) for one, p in zip(found, adjusted, strict=True)]


def _judge(claim: Claim, sides: Mapping[str, Side], tier: str) -> ClaimVerdict:
    rows = {name: sides[name][1] for name in claim.sides if name in sides}
    found = ClaimVerdict(claim)
    match [row.article.value for row in rows.values()]:
        case float(one), float(other) if claim.metric == "acc1":
            found = ClaimVerdict(claim, article=one - other)
    if tier not in claim.tiers:
        return replace(found, reason=f"has a meaning at tier {' and '.join(claim.tiers)} only")
    if absent := [name for name in claim.sides if name not in rows]:
        return replace(found, reason=f"{', '.join(absent)}: no such row at tier {tier}")
    if lacking := [name for name, row in rows.items() if not row.runs]:
        return replace(found, reason=f"{', '.join(lacking)}: not run")
    if claim.outcome is None:
        return _compared(found, *(sides[name] for name in claim.rows))
    return _ended(found, rows[claim.rows[0]], rows.get(claim.control or ""))


def _ended(found: ClaimVerdict, row: Row, control: Row | None) -> ClaimVerdict:
    """Judge whether most runs of a row end so, and those of its control do not."""
    claim = found.claim
    count = sum(run.outcome == claim.outcome for run in row.runs)
    share = proportion(count, len(row.runs))
    reason = f"{claim.outcome} {count}/{len(row.runs)}"
    found = replace(found, estimate=share, reason=reason)
    other = [
        f"{name} {value}, the claim is about {wanted}"
        for name, wanted in (("precision", claim.precision), ("device", claim.device))
        for value in sorted({run.shown(name) for run in row.runs} - {wanted})
        if wanted is not None and (name == "precision" or wanted not in value)
    ]
    if other:
        return replace(found, word="not comparable", needs=other[0], comparable="; ".join(other))
    if control and any(run.outcome == claim.outcome for run in control.runs):
        return found.unresolved(f"{claim.control} {control.outcome}")
    p = float(stats.binomtest(count, len(row.runs), 0.5).pvalue)
    word: Word = "supported" if 2 * count > len(row.runs) else "contradicted"
    found = replace(found, word=word, plain=word, p=p, method="Clopper-Pearson against one half")
    return found if p <= 1 - LEVEL else replace(found.unresolved(reason), plain="unresolved")


def _compared(found: ClaimVerdict, one: Side, other: Side) -> ClaimVerdict:
    """Judge an inequality between two rows, over the seeds they share.

    Rows that differ in more than their studies' factors and the settings of ``besides`` are not
    compared. What does differ by ``besides`` stands in the notes.
    """
    claim = found.claim
    (study, ours), (other_study, theirs) = one, other
    sides = (study, ours.variant), (other_study, theirs.variant)
    differing = beyond(*sides)
    if confounds := [key for key in differing if not under(key, claim.besides)]:
        reason = f"the rows also differ in {', '.join(confounds)}"
        return replace(found, word="not comparable", needs=reason, comparable=reason)
    factors = {key for side, _ in sides for of in side.file.factors.values() for key in of}
    wanted = (f"{key} {a}, the other {b}" for key, (a, b) in differing.items())
    alike = comparability(paired(ours.runs, theirs.runs), explained=(*factors, *claim.besides))
    found = replace(found, notes=(*wanted, *alike.marked), comparable=alike.text)
    if alike.refused:
        return replace(found, word="not comparable", needs="; ".join(alike.refused))
    if claim.metric in ("params", "macs"):
        fact = COSTS["params_m" if claim.metric == "params" else "gmacs"].fact
        counts = [[n for run in row.runs if (n := fact(run))] for row in (ours, theirs)]
        if not all(counts):
            return replace(found, reason=f"no {claim.metric} known")
        percent = 100 * (counts[0][0] / counts[1][0] - 1)
        return found.decided(Estimate((percent,), percent, percent, percent))
    lost = [
        f"{name}: {row.lost}"
        for name, row in zip(claim.rows, (ours, theirs), strict=True)
        if row.ends
    ]
    if lost:
        return found.unresolved(", ".join(lost))
    if claim.metric == "speed":
        if len({run.device for run in (*ours.done, *theirs.done)}) > 1:
            return found.unresolved("the rows ran on different devices")
        seconds = {run.seed: run.seconds_per_epoch for run in theirs.done}
        times = [(run.seconds_per_epoch, seconds.get(run.seed)) for run in ours.done]
        return found.decided(t_interval([100 * (b / a - 1) for a, b in times if a and b]))
    declared = {*ours.declared} & {*theirs.declared}
    between = compare(ours.done, theirs.done, (*ours.peers, *theirs.peers), declared)
    if between.same:
        seeds = f"all {len(between.seeds)} seeds gave the same answers"
        return replace(found, estimate=between.difference).unresolved(f"{seeds}: no noise known")
    return found.decided(between.difference, between)


def of_study(found: Sequence[ClaimVerdict], study: str) -> list[ClaimVerdict]:
    """The claims that read a row of a study; they were tested together with all others.

    Raises:
        ConfigError: no claim is about it.
    """
    known = sorted({row.split("/")[0] for one in found for row in one.claim.sides})
    if study not in known:
        raise ConfigError(f"--study {study}: no claim is about it; {nearest(study, known)}")
    return [one for one in found if any(r.startswith(f"{study}/") for r in one.claim.sides)]


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
    if tier == "toy":
        lines.append("So no claim gets a verdict here; the numbers show what would be judged.")
    for group, title in GROUPS.items():
        listed = sorted(
            (one for one in found if one.grouped == group), key=lambda one: one.wanted or 0
        )
        lines += ["", f"{title} ({len(listed)})"] if listed else []
        for one in listed:
            mark = " †" if one.comparable and one.word in DECIDED else ""
            lines.append(f"{one.verdict + mark:<34} {one.claim.id}: {one.claim.text}")
            if one.numbers:
                lines.append(f"{'':<34} {one.numbers}  [{one.claim.source}]")
            lines += [f"{'':<34} † {note}" for note in one.notes if group != "not run"]
    counts = Counter(verdict.word for verdict in found)
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    return "\n".join(lines)
