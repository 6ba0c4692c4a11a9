"""The notes under a table: tier, data, environment, seeds, and what a reader must know of a row."""

from __future__ import annotations

import statistics
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lsa_study.analysis import comparability
from lsa_study.analysis.collect import Collected, RunRecord
from lsa_study.analysis.contrasts import Contrast
from lsa_study.analysis.power import pooled_noise, resolvable
from lsa_study.analysis.rank_correlation import agreement
from lsa_study.analysis.rows import Row
from lsa_study.analysis.tiers import MEANING
from lsa_study.config.study import Study


@dataclass(frozen=True)
class Note:
    """A line under a table; ``mark`` is the sign beside the rows it is about, or empty."""

    text: str
    mark: str = ""


def notes_of(
    study: Study, rows: Sequence[Row], compared: Sequence[Contrast], collected: Collected
) -> tuple[list[Note], dict[str, tuple[str, ...]]]:
    """All notes in order, and for each row the marks it carries."""
    marks: dict[str, list[str]] = {}
    marked: list[Note] = []
    for row in rows:
        if row.note:
            mark = string.ascii_lowercase[len(marked) % 26]
            marks.setdefault(row.variant, []).append(mark)
            marked.append(Note(row.note, mark))
    reasons = comparability.mismatches(study, rows)
    for variant in reasons:
        marks.setdefault(variant, []).append("†")
    if reasons:
        marked.append(Note(_daggers(rows, reasons), "†"))
    ran = [run for row in rows for run in row.runs]
    general = [
        MEANING[study.tier],
        _article(study),
        _reading(rows),
        *_noise(compared),
        *_order(rows),
        *_data(study, ran),
        *_environment(ran),
        *_costs(ran),
        *_missing(study, rows),
        *_broken(collected),
    ]
    notes = [*marked, *(Note(text) for text in general)]
    return notes, {variant: tuple(signs) for variant, signs in marks.items()}


def _daggers(rows: Sequence[Row], reasons: dict[str, list[str]]) -> str:
    names = {row.variant: row.name for row in rows}
    listed = [f"{names[variant]}: {'; '.join(words)}" for variant, words in reasons.items()]
    return f"Not made as the row it is compared with, beside the factor. {'. '.join(listed)}."


def _article(study: Study) -> str:
    return (
        f"Article: the values printed in {study.file.article.source}. Δ, and the article's value "
        "in brackets: difference to the reference row (–), in points."
    )


def _reading(rows: Sequence[Row]) -> str:
    if any(row.accuracy.n > 1 for row in rows):
        return (
            "Acc@1: mean over n seeds ± half of the 95 % t interval; Δ: the same of the paired "
            "differences over shared seeds. One seed has no interval."
        )
    return "Acc@1: one seed, so no interval: differences within seed noise cannot be told apart."


def _noise(found: Sequence[Contrast]) -> list[str]:
    """The two noises of a difference, apart, and what the seeds can tell."""
    parts = []
    spread = pooled_noise(found)
    if spread is not None:
        parts.append(f"from seed to seed {spread:.2f} (standard deviation)")
    errors = [contrast.by_image.noise for contrast in found if contrast.by_image]
    if errors:
        parts.append(f"from the finite test set {statistics.median(errors):.2f} (standard error)")
    if not parts:
        return []
    lines = [f"Noise of a difference, in points: {', '.join(parts)}."]
    seeds = min(contrast.difference.n for contrast in found)
    smallest = resolvable(seeds)
    if spread is not None and smallest is not None:
        lines.append(
            f"{seeds} seeds find a difference of {smallest * spread:.2f} points in 4 of 5 cases; "
            "smaller ones mostly stay unresolved."
        )
    return [" ".join(lines)]


def _order(rows: Sequence[Row]) -> list[str]:
    found = agreement(rows)
    if found is None:
        return []
    chance = f"p = {found.p:.2g}" if found.p >= 1e-4 else "p < 0.0001"
    return [
        f"Order: Kendall's tau with the article's is {found.tau:.2f} over {found.rows} rows "
        f"({chance}, one-sided, {found.method})."
    ]


def _data(study: Study, ran: Sequence[RunRecord]) -> list[str]:
    rows = list(study.variants.values())

    def every(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    prints = ", ".join(words(run.data_fingerprint for run in ran)) or "none yet"
    both = {(run.train_images, run.test_images) for run in ran}
    sizes = sorted((a, b) for a, b in both if a is not None and b is not None)
    images = "; ".join(f"{a:,} training and {b:,} test images" for a, b in sizes)
    return [
        f"Data: {rows[0].data.name} at {every(one.data.image_size for one in rows)} px"
        + (f", {images}" if images else "")
        + f"; fingerprint {prints}. Network: {every(one.model.backbone for one in rows)}, "
        f"{every(one.train.epochs for one in rows)} epochs, "
        f"batch {every(one.train.batch_size for one in rows)}, "
        f"peak lr {every(f'{one.train.lr:g}' for one in rows)}."
    ]


def _costs(ran: Sequence[RunRecord]) -> list[str]:
    if not ran:
        return []
    return [
        "Costs: parameters; 10⁹ multiply-adds of one image; seconds of training an epoch (median "
        "over seeds); peak memory in 2³⁰ bytes."
    ]


def _environment(ran: Sequence[RunRecord]) -> list[str]:
    if not ran:
        return []
    changed = {run.commit for run in ran if run.dirty}
    commits = [
        f"{commit[:10]}{' with local changes' * (commit in changed)}"
        for commit in words(run.commit for run in ran)
    ]
    parts = [
        f"Device: {', '.join(words(run.device for run in ran))}",
        f"precision: {', '.join(words(run.precision for run in ran))}",
        f"torch: {', '.join(words(run.torch for run in ran))}",
        f"commit: {', '.join(commits) or 'unknown'}",
        f"seeds: {', '.join(map(str, sorted({run.seed for run in ran})))}",
    ]
    return [f"{'; '.join(parts)}."]


def _missing(study: Study, rows: Sequence[Row]) -> list[str]:
    lacking = []
    for row in rows:
        ran = {run.seed for run in row.runs}
        absent = [seed for seed in study.seeds if seed in row.seeds and seed not in ran]
        if ran and absent:
            lacking.append(f"{row.variant} (seed {', '.join(map(str, absent))})")
    return [f"Not finished: {'; '.join(lacking)}."] if lacking else []


def _broken(collected: Collected) -> list[str]:
    number = len(collected.broken)
    if not number:
        return []
    return [f"{number} file{'s' * (number > 1)} could not be read and {_are(number)} left out."]


def _are(number: int) -> str:
    return "are" if number > 1 else "is"


def words(found: Iterable[str | None]) -> list[str]:
    """The distinct texts of a fact, sorted; missing ones are left out."""
    return sorted({text for text in found if text is not None})
