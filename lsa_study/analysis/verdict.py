"""What runs or figures say of a claim: the verdict, what it rests on, and how it is shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from scipy import stats

from lsa_study.analysis.inference import ALPHA, Seeds, proportion
from lsa_study.analysis.notes import meaning
from lsa_study.analysis.statistics import MOST_SEEDS, Estimate, rounded, signed
from lsa_study.config.ledger import RULE, Claim
from lsa_study.config.names import nearest
from lsa_study.config.task import METRICS
from lsa_study.errors import ConfigError
from lsa_study.terminal import wrapped

Word = Literal["supported", "contradicted", "unresolved", "not comparable", "no verdict", "not run"]
"""no verdict: what the toy tier gives, whose results are never evidence."""
DECIDED = ("supported", "contradicted")
NEAR = 10
"""So many more seeds at most make an open claim near to being decided."""
UNITS: Mapping[str, str] = {
    "acc1": "points",
    "box_ap": "points of box AP",
    "mask_ap": "points of mask AP",
    "miou": "points of mIoU",
    "params": "% parameters",
    "macs": "% multiply-adds",
    "speed": "% images a second in training",
    "inference": "% images a second in inference",
    "memory": "% memory in training",
    "ends": "share of runs",
    "signs": "share of pairs",
}
GROUPS: Mapping[str, str] = {
    "decided": "Decided",
    "near": f"Nearest to being decided: at most {NEAR} more seeds",
    "open": "Open",
    "not run": "Not run",
}
HIDDEN = {"outcome", "besides", "tiers", "control", "precision", "device"}


@dataclass(frozen=True)
class Differing:
    """A setting in which two rows of a claim differ."""

    rows: tuple[str, str]
    setting: str
    values: tuple[Any, Any]


@dataclass(frozen=True)
class ClaimVerdict:
    """What the runs of a tier say of a claim, and what that rests on."""

    claim: Claim
    word: Word = "not run"
    estimate: Estimate = field(default_factory=Estimate)
    """First row minus second, points or percent of the second; for ends and signs, the share."""
    needs: str = ""
    """What would resolve it."""
    reason: str = ""
    notes: tuple[str, ...] = ()
    """What else may stand behind the estimate, or what it was measured with."""
    article: float | None = None
    """The same by the article's own numbers; None where it prints none."""
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
    sequential: bool = False
    """Its interval holds at every look, not only at the declared seeds."""
    overrides: tuple[str, ...] = ()
    """What its studies are about, where that is not the study itself."""
    wanted: int | None = None
    """About how many more seeds would decide it."""
    more: Callable[[float], Seeds | None] | None = field(default=None, compare=False, repr=False)
    """How many more seeds would decide it at a level."""
    differs: tuple[Differing, ...] = ()
    """All settings in which its rows differ."""
    family: str = ""
    """The study whose own claim it is, tested together with its others; empty: the article's."""

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
        found, claim = self.estimate, self.claim
        if found.mean is None or self.reason:
            return self.reason
        parts = [f"{signed(found.mean, 2)} {UNITS[claim.metric]}"]
        if found.low is not None and found.low != found.high:
            between = f"[{signed(found.low, 2)}, {signed(found.high, 2)}]"
            parts = [f"{signed(found.mean, 2)} {between} {UNITS[claim.metric]}"]
        if claim.metric in (*METRICS, "speed", "memory"):
            parts[0] += f", {found.n} seed{'s' * (found.n != 1)}"
        if claim.edges != (0.0,):
            parts.append(f"margin {' and '.join(signed(edge, 2) for edge in claim.edges)}")
        parts += [self.method] * bool(self.method)
        if self.p is not None:
            after = "" if self.adjusted is None else f", {self.adjusted:.2g} after Holm"
            parts.append(f"p = {self.p:.2g}{after}")
        return "; ".join(parts)

    def unresolved(self, needs: str) -> ClaimVerdict:
        """The same, left open until there is what it ``needs``."""
        return replace(self, word="unresolved", needs=needs)

    def refused(self, why: str) -> ClaimVerdict:
        """The same, not to be judged: its rows were not made alike."""
        return replace(self, word="not comparable", needs=why, comparable=why)

    def decided(
        self,
        found: Estimate,
        p: Callable[[float], float | None] = lambda _: None,
        more: Callable[[float, float], Seeds | None] | None = None,
        lacking: str = "more seeds",
    ) -> ClaimVerdict:
        """The verdict that follows from holding an interval against the claim's inequality.

        above: supported once the whole interval lies above the edge, contradicted once it lies
        below. within, near: supported once it lies between both, contradicted once it lies outside.

        Args:
            found: the estimate with its interval.
            p: of a test against a true value.
            more: how many more seeds would tell the estimate from a value at a level; None: not
                known.
            lacking: what would decide it where that is not known.
        """
        if found.mean is None:
            return self.unresolved("no seed in common")
        edges, mean = self.claim.edges, found.mean
        word: Word = "unresolved"
        if found.low is not None and found.high is not None:
            supported, contradicted = found.low > edges[0], found.high < edges[0]
            if len(edges) == 2:
                supported = supported and found.high < edges[1]
                contradicted = contradicted or found.low > edges[1]
            word = "supported" if supported else "contradicted" if contradicted else word
        # The edge that the estimate is held against: of two, the nearer.
        edge = min(edges, key=lambda one: abs(one - mean))
        at_level = partial(more, edge) if more else None
        made = replace(self, word=word, plain=word, estimate=found, p=p(edge), more=at_level)
        if word != "unresolved":
            return made
        return made.wanting(ALPHA) if more else made.unresolved(lacking)

    def wanting(self, alpha: float, but: str = "") -> ClaimVerdict:
        """The same, left open until there are as many more seeds as decide it at this level."""
        seeds = self.more(alpha) if self.more else None
        needs = in_seeds(seeds) if self.more else "more seeds"
        return replace(self.unresolved(but + needs), wanted=seeds[0] if seeds else None)

    def share(
        self,
        count: int,
        of: int,
        reason: str,
        against: str,
        more: Callable[[float], Seeds | None] | None = None,
    ) -> ClaimVerdict:
        """The verdict that follows from how many of so many did, held against one half.

        ``more``: how many more seeds would decide at a level, where seeds would.
        """
        p = float(stats.binomtest(count, of, 0.5).pvalue)
        word: Word = "supported" if 2 * count > of else "contradicted"
        word = word if p <= ALPHA else "unresolved"
        found = replace(
            self, word=word, plain=word, p=p, reason=reason, method=against,
            estimate=proportion(count, of), more=more,
        )  # fmt: skip
        if word != "unresolved":
            return found
        return found.wanting(ALPHA, f"{reason}; ") if more else found.unresolved(reason)

    def after_holm(self, adjusted: float | None, tested: int) -> ClaimVerdict:
        """The verdict that stands among so many claims that were tested together."""
        found = replace(self, adjusted=adjusted, plain=self.plain or self.word)
        if adjusted is None or (self.word in DECIDED and adjusted <= ALPHA):
            return found
        if self.word in DECIDED:
            alone = f"{self.word} alone, open among {tested} claims"
            return (
                found.wanting(ALPHA / tested, f"{alone}; ")
                if self.more
                else (found.unresolved(alone))
            )
        # Enough for Holm's first step, which the claim with the smallest p value has to pass.
        but = f"{self.reason}; " * bool(self.reason)
        return found.wanting(ALPHA / tested, but) if self.more else found

    def as_json(self) -> dict[str, Any]:
        """The verdict as data."""
        found = self.claim.model_dump(exclude=HIDDEN) | {
            "verdict": self.verdict,
            "estimate": rounded(self.estimate.mean),
            "low": rounded(self.estimate.low),
            "high": rounded(self.estimate.high),
            "n": self.estimate.n,
            "unit": UNITS.get(self.claim.relation, UNITS[self.claim.metric]),
            "paper": rounded(self.article),
            # Rounded to digits that tell: the smallest p are no 0.
            "p": self.p if self.p is None else float(f"{self.p:.4g}"),
            "adjusted": self.adjusted if self.adjusted is None else float(f"{self.adjusted:.4g}"),
            "plain": self.plain or self.word,
            "comparable": self.comparable or True,
            "grouped": self.grouped,
            "method": self.method,
            "sequential": self.sequential,
            "reason": self.reason,
            "notes": list(self.notes),
            "overrides": list(self.overrides),
            "differs": [
                {"rows": list(one.rows), "setting": one.setting, "values": list(one.values)}
                for one in self.differs
            ],
        }
        return {key: value for key, value in found.items() if key != "paper" or not self.family}

    def as_text(self) -> list[str]:
        """The verdict as lines for a terminal."""
        mark = " †" if self.comparable and self.word in DECIDED else ""
        lines = [f"{self.claim.id}: {self.verdict}{mark}"]
        source = f" [{self.claim.source}]" if self.claim.source else ""
        lines += [f"{self.claim.text}{source}", self.numbers]
        if differs := self.differing:
            lines.append(f"differ in {differs}")
        lines += [f"note: {self.claim.note}"] * bool(self.claim.note)
        lines += [f"† {note}" for note in self.notes]
        kept = [line for line in lines if line]
        return wrapped(kept[0], "  ", 6) + [w for line in kept[1:] for w in wrapped(line, "    ")]

    @property
    def differing(self) -> str:
        """The settings in which its rows differ; of layers of two kinds their names alone."""
        kinds = {one.rows for one in self.differs if one.setting == "model.op.kind"}
        found: dict[str, list[str]] = {}
        for one in self.differs:
            setting, layer = one.setting, one.setting.startswith("model.op.")
            if layer and one.rows in kinds:
                if setting != "model.op.kind":
                    continue
                setting = "layer"
            found.setdefault(setting, []).append(" against ".join(map(_shown, one.values)))
        return "; ".join(f"{key} ({', '.join(dict.fromkeys(of))})" for key, of in found.items())


