"""Claims: findings as inequalities between rows, the article's and those of a study of your own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lsa_study.config import layers, shipped, yaml
from lsa_study.config.find import TIERS
from lsa_study.config.settings import Tier
from lsa_study.config.task import METRICS
from lsa_study.errors import ConfigError

RULE = (
    "Margins, by one rule: 0.3 points of accuracy, about twice the standard error of a paired "
    "difference on ImageNet's 50,000 images, and 10 % of costs. Similar, on par, equal: within "
    "the margin. Similar or better: above minus the margin. A printed size: within the margin of "
    "it. Better, more, faster: above 0."
)
"""Also at the head of ``experiments/claims.yaml``."""
C = TypeVar("C", bound="Claim")
Relation = Literal["above", "within", "near", "trend", "signs", "ends"]
Metric = Literal[
    "acc1", "box_ap", "mask_ap", "miou", "params", "macs", "speed", "inference", "memory"
]
ROWS = {"ends": (1, 1), "trend": (3, 99), "signs": (0, 0)}
"""How few and how many rows a relation takes; the others take two."""


class Claim(BaseModel):
    """One finding: ``rows`` stand in ``relation``, by ``metric``, with ``margin``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    SLASHES: ClassVar[tuple[int, ...]] = (1,)
    ROW: ClassVar[str] = "study/variant, such as table1/net7"

    id: str
    text: str
    source: str = ""
    """Where it is stated, such as a table of the article."""
    rows: list[str] = []
    """``study/variant``; the first is the one that is said to be above. Of 'trend': rising."""
    minus: list[str] = []
    """Two more rows: the claim is about the first difference less this one."""
    pairs: list[list[str]] = []
    """Of 'signs': the first of each is said to be above."""
    relation: Relation
    """What is said of the rows: above, within, near, trend, signs or ends."""
    metric: Metric = "acc1"
    """Accuracy, box AP, mask AP or mIoU, or a cost: params, macs, speed, memory or inference."""
    margin: float | int = 0.0
    """Points for accuracies, else percent of the second row."""
    value: float | int = 0.0
    """The printed difference: of 'near' what it lies near, of 'above' what it exceeds."""
    note: str = ""
    """What a reader must know of it, such as another number in the article."""
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
    tiers: list[Tier] = Field(default=list(TIERS), min_length=1)
    """Where the claim has a meaning."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        fewest, most = ROWS.get(self.relation, (2, 2))
        shape = fewest <= len(self.rows) <= most and all(len(pair) == 2 for pair in self.pairs)
        ends = self.relation == "ends", self.relation == "signs"
        if not shape or ends != (self.outcome is not None, bool(self.pairs)):
            raise ValueError(
                "relation 'ends' takes one row and an outcome, 'trend' three rows or more, "
                "'signs' pairs of rows, the others two rows"
            )
        if self.minus and (len(self.minus) != 2 or self.metric not in METRICS):
            raise ValueError(f"minus takes two rows, and a metric of {', '.join(METRICS)}")
        if self.relation in ("trend", "signs", "ends") and self.metric not in METRICS:
            raise ValueError(f"relation '{self.relation}' takes a metric of {', '.join(METRICS)}")
        return self

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if not (math.isfinite(self.margin) and math.isfinite(self.value)):
            raise ValueError(f"margin={self.margin}, value={self.value}: give finite numbers")
        if self.relation in ("within", "near") and self.margin <= 0:
            raise ValueError(f"margin={self.margin}: '{self.relation}' needs one above 0")
        if self.relation != "ends" and (self.control or self.precision or self.device):
            raise ValueError("control, precision and device belong to relation 'ends'")
        twice = [pair for pair in (self.rows, self.minus, *self.pairs) if len({*pair}) < len(pair)]
        if twice or len({tuple(pair) for pair in self.pairs}) < len(self.pairs):
            raise ValueError("a row is compared with itself, or a pair named twice; drop one")
        if bad := [row for row in self.sides if row.count("/") not in self.SLASHES]:
            raise ValueError(f"rows {bad}; write {self.ROW}")
        if bad := [key for key in self.besides if key not in layers.known_paths()]:
            raise ValueError(f"besides {bad}: no such settings; give dotted paths")
        return self

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Its rows in pairs, the first of each less the second."""
        if self.relation == "ends":
            return []
        if self.relation == "trend":
            return list(zip(self.rows[1:], self.rows, strict=False))
        return [(pair[0], pair[1]) for pair in (self.rows, self.minus, *self.pairs) if pair]

    @property
    def sides(self) -> list[str]:
        """All rows that it names, each once."""
        paired = [row for pair in (self.rows, self.minus, *self.pairs) for row in pair]
        return list(dict.fromkeys([*paired, *([self.control] if self.control else [])]))

    @property
    def edges(self) -> tuple[float, ...]:
        """What its estimate is held against: one bound, or two that it lies between."""
        value, margin = float(self.value), float(self.margin)
        if self.relation in ("within", "near"):
            return value - margin, value + margin
        return (value + margin,)

    def by_article(self, printed: Mapping[str, float | None]) -> float | None:
        """Its estimate by the article's numbers of rows; None where it prints none of them."""
        steps = []
        for pair in self.compared:
            match [printed.get(name) for name in pair]:
                case float(one), float(other) if self.metric in METRICS:
                    steps.append(round(one - other, 9))
                case float(one), float(other):
                    steps.append(100 * (one / other - 1))
        if not steps or len(steps) < len(self.compared):
            return float(self.value) if self.relation == "near" else None
        if self.relation == "signs":
            return sum(step > 0 for step in steps) / len(steps)
        return steps[0] - steps[1] if self.minus else min(steps)


class OwnClaim(Claim):
    """A claim that stands in a study's file, or is about one: its rows are those of the study."""

    SLASHES = (0, 1)
    ROW = "a row of this study, or study/variant"

    def of(self, study: str) -> Self:
        """The same, with the study named in every row."""

        def full(rows: list[str]) -> list[str]:
            return [row if "/" in row else f"{study}/{row}" for row in rows]

        named = {"rows": full(self.rows), "minus": full(self.minus)}
        pairs = [full(pair) for pair in self.pairs]
        control = self.control and full([self.control])[0]
        return self.model_copy(update=named | {"pairs": pairs, "control": control})


def _each_once(claims: list[C]) -> list[C]:
    times = Counter(claim.id for claim in claims)
    if twice := [name for name, count in times.items() if count > 1]:
        raise ValueError(f"id {', '.join(twice)} stands twice; name each claim once")
    return claims


OwnClaims = Annotated[list[OwnClaim], AfterValidator(_each_once)]
"""As an experiment file holds them."""


class Claims(BaseModel):
    """The file of claims."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    claims: Annotated[list[Claim], AfterValidator(_each_once)]

    @classmethod
    def read(cls, path: Path | None = None, study: str = "") -> Sequence[Claim]:
        """Read the claims; ``experiments/claims.yaml`` unless another file is given.

        ``study``: the one that rows are of where they name none.

        Raises:
            ConfigError: all mistakes of the file at once.
        """
        document = yaml.read(path or shipped.find("experiments/claims.yaml"))
        if "variants" in document.data:
            hint = f"lsa claims --study {path}"
            raise ConfigError(f"{path}: is a study, not a file of claims; for its own: {hint}")
        if not study:
            return layers.validate(cls, document.data, document.where).claims
        return [
            one.of(study) for one in layers.validate(_Own, document.data, document.where).claims
        ]


class _Own(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    claims: OwnClaims
