"""One table of a study: rows with our numbers beside the article's, and the notes under them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsa_study.analysis import notes, speed
from lsa_study.analysis import rows as matching
from lsa_study.analysis.article import Printed
from lsa_study.analysis.collect import Collected
from lsa_study.analysis.contrasts import Contrast, contrasts
from lsa_study.analysis.notes import Note
from lsa_study.analysis.statistics import Estimate, decimals, shown, signed, t_interval
from lsa_study.config.study import Study


@dataclass(frozen=True)
class TableRow:
    """One row: everything that any format shows of it."""

    variant: str
    model: str
    columns: dict[str, str]
    acc1: Estimate
    """Top-1 accuracy over seeds, percent."""
    word: str
    """What stands in place of an accuracy; empty if there is one."""
    outcome: str
    article: Printed
    reference: str
    contrast: Contrast | None
    """Against the reference row over shared seeds; None for a reference or without any."""
    article_delta: float | None
    params_m: float | None
    gmacs: float | None
    seconds_per_epoch: float | None
    peak_memory_gib: float | None
    runs: tuple[str, ...]
    marks: tuple[str, ...]
    """Signs that lead to the notes."""


@dataclass(frozen=True)
class Table:
    """A study's table at one tier; every format is written from this."""

    study: str
    tier: str
    title: str
    question: str
    source: str
    baseline: str
    label_columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[Note, ...]
    digits: int
    """Decimals of accuracies."""

    @property
    def caption(self) -> str:
        """The title with its tier and place in the article."""
        return f"{self.title} ({self.source}; tier {self.tier})"

    def header(self) -> list[str]:
        """The titles of the columns, units in brackets."""
        return [title for title, _ in self._columns()]

    def texts(self) -> list[list[str]]:
        """The cells as shown, row by row; the model's marks are not among them."""
        return [[cell(row) for _, cell in self._columns()] for row in self.rows]

    def _columns(self) -> list[tuple[str, Any]]:
        d = self.digits
        always: list[tuple[str, Any]] = [
            ("Model", lambda row: row.model),
            *((name, _label_cell(name)) for name in self.label_columns),
            ("Acc@1 (%)", lambda row: _accuracy(row, d)),
            ("n", lambda row: str(row.acc1.n) if row.runs else ""),
            ("Δ", lambda row: _delta(row, d)),
            ("Article", _article_cell),
        ]
        costs: list[tuple[str, str, int]] = [
            ("Params (M)", "params_m", 2),
            ("GMACs", "gmacs", 3 if self.tier != "paper" else 2),
            ("s/epoch", "seconds_per_epoch", 1),
            ("GiB", "peak_memory_gib", 2),
        ]
        # Tables 6 and 8 bring their own columns of counted costs beside the article's.
        counted = {title.split()[0] for title in self.label_columns if "(article)" in title}
        present = [
            cost
            for cost in costs
            if cost[0].split()[0] not in counted
            and any(getattr(row, cost[1]) is not None for row in self.rows)
        ]
        return always + [(title, _cost_cell(key, digits)) for title, key, digits in present]

    def as_json(self) -> dict[str, Any]:
        """The table as data; accuracies in percent, rounded to four decimals."""
        rows = [_row_json(row) for row in self.rows]
        keys = ["model", *self.label_columns, *(k for k in _row_json_keys())]
        return {
            "study": self.study,
            "tier": self.tier,
            "title": self.title,
            "question": self.question,
            "source": self.source,
            "baseline": self.baseline,
            "columns": keys,
            "rows": rows,
            "notes": [{"mark": note.mark, "text": note.text} for note in self.notes],
        }


def build(study: Study, collected: Collected, *, seeds: Sequence[int] | None = None) -> Table:
    """Make a study's table from the collected runs of its tier.

    Args:
        study: resolved at that tier; its rows find their runs by identity, overrides included.
        collected: the finished runs.
        seeds: the seeds that count; None: every seed that was run.
    """
    found = matching.rows_of(study, collected, seeds=seeds)
    by_variant = {row.variant: row for row in found}
    compared = contrasts(found)
    all_notes, marks = notes.notes_of(study, found, list(compared.values()), collected)
    speeds, timed = speed.measured(study)
    rows = tuple(
        _row(
            row, by_variant, compared.get(row.variant), marks.get(row.variant, ()),
            speeds.get(row.variant, {}),
        )
        for row in found
    )  # fmt: skip
    label_columns = dict.fromkeys(name for row in rows for name in row.columns)
    return Table(
        study=study.name,
        tier=study.tier,
        title=study.file.title,
        question=study.file.question,
        source=study.file.article.source,
        baseline=study.file.baseline,
        label_columns=tuple(label_columns),
        rows=rows,
        notes=(*all_notes, *([notes.Note(timed)] if timed else ())),
        digits=decimals(_test_images(found)),
    )


