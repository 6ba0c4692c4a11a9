"""Beside a study's rows: the article's numbers, and costs that were counted or timed."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lsa_study.config.settings import Settings
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

NAME = re.compile(r"\{(\w+)\}")
"""What stands in a note for a text or a count."""
COUNTS = {"params", "gmacs", "gmacs_uncombined", "article_params", "article_gmacs"}
"""The counts that a note may name."""


@dataclass(frozen=True)
class ArticleRow:
    """What the article prints for a row: a number, or a word where it has none."""

    value: float | None = None
    word: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    """All of its line in the CSV, as printed; empty if the article has no such row."""

    @classmethod
    def of(cls, study: Study, variant: str, metric: str | None = None) -> ArticleRow:
        """The article's row of a variant; empty if it has none.

        ``metric``: the one that the number is of; None: the study's first.

        Raises:
            ConfigError: the CSV is missing, or the keys of ``paper`` do not single out one row.
        """
        keys, article = study.file.variants[variant].paper, study.file.article
        if not keys or article is None:
            return cls()
        path = study.document.path.parent / article.csv
        column = study.article_column(variant, metric or study.metrics[0])
        place = study.document.where("variants", variant, "paper")
        try:
            table = read_csv(path)
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({error}); give a CSV file"
            raise ConfigError(f"{place}: {path}: {problem}") from None
        if unknown := [name for name in (*keys, column) if name not in table]:
            problem = f"has no column {', '.join(unknown)}; it has {', '.join(map(str, table))}"
            raise ConfigError(f"{place}: {path.name} {problem}")
        chosen = np.ones(len(table), bool)
        for name, value in keys.items():
            chosen &= table[name].to_numpy() == str(value)
        if chosen.sum() != 1:
            problem = f"{keys} is {chosen.sum()} rows of {path.name}; single out one"
            raise ConfigError(f"{place}: {problem}")
        at = int(chosen.argmax())
        cells = {str(name): str(table[name].to_numpy()[at]) for name in table}
        if text := cells[column]:
            return cls(float(text), cells=cells)
        return cls(word=cells.get("status", "").replace("_", " "), cells=cells)

    @property
    def text(self) -> str:
        """The number as printed in tables, or the word; empty without either."""
        return self.word if self.value is None else f"{self.value:.1f}"


@functools.lru_cache(maxsize=32)
def read_csv(path: Path) -> pd.DataFrame:
    """A table of the article, every cell as the text that is printed."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def network_key(settings: Settings) -> str:
    """Ten hex digits for what counts depend on: the data set, its images' size, and the network."""
    science = settings.science()
    parts = {"data": science["data"]["name"], "image_size": science["data"]["image_size"]}
    text = json.dumps(parts | science["model"] | {"drop_path": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.lru_cache(maxsize=4)
def counts_in(path: Path) -> dict[str, dict[str, int]]:
    """Counted networks by their keys; none where there is no such file.

    Raises:
        ConfigError: the file holds no counts.
    """
    try:
        networks: dict[str, dict[str, int]] = json.loads(path.read_text("utf-8"))["networks"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no counts ({error}); run python benchmarks/costs.py") from None
    return networks


def columns_and_note(study: Study, variant: str) -> tuple[dict[str, str], str | None]:
    """A row's further cells, counted costs among them, and its note with what it names filled in.

    Where the study has ``costs``, cells and notes know ``params``, in millions, and ``gmacs``, the
    article's ``article_params`` and ``article_gmacs``, and ``gmacs_uncombined``, which leaves out
    combining filters with one ghost matrix. A network that was not counted has ``?``. Networks of
    other tiers than paper are not the counted ones: there are no such cells and notes there.

    Raises:
        ConfigError: the counts cannot be read, or the note names something else.
    """
    written = study.file.variants[variant]
    columns, counts = dict(written.columns), {}
    if study.file.costs is not None and study.tier == "paper":
        counts = _counts(study, variant, study.document.path.parent / study.file.costs)
        if study.file.article is None:
            columns["Params (counted)"] = "{params} M".format(**counts)
            columns["GMACs (counted)"] = "{gmacs}".format(**counts)
        else:
            columns["Params (article)"] = "{params} M ({article_params} M)".format(**counts)
            columns["GMACs (article)"] = "{gmacs} ({article_gmacs})".format(**counts)

    def fill(note: str, texts: dict[str, str], *keys: str) -> str:
        if unknown := [name for name in re.findall(NAME, note) if name not in texts]:
            place, known = study.document.where(*keys), ", ".join(texts) or "none"
            raise ConfigError(f"{place}: {{{unknown[0]}}} is no text for notes; known: {known}")
        return re.sub(NAME, lambda match: texts[match[1]], note)

    if written.note is None or (not counts and COUNTS & {*re.findall(NAME, written.note)}):
        return columns, None
    shared = {name: fill(text, counts, "notes", name) for name, text in study.file.notes.items()}
    return columns, fill(written.note, counts | shared, "variants", variant, "note")


def _counts(study: Study, variant: str, path: Path) -> dict[str, str]:
    try:
        network = json.loads(path.read_text("utf-8"))["networks"].get(
            network_key(study.variants[variant])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no counts ({error}); run python benchmarks/costs.py") from None
    article = ArticleRow.of(study, variant).cells
    shown = {"params": "?", "gmacs": "?", "gmacs_uncombined": "?"}
    if network is not None:
        macs, raw = network["macs"], network["macs_raw"]
        numbers = (network["params"] / 1e6, macs / 1e9, (macs + raw) / 2e9)
        shown = {name: f"{number:.2f}" for name, number in zip(shown, numbers, strict=True)}
    return shown | {
        "article_params": article.get("params_m") or "none",
        "article_gmacs": article.get("flops_g") or "none",
    }


def rates_of(study: Study) -> tuple[dict[str, dict[str, str]], str]:
    """Cells of the rows that ``lsa bench`` timed, by variant, and what was timed where; else empty.

    Ratios are to the study's baseline row.

    Raises:
        ConfigError: the file holds no figures of these rows.
    """
    path = study.document.path.parent / (study.file.benchmark or "")
    if study.file.benchmark is None or not path.exists():
        return {}, ""
    try:
        found = json.loads(path.read_text("utf-8"))
        networks, machine = found["networks"], found["machine"]
        base = networks[study.file.variants[study.file.baseline].network]
        cells: dict[str, dict[str, str]] = {}
        for name, row in study.file.variants.items():
            for mode in ("inference", "training") if row.network in networks else ():
                rate = networks[row.network][mode]["images_per_second"]
                text = f"{rate:.3g} ({rate / base[mode]['images_per_second']:.2f})"
                cells.setdefault(name, {})[f"{mode.capitalize()} (images/s)"] = text
        note = (
            f"Images/s: medians of interleaved steps of {found['batch']} images of "
            f"{found['size']} pixels in {found['precision']} on {machine['device']}, "
            f"{machine['threads']} threads, torch {machine['torch']}; in brackets the ratio to "
            "the first row."
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no figures of these rows ({error}); run lsa bench") from None
    return cells, note
