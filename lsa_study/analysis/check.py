"""Are the written tables those that the collected runs give? What ``lsa table --check`` reports."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.formats import contents
from lsa_study.analysis.table import build
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
        runs = collected.setdefault(study.tier, collect(results, study.tier, folders=False))
        folder = results / study.tier / "tables"
        found += list(runs.broken)
        for name, text in contents(build(study, runs)).items():
            found += _differences(folder / name, text)
    return list(dict.fromkeys(found))


def _differences(path: Path, wanted: str) -> list[str]:
    try:
        written = path.read_text("utf-8")
    except (OSError, ValueError):
        return [f"{path}: cannot be read; write it with lsa table"]
    if written == wanted:
        return []
    try:
        if path.suffix in (".csv", ".json"):
            before, after = (_cells(text, path.suffix) for text in (written, wanted))
            places = dict.fromkeys([*before, *after])
            cells = [(place, before.get(place), after.get(place)) for place in places]
        else:
            cells = list(_lines(written.splitlines(), wanted.splitlines()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{path}: is damaged; write it with lsa table"]
    found = [
        f"{path.name}: {place}: {old or 'nothing'} in the file, {new or 'nothing'} from the runs"
        for place, old, new in cells
        if old != new
    ]
    return found or [f"{path}: differs in its layout; write it with lsa table"]


def _cells(text: str, suffix: str) -> dict[str, str]:
    """The cells of a CSV or JSON file by their places, such as ``row net6, acc1.mean``."""

    def flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flat(f"{path}.{name}".lstrip("."), inner)
        else:
            yield path, json.dumps(value, ensure_ascii=False)

    cells: dict[str, str] = {}
    rows: list[tuple[str, Iterable[tuple[str, str]]]]
    if suffix == ".csv":
        rows = [(row["variant"], row.items()) for row in csv.DictReader(io.StringIO(text))]
    else:
        document = json.loads(text)
        rows = [(row.pop("variant"), flat("", row)) for row in document.pop("rows")]
        cells = dict(flat("", document))
    return cells | {f"row {variant}, {k}": value for variant, row in rows for k, value in row}


def _lines(before: list[str], after: list[str]) -> Iterator[tuple[str, str, str]]:
    """The cells of the lines that differ, in Markdown or LaTeX, with their places in the file."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, start, stop, first, last in matcher.get_opcodes():
        changed = zip_longest(before[start:stop], after[first:last], fillvalue="")
        for at, pair in enumerate(changed if tag != "equal" else (), start=start + 1):
            # An escaped sign does not end a cell.
            cells = [map(str.strip, re.split(r"(?<!\\)[|&]", line)) for line in pair]
            for column, (old, new) in enumerate(zip_longest(*cells, fillvalue=""), start=1):
                yield f"line {at}, cell {column}", old, new
