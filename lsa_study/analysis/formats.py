"""Write the tables of studies, each in four formats from one object."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsa_study.analysis.latex import latex, one_line
from lsa_study.analysis.rows import COSTS, Row, with_runs
from lsa_study.analysis.statistics import Estimate, rounded
from lsa_study.analysis.table import Table, build
from lsa_study.config.study import Study
from lsa_study.files import write_whole

FORMATS = ("csv", "tex", "md", "json")
COLUMNS = (
    "acc1", "paper", "paper_outcome", "delta", "paper_delta", "outcome", *COSTS, "runs", "marks",
)  # fmt: skip
"""What the JSON names as the columns of every table, after the labels."""


def write_tables(studies: Sequence[Study], results: Path) -> list[Path]:
    """Write each study's table of finished runs, as csv, tex, md and json in ``<tier>/tables``."""
    paths = []
    for tier, pairs in with_runs(studies, results).items():
        folder = results / tier / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        for study, collected in pairs:
            for name, text in contents(build(study, collected)).items():
                paths.append(folder / name)
                write_whole(paths[-1], text)
    return paths


def contents(table: Table) -> dict[str, str]:
    """The text of each file, by its name; accuracies in percent, rounded to four decimals."""
    file = table.study.file
    document = {
        "study": file.study,
        "tier": table.study.tier,
        "title": file.title,
        "question": file.question,
        "source": file.article.source,
        "baseline": file.baseline,
        "columns": ["model", *table.label_columns, *COLUMNS],
        "rows": [_facts(row) for row in table.rows],
        "notes": [{"mark": note.mark, "text": note.text} for note in table.notes],
    }
    as_json = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # In CSV one line per row, one number per cell; lists are separated by spaces.
    records = []
    for row in map(_facts, table.rows):
        record = {"study": file.study, "tier": table.study.tier, "variant": row["variant"]}
        record |= {name: row.get(name, "") for name in ("model", *table.label_columns)}
        record |= {f"acc1_{name}": value for name, value in row.pop("acc1").items()}
        record |= {name: value for name, value in row.items() if name not in record}
        records.append(
            {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()}
        )
    as_csv = io.StringIO()
    names = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(as_csv, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    texts = (as_csv.getvalue(), latex(table), markdown(table), as_json)
    return {f"{file.study}.{kind}": text for kind, text in zip(FORMATS, texts, strict=True)}


def _facts(row: Row) -> dict[str, Any]:
    """A row as data: what CSV and JSON hold of it."""
    acc1 = row.accuracy
    difference = row.contrast.difference if row.contrast else Estimate()
    images = row.contrast.by_image if row.contrast else None
    return {
        "model": row.label,
        **row.columns,
        "variant": row.variant,
        "reference": row.reference,
        "acc1": {
            "mean": rounded(acc1.mean),
            "low": rounded(acc1.low),
            "high": rounded(acc1.high),
            "n": acc1.n,
            "values": [rounded(value) for value in acc1.values],
        },
        "paper": row.article.value,
        "paper_outcome": row.article.word or None,
        "delta": rounded(difference.mean),
        "delta_low": rounded(difference.low),
        "delta_high": rounded(difference.high),
        "delta_n": difference.n,
        "delta_p": rounded(row.contrast.p, 6) if row.contrast else None,
        "images_low": rounded(images.low) if images else None,
        "images_high": rounded(images.high) if images else None,
        "images_p": rounded(images.p, 6) if images else None,
        "paper_delta": rounded(row.article_delta),
        "outcome": row.outcome,
        **{name: rounded(row.costs[name], cost.exact) for name, cost in COSTS.items()},
        "runs": row.identities,
        "marks": list(row.marks),
    }


def markdown(table: Table) -> str:
    """The table as GitHub shows it, with its caption and notes."""
    header, *body = table.escaped(escape, _marks)
    texts = 1 + len(table.label_columns)
    rule = ["---" if at < texts else "---:" for at in range(len(header))]
    notes = [f"- {_marks((n.mark,))} {escape(n.text)}".replace("-  ", "- ") for n in table.notes]
    rows = [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]
    return "\n".join([f"**{escape(table.caption)}**", "", *rows, "", *notes]) + "\n"


def _marks(marks: Iterable[str]) -> str:
    signs = ",".join(escape(mark) for mark in marks if mark)
    return f"<sup>{signs}</sup>" if signs else ""


def escape(text: str) -> str:
    """Make a text show as written in a cell of Markdown; control characters become spaces."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&^])", r"\\\1", one_line(text))