def in_seeds(seeds: Seeds | None) -> str:
    """How many more seeds would decide, in words."""
    about, fewest, most = seeds or (None, None, None)
    if about is None:
        larger = f", {fewest} if it is a standard error larger" if fewest is not None else ""
        return f"more than {MOST_SEEDS} seeds if the difference is as estimated{larger}"
    span = f", {fewest} to {'any number' if most is None else most}" if fewest is not None else ""
    return f"about {about} more seed{'s' * (about > 1)}{span}"


def _shown(value: Any) -> str:
    """A setting's value as text for people."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "none" if value is None else str(value)


def families(found: Sequence[ClaimVerdict]) -> dict[str, list[ClaimVerdict]]:
    """Verdicts by the claims that were tested together: the article's, then each study's own."""
    return {
        family: [one for one in found if one.family == family]
        for family in dict.fromkeys(one.family for one in found)
    }


def of_study(found: Sequence[ClaimVerdict], study: str) -> list[ClaimVerdict]:
    """The claims that read a row of a study; they were tested together with all others.

    Raises:
        ConfigError: no claim is about it.
    """
    known = sorted({row.split("/")[0] for one in found for row in one.claim.sides})
    if study not in known and not any(one.family for one in found):
        raise ConfigError(f"--study {study}: no claim is about it; {nearest(study, known)}")
    return [
        one
        for one in found
        if one.family or any(r.startswith(f"{study}/") for r in one.claim.sides)
    ]


def claims_json(found: Sequence[ClaimVerdict], tier: str) -> dict[str, Any]:
    """All verdicts as data, with what the tier's results may be taken for."""
    article = not all(one.family for one in found)
    return {
        "tier": tier,
        "caution": meaning(tier, article=article),
        **({"margins": RULE} if article else {}),
        "counts": dict(Counter(verdict.word for verdict in found)),
        "claims": [verdict.as_json() for verdict in found],
    }


