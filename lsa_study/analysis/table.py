"""One table of a study: rows with our numbers beside the article's, and the notes under them."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lsa_study.analysis.collect import Collected
from lsa_study.analysis.contrasts import continued, mismatches
from lsa_study.analysis.notes import Note, general_notes
from lsa_study.analysis.rows import COSTS, Row, rows_of
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.config.contrast import confounds
from lsa_study.config.study import Study


@dataclass(frozen=True)
class Table:
    """A study's table at one tier; every format is written from this."""

    study: Study
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]

    @property
    def caption(self) -> str:
        """The title with its tier and place in the article."""
        file = self.study.file
        return f"{file.title} ({file.article.source}; tier {self.study.tier})"

    @cached_property
    def label_columns(self) -> list[str]:
        """The titles of the columns in words that stand beside the model's."""
        return list(dict.fromkeys(name for row in self.rows for name in row.columns))

    def header(self) -> list[str]:
        """The titles of the columns, units in brackets."""
        return [title for title, _ in self._columns()]

    def texts(self) -> list[list[str]]:
        """The cells as shown, row by row; the model's marks are not among them."""
        columns = self._columns()
        return [[cell(row) for _, cell in columns] for row in self.rows]

    def escaped(
        self, escape: Callable[[str], str], raised: Callable[[Iterable[str]], str]
    ) -> list[list[str]]:
        """The header and the rows as a format writes them, the model's marks ``raised``."""
        cells = [[escape(text) for text in line] for line in (self.header(), *self.texts())]
        for line, row in zip(cells[1:], self.rows, strict=True):
            line[0] += raised(row.marks)
        return cells

    def _columns(self) -> list[tuple[str, Callable[[Row], str]]]:
        digits = decimals(run.test_images for row in self.rows for run in row.done)

        def accuracy(row: Row) -> str:
            if row.accuracy.mean is None:
                return row.outcome
            also = "" if row.outcome == "done" else f" ({row.outcome})"
            return f"{row.accuracy.shown(digits)}{also}"

        def delta(row: Row) -> str:
            if row.reference == row.variant:
                return "–"
            return row.contrast.difference.shown(digits, sign=True) if row.contrast else ""

        def article(row: Row) -> str:
            text, change = row.article.text, row.article_delta
            return text if change is None else f"{text} ({signed(change, 1)})"

        def cost(name: str, digits: int) -> Callable[[Row], str]:
            return lambda row: "" if (cost := row.costs[name]) is None else f"{cost:.{digits}f}"

        def label(name: str) -> Callable[[Row], str]:
            return lambda row: row.columns.get(name, "")

        # Tables 6 and 8 bring their own columns of counted costs beside the article's.
        counted = {title.split()[0] for title in self.label_columns if "(article)" in title}
        return [
            ("Model", lambda row: row.label),
            *((name, label(name)) for name in self.label_columns),
            ("Acc@1 (%)", accuracy),
            ("n", lambda row: str(row.accuracy.n) if row.runs else ""),
            ("Δ", delta),
            ("Article", article),
            *(
                (
                    one.title,
                    cost(name, one.digits - (name == "gmacs" and self.study.tier == "paper")),
                )
                for name, one in COSTS.items()
                if one.title.split()[0] not in counted
                and any(row.costs[name] is not None for row in self.rows)
            ),
        ]


def build(study: Study, collected: Collected, *, seeds: Sequence[int] | None = None) -> Table:
    """Make a study's table from the collected runs of its tier.

    Args:
        study: resolved at that tier; its rows find their runs by identity, overrides included.
        seeds: the seeds that count; None: every seed that was run.
    """
    rows, also = rows_of(study, collected, seeds=seeds), confounds(study)
    notes: list[Note] = []
    marks: dict[str, tuple[str, ...]] = {row.variant: () for row in rows}
    unlike = []
    for row in rows:
        if row.note:
            notes.append(Note(row.note, string.ascii_lowercase[len(notes) % 26]))
            marks[row.variant] = (notes[-1].mark,)
        reasons = [f"also changes {setting}" for setting in also.get(row.variant, ())]
        if row.base is not None:
            reasons += mismatches(row.runs, row.base.runs)
        else:
            reasons += continued(row.runs)
        if reasons:
            unlike.append(f"{row.name}: {'; '.join(reasons)}")
            marks[row.variant] += ("†",)
    if unlike:
        text = f"Not made as the row it is compared with, beside the factor. {'. '.join(unlike)}."
        notes.append(Note(text, "†"))
    notes += general_notes(study, rows, collected)
    return Table(study, tuple(replace(row, marks=marks[row.variant]) for row in rows), tuple(notes))
