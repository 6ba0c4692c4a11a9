"""The article's numbers beside the rows of a study, from the CSV files of its tables."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lsa_study.config.study import Study
from lsa_study.errors import ConfigError


@dataclass(frozen=True)
class ArticleRow:
    """What the article prints for a row: a number, or a word where it has none."""

    value: float | None = None
    word: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    """All of its line in the CSV, as printed; empty if the article has no such row."""

    @classmethod
    def of(cls, study: Study, variant: str) -> ArticleRow:
        """The article's row of a variant; empty if it has none.

        Raises:
            ConfigError: the CSV is missing, or the keys of ``paper`` do not single out one row.
        """
        keys, column = study.file.variants[variant].paper, study.file.article.column
        if not keys:
            return cls()
        path = study.document.path.parent / study.file.article.csv
        place = study.document.where("variants", variant, "paper")
        try:
            found = table = read_csv(path)
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({error}); give a CSV file"
            raise ConfigError(f"{place}: {path}: {problem}") from None
        if unknown := [name for name in (*keys, column) if name not in table]:
            problem = f"has no column {', '.join(unknown)}; it has {', '.join(map(str, table))}"
            raise ConfigError(f"{place}: {path.name} {problem}")
        for name, value in keys.items():
            found = found[found[name] == str(value)]
        if len(found) != 1:
            problem = f"{keys} is {len(found)} rows of {path.name}; single out one"
            raise ConfigError(f"{place}: {problem}")
        cells: dict[str, str] = dict(found.iloc[0])
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
