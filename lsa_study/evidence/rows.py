"""Match collected runs with the rows of a study, by identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lsa_study.config import Settings
from lsa_study.evidence.article import Printed, printed
from lsa_study.evidence.collect import Collected
from lsa_study.evidence.statistics import Estimate, t_interval
from lsa_study.study import Study

WORDS = {"diverged": "diverged", "oom": "out of memory"}
"""How the ends of runs that have no accuracy are called."""


@dataclass(frozen=True)
class Row:
    """One row of a study with the runs behind it."""

    variant: str
    label: str
    columns: dict[str, str]
    reference: str
    """The row it is compared with; itself for a baseline."""
    seeds: tuple[int, ...]
    """The seeds that were looked for."""
    runs: pd.DataFrame
    """Those of its runs that have ended, by seed; columns as in ``Collected.runs``."""
    article: Printed
    note: str | None = None

    @property
    def done(self) -> pd.DataFrame:
        """Its runs that have an accuracy."""
        return self.runs[self.runs["outcome"] == "done"]

    @property
    def accuracy(self) -> Estimate:
        """Top-1 accuracy over the seeds that have one, in percent."""
        return t_interval([float(value) for value in self.done["acc1"]])

    @property
    def outcome(self) -> str:
        """``done``, ``not run``, or what else happened with counts, as ``diverged 1/3``."""
        counts = self.runs["outcome"].value_counts()
        if not len(self.runs):
            return "not run"
        words = [
            f"{name} {counts[name]}/{len(self.runs)}"
            for name in ("diverged", "oom")
            if name in counts
        ]
        return ", ".join(words) or "done"

    @property
    def word(self) -> str:
        """What stands in place of an accuracy: empty if there is one."""
        if len(self.done):
            return ""
        ends = [WORDS[name] for name in ("diverged", "oom") if name in set(self.runs["outcome"])]
        return " / ".join(ends) or "not run"

    @property
    def name(self) -> str:
        """Label and further cells as one text, such as ``Net7 (neighboring, unfold)``."""
        return f"{self.label} ({', '.join(self.columns.values())})" if self.columns else self.label


def rows_of(study: Study, collected: Collected, *, seeds: Sequence[int] | None = None) -> list[Row]:
    """The rows of a study in its order, each with its finished runs.

    Args:
        study: resolved at the tier that was collected; overrides are part of its identities.
        collected: the finished runs of that tier.
        seeds: the seeds that count; None: the study's own and every other that was run.

    Raises:
        ConfigError: a row's place in the article's table is not found.
    """
    wanted = tuple(seeds) if seeds is not None else _all_seeds(study, collected)
    return [_row(study, collected, variant, wanted) for variant in study.variants]


def _all_seeds(study: Study, collected: Collected) -> tuple[int, ...]:
    return tuple(sorted({*study.seeds, *(int(seed) for seed in collected.runs["seed"].unique())}))


def _row(study: Study, collected: Collected, variant: str, seeds: tuple[int, ...]) -> Row:
    written = study.file.variants[variant]
    identities = {seed: identity_of(study.variants[variant], seed) for seed in seeds}
    runs = collected.of(identities.values())
    return Row(
        variant=variant,
        label=written.label,
        columns=dict(written.columns),
        reference=study.reference_of(variant),
        seeds=tuple(sorted({*study.seeds, *(int(s) for s in runs["seed"])} & {*seeds})),
        runs=runs,
        article=printed(study, variant),
        note=written.note,
    )


def identity_of(settings: Settings, seed: int) -> str:
    """The identity of a variant's run with this seed."""
    return settings.model_copy(update={"seed": seed}).identity()
