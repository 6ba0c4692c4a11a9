"""The tables of studies in four formats from one object: write them, or check what is written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from lsa_study.analysis.latex import check_columns, latex, latex_pivot, one_line, places
from lsa_study.analysis.pivot import Pivot, facts, pivot_of
from lsa_study.analysis.rows import COSTS, Row, with_runs
from lsa_study.analysis.statistics import rounded
from lsa_study.analysis.table import Table, build
from lsa_study.config.settings import flatten
from lsa_study.config.study import Study
from lsa_study.files import replacing, writable

METRIC = "metrics.{}"
"""How a metric from outside is called in files of data."""
COLUMNS = (
    "paper", "paper_outcome", "delta", "paper_delta", "outcome", *COSTS, "runs", "marks",
)  # fmt: skip
"""What the JSON names as the columns of every table, after the labels and the metric."""
BESIDE = ("paper", "delta", "paper_delta")
"""What stands beside each further metric."""
PAPER = ("paper", "paper_outcome", "paper_delta")
"""Those that only a study with an article has, but for the first: null in every other JSON."""


def write_tables(
    studies: Sequence[Study],
    results: Path,
    columns: Sequence[str] = (),
    pivot: Sequence[str] = (),
    *,
    seen: Callable[[Table], object] = lambda table: None,
) -> list[Path]:
    """Write each study's table of finished runs, as csv, tex, md and json in ``<tier>/tables``.

    That of a grid of two factors or more also by two of them, as ``<study>-pivot``. All files are
    written, or none.

    Args:
        studies: those whose tables are written.
        results: where their runs lie.
        columns: those that tex and md show, by title or name in files of data; else all.
        pivot: the factor down and that across; else a grid's first two.
        seen: called with every table.

    Raises:
        ConfigError: none of the tables has such a column, or a grid no such factor.
        EnvironmentLacks: the disk is full or the folder cannot be written.
    """
    tables = _tables(studies, results, columns)
    texts = {
        folder / name: text
        for folder, table in tables
        for name, text in contents(table, columns, pivot).items()
    }
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(writable(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(replacing(path)).write_text(text, "utf-8")
    for _, table in tables:
        seen(table)
    return [*texts]


def _tables(
    studies: Sequence[Study], results: Path, columns: Sequence[str]
) -> list[tuple[Path, Table]]:
    """The tables of studies, each with its folder."""
    tables = [
        (results / tier / "tables", build(study, collected))
        for tier, pairs in with_runs(studies, results).items()
        for study, collected in pairs
    ]
    check_columns(columns, [table for _, table in tables])
    return tables


def contents(
    table: Table, columns: Sequence[str] = (), pivot: Sequence[str] = ()
) -> dict[str, str]:
    """The text of each file, by its name; accuracies in percent, rounded to four decimals.

    ``columns``: those that tex and md show; files of data hold all. ``pivot``: the factor down and
    that across of a grid.
    """
    file = table.study.file
    lacking = () if file.article else PAPER
    metrics = map(METRIC.format, table.metrics)
    first, *others = table.study.metrics
    beside = [name for one in others for name in (one, *(f"{one}_{key}" for key in BESIDE))]
    columns_of_data = ["model", *table.label_columns, first, *COLUMNS, *beside, *metrics]
    document = {
        "study": file.study,
        **table.study.apart,
        "tier": table.study.tier,
        "title": file.title,
        "question": file.question,
        **({"source": file.article.source} if file.article else {}),
        "baseline": file.baseline,
        "columns": [name for name in columns_of_data if name not in lacking],
        "rows": [
            _without(lacking[1:], _facts(row)) | _further(table, at, lacking)
            for at, row in enumerate(table.rows)
        ],
        "notes": [{"mark": note.mark, "text": note.text} for note in table.notes],
    }
    if table.effects:
        document["effects"] = [one.facts() for one in table.effects]
    as_json = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # In CSV one line per row, one number per cell; lists are separated by spaces.
    records = []
    for at, row in enumerate(_without(lacking, _facts(row)) for row in table.rows):
        record = {"study": file.study, "tier": table.study.tier, "variant": row["variant"]}
        record |= {"about": table.study.about} if table.study.about else {}
        record |= {name: row.get(name, "") for name in ("model", *table.label_columns)}
        record |= {f"{first}_{name}": value for name, value in row.pop(first).items()}
        record |= {name: value for name, value in row.items() if name not in record}
        for name, value in _further(table, at, lacking).items():
            of = value.items() if isinstance(value, dict) else [("", value)]
            record |= {f"{name}_{key}" if key else name: one for key, one in of}
        records.append(
            {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()}
        )
    as_csv = pd.DataFrame(records, dtype=object).to_csv(index=False, lineterminator="\n")
    texts = {
        "csv": as_csv,
        "tex": latex(table, columns),
        "md": markdown(table, columns),
        "json": as_json,
    }
    files = {f"{table.study.name}.{kind}": text for kind, text in texts.items()}
    if (found := pivot_of(table.study, table.rows, pivot)) is not None:
        texts = _pivot_texts(table, found)
        files |= {f"{table.study.name}-pivot.{kind}": text for kind, text in texts.items()}
    return files


def _pivot_texts(table: Table, pivot: Pivot) -> dict[str, str]:
    """A grid by two factors in each format."""
    study, records = table.study, facts(pivot)
    document = {
        "study": study.file.study,
        **study.apart,
        "tier": study.tier,
        "down": pivot.down,
        "across": pivot.across,
        "columns": [*pivot.columns],
        "rows": records,
    }
    lines = [f"**{escape(f'{table.caption}: {pivot.about}')}**"]
    for block, of_block in pivot.blocks.items():
        cells = [[f"{pivot.down} / {pivot.across}", *pivot.columns]]
        cells += [[value, *map(pivot.shown, found)] for value, found in of_block.items()]
        rows = [f"| {' | '.join(map(escape, line))} |" for line in cells]
        rule = f"| --- |{' ---: |' * len(pivot.columns)}"
        lines += ["", *([f"{escape(block)}:", ""] if block else []), rows[0], rule, *rows[1:]]
    flat = [flatten(record) for record in records]
    return {
        "csv": pd.DataFrame(flat, dtype=object).to_csv(index=False, lineterminator="\n"),
        "tex": latex_pivot(table, pivot),
        "md": "\n".join(lines) + "\n",
        "json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }


def _without(names: Sequence[str], facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


def _estimate(row: Row) -> dict[str, Any]:
    """A row's metric over its seeds, as data."""
    found = row.accuracy
    return {
        "mean": rounded(found.mean),
        "low": rounded(found.low),
        "high": rounded(found.high),
        "n": found.n,
        "values": [rounded(value) for value in found.values],
    }


