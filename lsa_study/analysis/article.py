"""What stands beside our runs in a row: the article's numbers, and the rates of ``lsa bench``."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

STATUS = {"crash": "crash", "out_of_memory": "out of memory"}
"""How the article's rows without a number ended, in words."""


@dataclass(frozen=True)
class Printed:
    """What the article prints for a row: a number, or a word where it has none."""

    value: float | None = None
    word: str = ""


def printed(study: Study, variant: str) -> Printed:
    """The article's value for a variant; empty if the article has no such row.

    Raises:
        ConfigError: as :func:`printed_row`.
    """
    row = printed_row(study, variant)
    if not row:
        return Printed()
    if text := row[study.file.article.column]:
        return Printed(float(text))
    return Printed(word=STATUS.get(row.get("status", ""), row.get("status", "")))


def printed_row(study: Study, variant: str) -> dict[str, str]:
    """Find the article's row of a variant in the CSV of its table; empty if it has none.

    Raises:
        ConfigError: the CSV is missing, or the keys of ``paper`` do not single out one row.
    """
    keys = study.file.variants[variant].paper
    if not keys:
        return {}
    path = study.document.path.parent / study.file.article.csv
    place = study.document.where("variants", variant, "paper")
    try:
        found = table = read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {path}: cannot be read ({error}); give a CSV file") from None
    column = study.file.article.column
    if unknown := [name for name in (*keys, column) if name not in table]:
        known = ", ".join(map(str, table.columns))
        raise ConfigError(
            f"{place}: {path.name} has no column {', '.join(unknown)}; it has {known}"
        )
    for name, value in keys.items():
        found = found[found[name] == str(value)]
    if len(found) != 1:
        raise ConfigError(f"{place}: {keys} is {len(found)} rows of {path.name}; single out one")
    return dict(found.iloc[0])


@functools.lru_cache(maxsize=32)
def read_csv(path: Path) -> pd.DataFrame:
    """A table of the article, every cell as the text that is printed."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def measured(study: Study) -> tuple[dict[str, dict[str, str]], str]:
    """Cells of every row that ``lsa bench`` timed, and what was timed where; else empty.

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
                rate, of_base = (
                    network[mode]["images_per_second"] for network in (networks[row.network], base)
                )
                text = f"{rate:.3g} ({rate / of_base:.2f})"
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
