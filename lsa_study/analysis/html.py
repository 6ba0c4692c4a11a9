"""One self-contained page: claims, tables with the runs behind every cell, figures. Offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lsa_study.analysis import claims, verdicts
from lsa_study.analysis.claims import Verdict
from lsa_study.analysis.collect import Collected, RunRecord
from lsa_study.analysis.plots import style
from lsa_study.analysis.plots.figures import figures
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.statistics import signed
from lsa_study.analysis.table import Table, TableRow, build
from lsa_study.analysis.tables import with_runs
from lsa_study.analysis.tiers import MEANING
from lsa_study.config.study import Study
from lsa_study.files import write_whole

CAPTIONS: Mapping[str, str] = {
    "accuracy": "Accuracy of every row beside the article's.",
    "differences": "Differences to the reference rows beside the article's.",
    "curves": "Test accuracy after every epoch.",
    "seeds": "Accuracy of every seed.",
    "heads": "Accuracy over the number of heads beside the article's.",
    "costs": "Accuracy of every row against the multiply-adds of one image.",
    "throughput": "Accuracy of every row against the images a second in training.",
    "layers": "Accuracy, parameters and multiply-adds of the layers of the article's Fig. 1.",
}
"""By the last word of a figure's name: what it shows, also for those who cannot see it."""


@dataclass(frozen=True)
class Cell:
    """One cell of the page; ``runs`` are shown on hover and focus."""

    text: str
    sort: str
    kind: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One inline figure."""

    name: str
    caption: str
    svg: Markup


def report_path(results: Path, tier: str) -> Path:
    """Where the page of a tier lies under a results folder."""
    return results / tier / "report.html"


def write_report(studies: Sequence[Study], results: Path) -> list[Path]:
    """Write one page for each tier of the studies: all claims, their tables and figures.

    The page needs no network and no other file.
    """
    by_tier: dict[str, list[tuple[Study, Collected]]] = {}
    for study, collected in with_runs(studies, results):
        by_tier.setdefault(study.tier, []).append((study, collected))
    paths = []
    for tier, pairs in by_tier.items():
        judged = claims.judge_tier(results, tier, collected=pairs[0][1])
        paths.append(report_path(results, tier))
        write_whole(paths[-1], page(pairs, judged))
    return paths


def page(pairs: Sequence[tuple[Study, Collected]], judged: Sequence[Verdict]) -> str:
    """The page of studies at one tier as HTML text; everything that is not markup is escaped."""
    tier = pairs[0][0].tier
    matched = [(study, rows_of(study, collected)) for study, collected in pairs]
    drawn = figures(matched)
    sections = [
        _section(study, collected, rows, drawn)
        for (study, collected), (_, rows) in zip(pairs, matched, strict=True)
    ]
    broken = sorted({line for _, collected in pairs for line in collected.broken})
    return _template().render(
        tier=tier,
        meaning=MEANING[tier],
        claims=[_claim(verdict) for verdict in judged],
        counts=claims.as_json(judged, tier)["counts"],
        sections=sections,
        overview=_pictures("", drawn, ("fig1-layers", "costs", "throughput")),
        broken=broken,
        light={variable(colour): colour for colour in style.DARK},
        dark={variable(colour): dark for colour, dark in style.DARK.items()},
    )


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("lsa_study.analysis", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def _section(
    study: Study, collected: Collected, rows: Sequence[Row], drawn: Mapping[str, Figure]
) -> dict[str, Any]:
    table = build(study, collected)
    names = [name for name in drawn if name.startswith(f"{study.name}-")]
    by_variant = {row.variant: row for row in rows}
    return {
        "name": study.name,
        "title": f"{table.source}: {table.title}",
        "question": table.question,
        "caption": table.caption,
        "header": table.header(),
        "texts": 1 + len(table.label_columns),
        "rows": [
            {"marks": row.marks, "cells": _cells(table, row, texts, by_variant[row.variant])}
            for row, texts in zip(table.rows, table.texts(), strict=True)
        ],
        "notes": table.notes,
        "pictures": _pictures(study.name, drawn, names),
    }


def _cells(table: Table, row: TableRow, texts: Sequence[str], behind: Row) -> list[Cell]:
    labels = 1 + len(table.label_columns)
    cells = []
    for at, (title, text) in enumerate(zip(table.header(), texts, strict=True)):
        kind = "head" if at == 0 else "text" if at < labels else "number"
        runs: tuple[str, ...] = ()
        if title == "Acc@1 (%)":
            runs = tuple(_run(run) for run in behind.runs)
        elif title == "Δ" and row.contrast is not None:
            runs = _pairs(row)
        cells.append(Cell(text, _sort(text), kind, runs))
    return cells


def _run(run: RunRecord) -> str:
    accuracy = f"{run.acc1:.2f} %" if run.acc1 is not None else run.outcome
    commit = f"commit {run.commit[:10]}" if run.commit else "commit unknown"
    changed = " with local changes" if run.dirty else ""
    reason = f", {run.reason}" if run.reason else ""
    return (
        f"seed {run.seed}: {accuracy}, run {run.identity}, {commit}{changed}, {run.device}{reason}"
    )


def _pairs(row: TableRow) -> tuple[str, ...]:
    contrast = row.contrast
    assert contrast is not None
    lines = [
        f"seed {seed}: {signed(value, 2)} against {contrast.reference}"
        for seed, value in zip(contrast.seeds, contrast.difference.values, strict=True)
    ]
    if contrast.p is not None:
        lines.append(f"paired t test over seeds: p = {contrast.p:.2g}")
    if (images := contrast.by_image) is not None:
        lines.append(
            f"over test images: {signed(images.low, 2)} to {signed(images.high, 2)}, "
            f"p = {images.p:.2g}; {images.gained} gained, {images.lost} lost"
        )
    return tuple(lines)


def _sort(text: str) -> str:
    # Numbers sort as numbers; a word goes to the end of either order.
    number = re.match(r"[+−-]?\d+(\.\d+)?", text)
    return number.group().replace("−", "-") if number else ""


def _claim(verdict: Verdict) -> dict[str, Any]:
    claim, judged = verdict.claim, verdict.judged
    return {
        "id": claim.id,
        "text": claim.text,
        "source": claim.source,
        "rows": [{"name": row, "study": row.split("/")[0]} for row in claim.rows],
        "word": judged.word,
        "verdict": judged.verdict,
        "numbers": verdicts.shown(judged, claim.metric, float(claim.margin)),
        "article": signed(verdict.article, 1),
        "notes": judged.notes,
    }


def _pictures(study: str, drawn: Mapping[str, Figure], names: Sequence[str]) -> list[Picture]:
    found = []
    for name in names:
        if name in drawn:
            caption = CAPTIONS[name.rsplit("-", 1)[-1]]
            found.append(Picture(name, caption, inline(style.svg(drawn[name]), name, caption)))
    return found


def variable(colour: str) -> str:
    """The name of a colour in the page's style sheet."""
    return f"figure-{colour[1:]}"


def inline(svg: str, name: str, caption: str) -> Markup:
    """Fit an SVG into a page: no prolog, own ids, a text for screen readers, the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour in style.DARK:
        body = re.sub(colour, f"var(--{variable(colour)})", body)
    size = re.search(r'viewBox="[^"]*"', body)
    assert size is not None
    opening = f'<svg role="img" aria-label="{escape(caption)}" {size.group()}>'
    body = re.sub(r"<svg [^>]*>", lambda _: opening, body, count=1)
    return Markup(body)
