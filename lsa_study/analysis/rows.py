"""The rows of a study: runs matched by identity, and all that any format shows of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lsa_study.analysis.article import ArticleRow, columns_and_note, rates_of
from lsa_study.analysis.collect import Collected, RunRecord, collect
from lsa_study.analysis.comparability import (
    Comparability,
    between_seeds,
    comparability,
    marks_of,
    paired,
)
from lsa_study.analysis.contrasts import Contrast, compare
from lsa_study.analysis.statistics import Estimate, pooled_interval
from lsa_study.config.contrast import differing_rows
from lsa_study.config.study import Study
from lsa_study.errors import Refused

ENDS = {"diverged": "diverged", "oom": "out of memory", "stopped early": "stopped early"}
"""How the ends of runs that have no accuracy are called."""


@dataclass(frozen=True)
class Cost:
    """A cost of a row: the fact of a result that it follows from, and how it is shown."""

    title: str
    fact: Callable[[RunRecord], float | None]
    unit: float
    digits: int
    """Decimals in a table."""
    exact: int = 4
    """Decimals in files of data."""


COSTS: Mapping[str, Cost] = {
    "params_m": Cost("Params (M)", lambda run: run.params, 1e6, 2),
    "gmacs": Cost("GMACs", lambda run: run.macs, 1e9, 3, exact=6),
    "seconds_per_epoch": Cost("s/epoch", lambda run: run.seconds_per_epoch, 1, 1, exact=3),
    "peak_memory_gib": Cost("GiB", lambda run: run.peak_memory_bytes, 2**30, 2),
}
"""By their names in files of data."""
MEASURED = ("(article)", "(counted)", "(images/s)", "(measured)")
"""Ends of the titles of columns that hold figures, and so no part of a row's name."""


ALIKE = Comparability()


@dataclass(frozen=True)
class Row:
    """One row of a study with the runs behind it."""

    variant: str
    label: str
    columns: dict[str, str]
    """Further cells in words, by title."""
    reference: str
    """The row it is compared with; itself for a baseline."""
    runs: tuple[RunRecord, ...]
    """Those of its runs that have ended, by seed."""
    article: ArticleRow
    note: str | None = None
    base: Row | None = None
    """The reference row; None for a baseline, and where it is not in the table."""
    marks: tuple[str, ...] = ()
    """Signs that lead to the notes under a table."""
    peers: tuple[tuple[RunRecord, ...], ...] = ()
    """The runs with an accuracy of all rows of the study, its own among them."""
    alike: Comparability = ALIKE
    """In what its runs were made otherwise than those of the reference row."""
    declared: tuple[int, ...] = ()
    """The seeds that the experiment file says before anything runs; none if it says none."""
    metric: str = "acc1"
    """By which it is judged."""

    @cached_property
    def done(self) -> tuple[RunRecord, ...]:
        """Its runs that have an accuracy."""
        return tuple(run for run in self.runs if run.outcome == "done")

    @property
    def identities(self) -> list[str]:
        """Of its runs that have ended."""
        return [run.identity for run in self.runs]

    @cached_property
    def accuracy(self) -> Estimate:
        """Its metric over the seeds that have one, such as top-1 accuracy in percent."""
        own = [run.accuracy for run in self.done]
        others = [[r.accuracy for r in row] for row in self.peers if row[:1] != self.done[:1]]
        found = pooled_interval(own, others)
        # Nothing varies: the noise is not 0 but unknown.
        return Estimate(found.values, found.mean) if found.low == found.high else found

    @cached_property
    def contrast(self) -> Contrast:
        """Against the reference row over shared seeds; a baseline has none.

        Nor has a row that saw other images, as what is not comparable has no difference; nor one
        of which seeds were stopped early: the others were chosen by their accuracy.
        """
        unfit = self.base is None or self.alike.refused or self.cut or self.base.cut
        theirs = () if self.base is None or unfit else self.base.done
        return compare(self.done, theirs, self.peers, self.declared)

    @property
    def lost(self) -> str:
        """How many of its runs ended without an accuracy, such as ``1 of 3 diverged``."""
        return ", ".join(f"{n} of {len(self.runs)} {ENDS[name]}" for name, n in self.ends.items())

    @property
    def article_delta(self) -> float | None:
        """The article's own difference to the reference row, points."""
        if self.base is None or self.article.value is None or self.base.article.value is None:
            return None
        return self.article.value - self.base.article.value

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """Medians over its runs, by the names of ``COSTS``; None where no run knows one."""
        found: dict[str, float | None] = {}
        for name, cost in COSTS.items():
            values = [fact for run in self.runs if (fact := cost.fact(run)) is not None]
            # The median: one seed that shared its machine must not make a row look slow.
            found[name] = float(statistics.median(values)) / cost.unit if values else None
        return found

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """Means of the metrics from outside over the runs with an accuracy; None where unknown."""
        names = dict.fromkeys(name for run in self.done for name in run.metrics)
        values = {n: [v for r in self.done if (v := r.metrics.get(n)) is not None] for n in names}
        return {name: statistics.fmean(of) if of else None for name, of in values.items()}

    @cached_property
    def ends(self) -> dict[str, int]:
        """How many of its runs ended without an accuracy, by outcome."""
        outcomes = [run.outcome for run in self.runs]
        return {name: outcomes.count(name) for name in ENDS if name in outcomes}

    @property
    def cut(self) -> bool:
        """Whether runs of it were stopped early, by the rule ``runtime.stop``."""
        return "stopped early" in self.ends

    @property
    def outcome(self) -> str:
        """``done``, ``not run``, or what else happened with counts, as ``diverged 1/3``."""
        if not self.runs:
            return "not run"
        counts = [f"{name} {count}/{len(self.runs)}" for name, count in self.ends.items()]
        return ", ".join(counts) or "done"

    @property
    def word(self) -> str:
        """What stands in place of an accuracy: empty if there is one."""
        if self.done:
            return ""
        return " / ".join(ENDS[name] for name in self.ends) or "not run"

    @property
    def name(self) -> str:
        """Label and further cells as one text, such as ``Net7 (neighboring, unfold)``."""
        cells = [cell for title, cell in self.columns.items() if not title.endswith(MEASURED)]
        return f"{self.label} ({', '.join(cells)})" if cells else self.label


