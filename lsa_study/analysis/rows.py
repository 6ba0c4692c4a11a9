"""Match collected runs with the rows of a study, by identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lsa_study.analysis.article import Printed, printed
from lsa_study.analysis.collect import Collected, RunRecord
from lsa_study.analysis.costs import columns_and_note
from lsa_study.analysis.statistics import Estimate, t_interval
from lsa_study.config.study import Study

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
    runs: tuple[RunRecord, ...]
    """Those of its runs that have ended, by seed."""
    article: Printed
    note: str | None = None

    @cached_property
    def done(self) -> tuple[RunRecord, ...]:
        """Its runs that have an accuracy."""
        return tuple(run for run in self.runs if run.outcome == "done")

    @cached_property
    def accuracy(self) -> Estimate:
        """Top-1 accuracy over the seeds that have one, in percent."""
        return t_interval([run.accuracy for run in self.done])

    @cached_property
    def ends(self) -> dict[str, int]:
        """How many of its runs ended without an accuracy, by outcome."""
        outcomes = [run.outcome for run in self.runs]
        return {name: outcomes.count(name) for name in WORDS if name in outcomes}

    @property
    def outcome(self) -> str:
        """``done``, ``not run``, or what else happened with counts, as ``diverged 1/3``."""
        if not self.runs:
            return "not run"
        words = [f"{name} {count}/{len(self.runs)}" for name, count in self.ends.items()]
        return ", ".join(words) or "done"

    @property
    def word(self) -> str:
        """What stands in place of an accuracy: empty if there is one."""
        if self.done:
            return ""
        return " / ".join(WORDS[name] for name in self.ends) or "not run"

    @property
    def name(self) -> str:
        """Label and further cells as one text, such as ``Net7 (neighboring, unfold)``."""
        cells = [cell for title, cell in self.columns.items() if "(article)" not in title]
        return f"{self.label} ({', '.join(cells)})" if cells else self.label


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
    identities = {
        variant: {identity: seed for seed, identity in settings.identities(wanted).items()}
        for variant, settings in study.variants.items()
    }
    found = collected.of([identity for of_row in identities.values() for identity in of_row])
    rows = []
    for variant, of_row in identities.items():
        written = study.file.variants[variant]
        columns, note = columns_and_note(study, variant)
        rows.append(
            Row(
                variant=variant,
                label=written.label,
                columns=columns,
                reference=study.reference_of(variant),
                seeds=tuple(s for i, s in of_row.items() if s in study.seeds or i in found),
                runs=tuple(found[identity] for identity in of_row if identity in found),
                article=printed(study, variant),
                note=note,
            )
        )
    return rows


def _all_seeds(study: Study, collected: Collected) -> tuple[int, ...]:
    return tuple(sorted({*study.seeds, *(int(seed) for seed in collected.runs["seed"].unique())}))
