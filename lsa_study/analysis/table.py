"""One table of a study: rows with our numbers beside the article's, and the notes under them."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from lsa_study.analysis.collect import Collected
from lsa_study.analysis.effects import Effect, effect_notes, effects
from lsa_study.analysis.notes import Note, general_notes
from lsa_study.analysis.rows import COSTS, Row, rows_of
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.config.contrast import confounds
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS


@dataclass(frozen=True)
class Table:
    """A study's table at one tier; every format is written from this."""

    study: Study
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    effects: tuple[Effect, ...] = ()
    """Of a grid."""
    others: tuple[tuple[Row, ...], ...] = ()
    """The same rows judged by each further metric of the task."""

    @property
    def caption(self) -> str:
        """The title with its tier and place in the article."""
        source = f"{self.study.place}; " if self.study.file.article else ""
        return f"{self.study.file.title} ({source}tier {self.study.tier})"

    @cached_property
    def label_columns(self) -> list[str]:
        """The titles of the columns in words that stand beside the model's."""
        return list(dict.fromkeys(name for row in self.rows for name in row.columns))

    @cached_property
    def cost_columns(self) -> list[str]:
        """The names of the costs that have a column: known of a row, and in no column of words."""
        # Tables 6 and 8 bring their own columns of counted costs beside the article's.
        ends = ("(article)", "(counted)")
        counted = {title.split()[0] for title in self.label_columns if title.endswith(ends)}
        return [
            name
            for name, cost in COSTS.items()
            if cost.title.split()[0] not in counted
            and any(row.costs[name] is not None for row in self.rows)
        ]

    @cached_property
    def metrics(self) -> list[str]:
        """The names of the metrics from outside, each a column."""
        of = self.study.variants.values()
        return list(dict.fromkeys(name for one in of for name in one.evaluation.metrics))

    @property
    def metric(self) -> str:
        """The title of the column by which rows are judged first."""
        return METRICS[self.study.metrics[0]].title

    def header(self) -> list[str]:
        """The titles of the columns, units in brackets."""
        costs = [COSTS[name].title for name in self.cost_columns]
        compared = self._compared
        further = [METRICS[name].title for name in self.study.metrics[1:]]
        beside = [t for title in further for t in (title, *(f"{c} ({title})" for c in compared))]
        return [
            "Model", *self.label_columns, self.metric, "n", *compared, *beside, *self.metrics,
            *costs,
        ]  # fmt: skip

    @cached_property
    def _compared(self) -> list[str]:
        """The columns of what rows are held against: a reference row, the article, if there are."""
        several = any(row.reference != row.variant for row in self.rows)
        article = self.study.file.article is not None
        return ["Δ"] * (several or article) + ["Article"] * article

    def texts(self) -> list[list[str]]:
        """The cells as shown, row by row; the model's marks are not among them."""
        texts = []
        for at, row in enumerate(self.rows):
            accuracy, *beside = self._judged(row)
            if row.outcome != "done":
                accuracy = f"{accuracy} ({row.outcome})" if accuracy else row.outcome
            n = str(row.accuracy.n) if row.runs else ""
            words = [row.columns.get(name, "") for name in self.label_columns]
            costs = [self._cost(row, name) for name in self.cost_columns]
            further = [text for rows in self.others for text in self._judged(rows[at])]
            found = [row.metrics.get(name) for name in self.metrics]
            metrics = ["" if value is None else f"{value:.4g}" for value in found]
            texts.append([row.label, *words, accuracy, n, *beside, *further, *metrics, *costs])
        return texts

    def _judged(self, row: Row) -> list[str]:
        """A row's metric, and what it is held against."""
        change = "" if row.article_delta is None else f" ({signed(row.article_delta, 1)})"
        difference = row.contrast.difference.shown(self._digits, sign=True)
        delta = "–" if row.reference == row.variant else difference
        beside = [delta, f"{row.article.text}{change}"][: len(self._compared)]
        return [row.accuracy.shown(self._digits), *beside]

    @cached_property
    def _digits(self) -> int:
        return decimals(run.test_images for row in self.rows for run in row.done)

    def _cost(self, row: Row, name: str) -> str:
        digits = COSTS[name].digits - (name == "gmacs" and self.study.tier == "paper")
        return "" if (cost := row.costs[name]) is None else f"{cost:.{digits}f}"

    def escaped(
        self, escape: Callable[[str], str], raised: str
    ) -> tuple[list[list[str]], list[tuple[str, str]]]:
        """The header and the rows as a format writes them, and the notes: each its mark and text.

        ``raised`` is the format's superscript, ``{}`` for what stands in it.
        """

        def signs(marks: Iterable[str]) -> str:
            shown = ",".join(escape(mark) for mark in marks if mark)
            return raised.format(shown) if shown else ""

        cells = [[escape(text) for text in line] for line in (self.header(), *self.texts())]
        for line, row in zip(cells[1:], self.rows, strict=True):
            line[0] += signs(row.marks)
        return cells, [(signs((note.mark,)), escape(note.text)) for note in self.notes]


def build(study: Study, collected: Collected) -> Table:
    """Make a study's table from the collected runs of its tier."""
    rows, also = rows_of(study, collected), confounds(study)
    notes: list[Note] = []
    marks: dict[str, tuple[str, ...]] = {row.variant: () for row in rows}
    unlike = []
    for row in rows:
        if row.note:
            notes.append(Note(row.note, string.ascii_lowercase[len(notes) % 26]))
            marks[row.variant] = (notes[-1].mark,)
        reasons = [f"also changes {setting}" for setting in also.get(row.variant, ())]
        reasons += [f"not comparable: {message}" for message in row.alike.refused]
        reasons += row.alike.marked
        if reasons:
            unlike.append(f"{row.name}: {'; '.join(reasons)}")
            marks[row.variant] += ("†",)
    if unlike:
        text = f"Not made as the row it is compared with, beside the factor. {'. '.join(unlike)}."
        notes.append(Note(text, "†"))
    for row in rows:
        lacking = [f"seed {r.seed}: {r.metrics_missing}" for r in row.done if r.metrics_missing]
        if lacking:
            notes.append(Note(f"Missing of {row.name}, in no mean: {'; '.join(lacking)}."))
    cut = []
    for row in rows:
        if row.cut:
            marks[row.variant] += ("‡",)
            cut += [
                f"{row.variant} seed {run.seed} in {run.reason}"
                for run in row.runs
                if run.outcome == "stopped early"
            ]
    if cut:
        text = "Stopped early by the study's rule, so not finished and without a difference"
        notes.append(Note(f"{text}: {'. '.join(cut)}.", "‡"))
    notes += general_notes(study, rows, collected)
    found = effects(study, rows)
    notes += [Note(line) for line in effect_notes(found, rows)]
    marked = tuple(replace(row, marks=marks[row.variant]) for row in rows)
    others = tuple(tuple(rows_of(study, collected, name)) for name in study.metrics[1:])
    return Table(study, marked, tuple(notes), found, others)