def _row(
    row: matching.Row,
    by_variant: dict[str, matching.Row],
    contrast: Contrast | None,
    marks: tuple[str, ...],
    speeds: dict[str, str],
) -> TableRow:
    reference = by_variant.get(row.reference)
    compared = reference if reference is not None and reference is not row else None
    accuracy = row.accuracy
    return TableRow(
        variant=row.variant,
        model=row.label,
        columns=row.columns | speeds,
        acc1=accuracy,
        word=row.word,
        outcome=row.outcome,
        article=row.article,
        reference=row.reference,
        contrast=contrast,
        article_delta=_minus(row.article.value, compared.article.value) if compared else None,
        params_m=_scaled([run.params for run in row.runs], 1e6),
        gmacs=_scaled([run.macs for run in row.runs], 1e9),
        seconds_per_epoch=_scaled([run.seconds_per_epoch for run in row.runs], 1),
        peak_memory_gib=_scaled([run.peak_memory_bytes for run in row.runs], 2**30),
        runs=tuple(run.identity for run in row.runs),
        marks=marks,
    )


def _test_images(rows: Sequence[matching.Row]) -> int | None:
    return max((run.test_images or 0 for row in rows for run in row.done), default=None)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _scaled(costs: Sequence[float | None], unit: float) -> float | None:
    # The median: one seed that shared its machine must not make a row look slow.
    values = [cost for cost in costs if cost is not None]
    return float(statistics.median(values)) / unit if values else None


def _label_cell(name: str) -> Any:
    return lambda row: row.columns.get(name, "")


def _cost_cell(key: str, digits: int) -> Any:
    return lambda row: _number(getattr(row, key), digits)


def _accuracy(row: TableRow, digits: int) -> str:
    if row.acc1.mean is None:
        return row.word if row.outcome == "not run" else row.outcome
    also = "" if row.outcome == "done" else f" ({row.outcome})"
    return f"{shown(row.acc1, digits)}{also}"


def _delta(row: TableRow, digits: int) -> str:
    if row.reference == row.variant:
        return "–"
    if row.contrast is None:
        return ""
    difference = row.contrast.difference
    half = "" if difference.half is None else f" ± {difference.half:.{digits}f}"
    return f"{signed(difference.mean, digits)}{half}"


def _article_cell(row: TableRow) -> str:
    text = row.article.word or _number(row.article.value, 1)
    return text if row.article_delta is None else f"{text} ({signed(row.article_delta, 1)})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _row_json_keys() -> tuple[str, ...]:
    return (
        "acc1", "paper", "paper_outcome", "delta", "paper_delta", "outcome", "params_m", "gmacs",
        "seconds_per_epoch", "peak_memory_gib", "runs", "marks",
    )  # fmt: skip


def _row_json(row: TableRow) -> dict[str, Any]:
    acc1 = row.acc1
    return {
        "model": row.model,
        **row.columns,
        "variant": row.variant,
        "reference": row.reference,
        "acc1": {
            "mean": rounded(acc1.mean),
            "low": rounded(acc1.low),
            "high": rounded(acc1.high),
            "n": acc1.n,
            "values": [rounded(value) for value in acc1.values],
        },
        "paper": row.article.value,
        "paper_outcome": row.article.word or None,
        **_contrast_json(row.contrast),
        "paper_delta": rounded(row.article_delta),
        "outcome": row.outcome,
        "params_m": rounded(row.params_m),
        "gmacs": rounded(row.gmacs, 6),
        "seconds_per_epoch": rounded(row.seconds_per_epoch, 3),
        "peak_memory_gib": rounded(row.peak_memory_gib),
        "runs": list(row.runs),
        "marks": list(row.marks),
    }


def _contrast_json(contrast: Contrast | None) -> dict[str, Any]:
    difference = contrast.difference if contrast else t_interval([])
    images = contrast.by_image if contrast else None
    return {
        "delta": rounded(difference.mean),
        "delta_low": rounded(difference.low),
        "delta_high": rounded(difference.high),
        "delta_n": difference.n,
        "delta_p": rounded(contrast.p, 6) if contrast else None,
        "images_low": rounded(images.low) if images else None,
        "images_high": rounded(images.high) if images else None,
        "images_p": rounded(images.p, 6) if images else None,
    }


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round for files that people compare; -0.0 becomes 0.0."""
    return None if value is None else round(value, digits) + 0.0