def not_judged(rows: Sequence[Row], refused: Iterable[str], seeds: Sequence[int]) -> str:
    """Why a difference of rows gets no verdict; empty where it gets one.

    Args:
        rows: all that it takes.
        refused: in what they cannot be compared.
        seeds: those that all of them have.
    """
    absent = [row.name for row in rows if not row.runs]
    lost = [f"{row.name} {row.lost}" for row in rows if row.ends]
    if why := "; ".join(dict.fromkeys(refused)):
        return f"not comparable: {why}"
    if absent:
        return f"not run: {', '.join(absent)}" if len(absent) < len(rows) else "not run"
    if lost:
        return f"no verdict: {', '.join(lost)}"
    return "" if seeds else "no seed in common"


def rows_of(study: Study, collected: Collected, metric: str | None = None) -> list[Row]:
    """The rows of a study in its order, each with its finished runs, of every seed that was run.

    A side study has the seeds that it was asked for with alone. The study is resolved at the tier
    that was collected; overrides are part of its identities. ``metric``: one of the study's by
    which they are judged; None: its first.

    Raises:
        ConfigError: a row's place in the article's table or its costs are not found.
    """
    metric = metric or study.metrics[0]
    ran = () if study.alias else collected.runs["seed"].unique()
    seeds = sorted({*study.seeds, *map(int, ran)})
    rates, _ = rates_of(study)
    rows = {}
    for variant, settings in study.variants.items():
        written = study.file.variants[variant]
        columns, note = columns_and_note(study, variant)
        found = collected.of(settings.identities(seeds).values())
        runs = tuple(run.by(metric) for run in found.values())
        rows[variant] = Row(
            variant=variant,
            label=written.label,
            columns=columns | rates.get(variant, {}) | _alike_tokens(runs),
            reference=study.reference_of(variant),
            runs=runs,
            article=ArticleRow.of(study, variant, metric),
            note=note,
            metric=metric,
        )
    peers = tuple(row.done for row in rows.values() if row.done)
    rows = {n: replace(r, peers=peers, declared=study.declared) for n, r in rows.items()}
    compared = []
    for row in rows.values():
        base = rows.get(row.reference) if row.reference != row.variant else None
        if base is None:
            alike = Comparability(tuple(between_seeds(row.runs)), tuple(marks_of(row.runs)))
        else:
            differing = differing_rows((study, base.variant), (study, row.variant))
            alike = comparability(paired(row.runs, base.runs), explained=differing)
        compared.append(replace(row, base=base, alike=alike))
    return compared


def _alike_tokens(runs: Sequence[RunRecord]) -> dict[str, str]:
    """The cell of runs that measured how alike tokens are behind the stem."""
    found = [run.token_cosine for run in runs if run.token_cosine is not None]
    return {"Token cosine (measured)": f"{statistics.fmean(found):.3f}"} if found else {}


def with_runs(
    studies: Sequence[Study], results: Path, *, folders: bool = True
) -> dict[str, list[tuple[Study, Collected]]]:
    """Studies with the finished runs of their tiers, by tier; every tier is read once.

    ``folders``: also those that ``runs.parquet`` does not hold yet, and bring it up to date.

    Raises:
        Refused: what is left out of ``runs.parquet`` may be rows of theirs, whose pages would be
            written over.
    """
    runs = {
        tier: collect(results, tier, folders=folders, update=folders)
        for tier in dict.fromkeys(study.tier for study in studies)
    }
    pairs = [(study, runs[study.tier]) for study in studies]
    for study, found in pairs if folders else ():
        if found.lost and any(run.identity not in found.runs.index for run in study.runs()):
            raise Refused("\n".join(found.lost))
    return {tier: [pair for pair in pairs if pair[0].tier == tier] for tier in runs}