def _further(table: Table, at: int, lacking: Sequence[str]) -> dict[str, Any]:
    """A row by each further metric of its task, as data."""
    found: dict[str, Any] = {}
    for row in (rows[at] for rows in table.others):
        difference = row.contrast.difference
        beside = {
            "paper": row.article.value,
            "delta": rounded(difference.mean),
            "delta_low": rounded(difference.low),
            "delta_high": rounded(difference.high),
            "delta_p": rounded(row.contrast.p(), 6),
            "paper_delta": rounded(row.article_delta),
        }
        found[row.metric] = _estimate(row)
        found |= {f"{row.metric}_{k}": v for k, v in _without(lacking, beside).items()}
    return found


def _facts(row: Row) -> dict[str, Any]:
    """A row as data: what CSV and JSON hold of it."""
    difference, images = row.contrast.difference, row.contrast.by_image
    return {
        "model": row.label,
        **row.columns,
        "variant": row.variant,
        "reference": row.reference,
        row.metric: _estimate(row),
        "paper": row.article.value,
        "paper_outcome": row.article.word or None,
        "delta": rounded(difference.mean),
        "delta_low": rounded(difference.low),
        "delta_high": rounded(difference.high),
        "delta_n": difference.n,
        "delta_p": rounded(row.contrast.p(), 6),
        "delta_method": row.contrast.noise.shown if row.contrast.noise else None,
        "images_low": rounded(images.low) if images else None,
        "images_high": rounded(images.high) if images else None,
        "images_p": rounded(images.p, 6) if images else None,
        "paper_delta": rounded(row.article_delta),
        "comparable": row.alike.text or True,
        "outcome": row.outcome,
        **{name: rounded(row.costs[name], cost.exact) for name, cost in COSTS.items()},
        **{METRIC.format(name): rounded(value, 6) for name, value in row.metrics.items()},
        "runs": row.identities,
        "marks": list(row.marks),
    }


def markdown(table: Table, columns: Sequence[str] = ()) -> str:
    """The table as GitHub shows it, with its caption and notes; ``columns`` as of ``contents``."""
    lines, notes = table.escaped(escape, "<sup>{}</sup>")
    shown = places(table, columns)
    header, *body = ([line[at] for at in shown] for line in lines)
    rule = ["---" if at <= len(table.label_columns) else "---:" for at in shown]
    rows = [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]
    listed = [" ".join(filter(None, ("-", *note))) for note in notes]
    return "\n".join([f"**{escape(table.caption)}**", "", *rows, "", *listed]) + "\n"


def escape(text: str) -> str:
    """Make a text show as written in a cell of Markdown; control characters become spaces."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&^])", r"\\\1", one_line(text))


def check_tables(
    studies: Sequence[Study], results: Path, columns: Sequence[str] = (), pivot: Sequence[str] = ()
) -> list[str]:
    """Rebuild the studies' tables from ``runs.parquet`` alone and compare them with the files.

    ``columns`` and ``pivot``: the choices they were written with.

    Returns:
        A line for every cell that differs, such as
        ``table3.csv: row net6, acc1_mean: 82.31 in the file, 82.27 from the runs``.
    """
    found: list[str] = []
    for tier, pairs in with_runs(studies, results, folders=False).items():
        found += pairs[0][1].broken
        for study, runs in pairs:
            for name, text in contents(build(study, runs), columns, pivot).items():
                found += _differences(results / tier / "tables" / name, text)
    return found


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
    if suffix == ".csv":
        return {
            f"row {row.get('variant') or row['row']}, {name}": value
            for row in csv.DictReader(io.StringIO(text))
            for name, value in row.items()
        }
    document = json.loads(text)
    cells: dict[str, Any] = {}
    for row in document.pop("rows"):
        cells |= flatten(row, f"row {row.pop('variant', None) or row.pop('row')}, ")
    cells |= flatten(document)
    return {place: json.dumps(value, ensure_ascii=False) for place, value in cells.items()}


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
