"""The file of claims: the article's findings as inequalities between rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsa_study.config import layers, shipped, yaml
from lsa_study.config import study as studies
from lsa_study.config.settings import Tier


class Claim(BaseModel):
    """One finding: ``rows`` stand in ``relation``, by ``metric``, with ``margin``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    text: str
    source: str
    """Where the article says so."""
    rows: list[str] = Field(min_length=1, max_length=2)
    """``study/variant``; the first is the one that is said to be above."""
    minus: list[str] = Field(default=[], max_length=2)
    """Two more rows: the claim is about the first difference less this one."""
    relation: Literal["above", "within", "near", "ends"]
    metric: Literal["acc1", "params", "macs", "speed", "memory"] = "acc1"
    margin: float | int = 0.0
    """Points for acc1, else percent of the second row."""
    value: float | int = 0.0
    """The printed difference, for near; the estimate lies within ``margin`` of it."""
    outcome: Literal["diverged", "oom"] | None = None
    control: str | None = None
    """For ends: a row that must not end so, or the cause is not the first row's."""
    precision: str | None = None
    """For ends: the type of the matrix products that the claim is about."""
    memory_gib: float | int | None = None
    """For ends: the device's memory that the claim is about."""
    besides: list[str] = []
    """Settings that may differ beside the factor, where the claim compares whole networks."""
    tiers: list[Tier] = Field(default=list(studies.TIERS), min_length=1)
    """Where the claim has a meaning."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = (1, True) if self.relation == "ends" else (2, False)
        if (len(self.rows), self.outcome is not None) != wanted:
            raise ValueError("relation 'ends' takes one row and an outcome, the others two rows")
        if self.relation in ("within", "near") and self.margin <= 0:
            raise ValueError(f"margin={self.margin}: '{self.relation}' needs one above 0")
        if len(self.minus) == 1 or (self.minus and self.metric != "acc1"):
            raise ValueError("minus takes two rows, and metric acc1")
        if bad := [row for row in self.every_row if row.count("/") != 1]:
            raise ValueError(f"rows {bad}; write study/variant, such as table1/net7")
        if bad := [key for key in self.besides if key not in layers.known_paths()]:
            raise ValueError(f"besides {bad}: no such settings; give dotted paths")
        return self

    @property
    def every_row(self) -> list[str]:
        """All rows that it names."""
        return [*self.rows, *self.minus, *([self.control] if self.control else [])]


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