def claims_text(found: Sequence[ClaimVerdict], tier: str) -> str:
    """All verdicts as lines for a terminal: decided ones first, then those nearest to it."""
    return "\n\n".join(_family_text(family, of, tier) for family, of in families(found).items())


def _family_text(family: str, found: Sequence[ClaimVerdict], tier: str) -> str:
    counts = Counter(verdict.word for verdict in found)
    lines = [f"Claims of {family}"] if family else []
    lines += wrapped(meaning(tier, article=not family), further=0)
    for about in dict.fromkeys(about for one in found for about in one.overrides):
        lines += wrapped(about)
    if tier == "toy":
        lines += wrapped("So no claim gets a verdict here; the numbers show what would be judged.")
    lines += wrapped(RULE, further=0) if not family else []
    for group, title in GROUPS.items():
        listed = sorted(
            (one for one in found if one.grouped == group),
            key=lambda one: one.wanted or math.inf,
        )
        shown = "What would be judged" if (group, tier) == ("open", "toy") else title
        lines += ["", f"{shown} ({len(listed)})"] if listed else []
        if group != "not run":
            lines += [line for one in listed for line in one.as_text()]
            continue
        by_reason: dict[str, list[str]] = {}
        for one in listed:
            nothing = one.reason == f"{', '.join(one.claim.sides)}: not run"
            reason = "none of their rows was run" if nothing else one.reason
            by_reason.setdefault(reason, []).append(one.claim.id)
        for reason, ids in by_reason.items():
            lines += [*wrapped(f"{reason}:", "  "), *wrapped(", ".join(ids), "    ", 4)]
    return "\n".join([*lines, "", ", ".join(f"{n} {word}" for word, n in counts.items())])
