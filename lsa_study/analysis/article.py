"""The article's numbers beside the rows of a study, from the CSV files of its tables."""

from __future__ import annotations

import functools
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
