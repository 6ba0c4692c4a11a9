"""Write the tables of studies, each in four formats from one object."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsa_study.analysis.collect import Collected, refresh
from lsa_study.analysis.latex import latex
from lsa_study.analysis.table import Table, build
from lsa_study.config.study import Study
from lsa_study.files import write_whole

FORMATS = ("csv", "tex", "md", "json")


def tables_folder(results: Path, tier: str) -> Path:
    """Where the tables of a tier lie under a results folder."""
    return results / tier / "tables"


def write_tables(studies: Sequence[Study], results: Path) -> list[Path]:
    """Collect the finished runs of the studies' tiers and write each study's table.

    Args:
        studies: as loaded, overrides included; those of one tier share one collection.
        results: the folder that holds ``<tier>/runs``.

    Returns:
        The files written, four for each study: csv, tex, md and json.
    """
    return [
        path
        for study, collected in with_runs(studies, results)
        for path in write(build(study, collected), tables_folder(results, study.tier))
    ]


def with_runs(studies: Iterable[Study], results: Path) -> list[tuple[Study, Collected]]:
    """Pair each study with the finished runs of its tier; every tier is read once."""
    collected: dict[str, Collected] = {}
    pairs = []
    for study in studies:
        if study.tier not in collected:
            collected[study.tier] = refresh(results, study.tier)
        pairs.append((study, collected[study.tier]))
    return pairs


def write(table: Table, folder: Path) -> list[Path]:
    """Write one table in every format."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in contents(table).items():
        paths.append(folder / name)
        write_whole(paths[-1], text)
    return paths


def contents(table: Table) -> dict[str, str]:
    """The text of each file, by its name."""
    writers = {"csv": as_csv, "tex": latex, "md": markdown, "json": as_json}
    return {f"{table.study}.{kind}": writers[kind](table) for kind in FORMATS}


def as_json(table: Table) -> str:
    """The table as JSON text."""
    return json.dumps(table.as_json(), indent=2, ensure_ascii=False) + "\n"


def as_csv(table: Table) -> str:
    """One line per row, one number per cell; lists are separated by spaces."""
    document = table.as_json()
    records = [_flat(table, row) for row in document["rows"]]
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"study": table.study, "tier": table.tier, "variant": row["variant"]}
    flat["model"] = row["model"]
    flat |= {name: row.get(name, "") for name in table.label_columns}
    flat |= {f"acc1_{name}": row["acc1"][name] for name in ("mean", "low", "high", "n", "values")}
    flat |= {name: value for name, value in row.items() if name != "acc1" and name not in flat}
    return {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in flat.items()}


def markdown(table: Table) -> str:
    """The table as GitHub shows it, with its caption and notes."""
    header = table.header()
    texts = 1 + len(table.label_columns)
    rule = ["---" if at < texts else "---:" for at in range(len(header))]
    lines = [f"**{_escape(table.caption)}**", "", _line(map(_escape, header)), _line(rule)]
    for row, cells in zip(table.rows, table.texts(), strict=True):
        shown = list(map(_escape, cells))
        shown[0] += _marks(row.marks)
        lines.append(_line(shown))
    lines.append("")
    for note in table.notes:
        lines.append(f"- {_marks((note.mark,))} {_escape(note.text)}".replace("-  ", "- "))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marks(marks: Sequence[str]) -> str:
    shown = ",".join(_escape(mark) for mark in marks if mark)
    return f"<sup>{shown}</sup>" if shown else ""


def _escape(text: str) -> str:
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    return re.sub(r"([\\`*_{}\[\]<>#|~$&^])", r"\\\1", text)
