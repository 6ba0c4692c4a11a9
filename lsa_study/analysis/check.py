"""Are the written tables those that the collected runs give? What ``lsa table --check`` tells."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lsa_study.analysis.collect import Collected, stored
from lsa_study.analysis.table import build
from lsa_study.analysis.tables import contents, tables_folder
from lsa_study.config.study import Study


def check_tables(studies: Sequence[Study], results: Path) -> list[str]:
    """Rebuild the studies' tables from ``runs.parquet`` alone and compare them with the files.

    Returns:
        A line for every cell that differs, such as
        ``table3.csv: row net6, acc1_mean: 82.31 in the file, 82.27 from the runs``; none if all
        is as it should be. Writes nothing.
    """
    collected: dict[str, Collected] = {}
    found = []
    for study in studies:
        runs = collected.setdefault(study.tier, stored(results, study.tier))
        folder = tables_folder(results, study.tier)
        found += list(runs.broken)
        for name, text in contents(build(study, runs)).items():
            found += _differences(folder / name, text)
    return list(dict.fromkeys(found))


def _differences(path: Path, wanted: str) -> Iterator[str]:
    try:
        written = path.read_text("utf-8")
    except (OSError, ValueError):
        yield f"{path}: cannot be read; write it with lsa table"
        return
    if written == wanted:
        return
    cells = {".csv": _csv, ".json": _json}.get(path.suffix, _lines)
    try:
        before, after = cells(written), cells(wanted)
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"{path}: is damaged; write it with lsa table"
        return
    lines = [
        f"{path.name}: {place}: {_shown(before, place)} in the file, "
        f"{_shown(after, place)} from the runs"
        for place in dict.fromkeys([*before, *after])
        if before.get(place) != after.get(place)
    ]
    yield from lines or [f"{path}: differs in its layout; write it with lsa table"]


def _shown(cells: dict[str, str], place: str) -> str:
    return cells.get(place, "nothing") or "nothing"


def _csv(text: str) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(text))
    return {f"row {row['variant']}, {name}": value for row in rows for name, value in row.items()}


def _json(text: str) -> dict[str, str]:
    document = json.loads(text)
    rows = {row.pop("variant"): row for row in document.pop("rows")}
    cells = dict(_flat("", document))
    for variant, row in rows.items():
        cells |= {f"row {variant}, {name}": value for name, value in _flat("", row)}
    return cells


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}" if path else str(name), inner)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _lines(text: str) -> dict[str, str]:
    cells = {}
    for number, line in enumerate(text.splitlines(), start=1):
        # Markdown and LaTeX rows alike: an escaped sign does not end a cell.
        for column, cell in enumerate(re.split(r"(?<!\\)[|&]", line), start=1):
            cells[f"line {number}, cell {column}"] = cell.strip()
    return cells
