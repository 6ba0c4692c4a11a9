"""The notes under a table: tier, data, environment, seeds, and what a reader must know of a row."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lsa_study.evidence.collect import Collected, Run
from lsa_study.evidence.rows import Row
from lsa_study.study import Study

TIERS = {
    "toy": "Tier toy: a check that the pipeline works, never a reproduction of the article.",
    "proxy": "Tier proxy: small images and a small network, never a reproduction of the article; "
    "it can only show whether the order of the rows reappears.",
    "paper": "Tier paper: the article's data set and protocol.",
}
"""What the results of a tier may be taken for."""


@dataclass(frozen=True)
class Note:
    """A line under a table; ``mark`` is the sign beside the rows it is about, or empty."""

    text: str
    mark: str = ""


def notes_of(
    study: Study, rows: Sequence[Row], collected: Collected
) -> tuple[list[Note], dict[str, tuple[str, ...]]]:
    """All notes in order, and for each row the marks it carries."""
    marks: dict[str, tuple[str, ...]] = {}
    marked: list[Note] = []
    for row in rows:
        if row.note:
            mark = string.ascii_lowercase[len(marked) % 26]
            marks[row.variant] = (mark,)
            marked.append(Note(row.note, mark))
    ran = [run for row in rows for run in row.runs]
    general = [
        TIERS[study.tier],
        _article(study),
        _reading(rows),
        *_data(study, ran),
        *_environment(ran),
        *_costs(ran),
        *_missing(study, rows),
        *_broken(collected),
    ]
    return [*marked, *(Note(text) for text in general)], marks


def _article(study: Study) -> str:
    return (
        f"Article: the values printed in {study.file.article.source}. Δ, and the article's value "
        "in brackets: difference to the reference row (–), in points."
    )


def _reading(rows: Sequence[Row]) -> str:
    if any(row.accuracy.n > 1 for row in rows):
        return "Acc@1: mean over seeds ± half of the 95 % t interval; one seed has no interval."
    return "Acc@1: one seed, so no interval: differences within seed noise cannot be told apart."


def _data(study: Study, ran: Sequence[Run]) -> list[str]:
    settings = next(iter(study.variants.values()))
    data, train = settings.data, settings.train
    backbones = ", ".join(dict.fromkeys(one.model.backbone for one in study.variants.values()))
    prints = ", ".join(words(ran, "data_fingerprint")) or "none yet"
    both = ((run["train_images"], run["test_images"]) for run in ran)
    sizes = sorted({pair for pair in both if None not in pair})
    images = "; ".join(f"{a:,} training and {b:,} test images" for a, b in sizes)
    return [
        f"Data: {data.name} at {data.image_size} px"
        + (f", {images}" if images else "")
        + f"; fingerprint {prints}. Network: {backbones}, {train.epochs} epochs, "
        f"batch {train.batch_size}, peak lr {train.lr:g}."
    ]


def _costs(ran: Sequence[Run]) -> list[str]:
    if not ran:
        return []
    return [
        "Costs: parameters; 10⁹ multiply-adds of one image; seconds of training an epoch (median "
        "over seeds); peak memory in 2³⁰ bytes."
    ]


def _environment(ran: Sequence[Run]) -> list[str]:
    if not ran:
        return []
    changed = {run["commit"] for run in ran if run["dirty"]}
    commits = [
        f"{commit[:10]}{' with local changes' * (commit in changed)}"
        for commit in words(ran, "commit")
    ]
    parts = [
        f"Device: {', '.join(words(ran, 'device'))}",
        f"precision: {', '.join(words(ran, 'precision'))}",
        f"torch: {', '.join(words(ran, 'torch'))}",
        f"commit: {', '.join(commits) or 'unknown'}",
        f"seeds: {', '.join(map(str, sorted({run['seed'] for run in ran})))}",
    ]
    return [f"{'; '.join(parts)}."]


def _missing(study: Study, rows: Sequence[Row]) -> list[str]:
    lacking = []
    for row in rows:
        ran = {run["seed"] for run in row.runs}
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


def words(ran: Iterable[Run], name: str) -> list[str]:
    """The distinct texts of a fact, sorted; missing ones are left out."""
    return sorted({run[name] for run in ran if run[name] is not None})
