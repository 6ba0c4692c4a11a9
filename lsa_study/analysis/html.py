"""One self-contained page: claims, tables with the runs behind every cell, figures. Offline."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lsa_study.analysis import claims
from lsa_study.analysis.answer import HEADER, TITLE, answer, renew
from lsa_study.analysis.claims import ClaimVerdict
from lsa_study.analysis.collect import Collected
from lsa_study.analysis.notes import meaning
from lsa_study.analysis.plots import claims_name, figures, style
from lsa_study.analysis.rows import Row, with_runs
from lsa_study.analysis.sheet import sheet_of
from lsa_study.analysis.statistics import signed
from lsa_study.analysis.table import Table, build
from lsa_study.analysis.tags import NONE
from lsa_study.config.names import counted
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS
from lsa_study.files import write_whole

SHOWN = 4
"""So many claims or reasons stand in a sentence."""


def write_report(studies: Sequence[Study], results: Path) -> list[Path]:
    """Write ``DIR/<tier>/report.html``, a page of claims, tables and figures, for each tier.

    It holds the article's claims where one of the studies is the article's, and those of studies of
    your own; where all of the article's are there, what limits local self-attention, which a README
    beside it shows too, between the marks of ``answer.MARKS``. That of one side study alone is
    ``report-NAME.html``, with the claims that its runs can judge.
    The page needs no network and no other file.
    """
    paths = []
    for tier, pairs in with_runs(studies, results).items():
        side = pairs[0][0] if len(pairs) == 1 and pairs[0][0].alias else None
        judged = claims.judge_studies([one for one, _ in pairs], results, pairs[0][1])
        paths.append(results / tier / (f"report-{side.name}.html" if side else "report.html"))
        write_whole(paths[-1], page(pairs, judged))
        renew(results / tier / "README.md", pairs)
    return paths


def page(pairs: Sequence[tuple[Study, Collected]], judged: Sequence[ClaimVerdict]) -> str:
    """The page of studies at one tier as HTML text; everything that is not markup is escaped."""
    tier = pairs[0][0].tier
    tables = [build(study, collected) for study, collected in pairs]
    made = figures([(table.study, table.rows) for table in tables], judged)
    drawn = {name: _picture(name, figure) for name, figure in made.items()}
    studies = [study for study, _ in pairs]
    sections = [
        _section(family, of, drawn.pop(claims_name(family, studies), None), tier)
        for family, of in claims.families(judged).items()
    ]
    article = any(study.file.article for study in studies)
    titles = "; ".join(study.file.title for study in studies)
    names = [study.name for study in studies]
    owners = {
        one: max((name for name in names if one.startswith(f"{name}-")), key=len, default="")
        for one in drawn
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsa_study.analysis", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def sort_key(text: str) -> str:
        """The number that a cell begins with; empty for a word, which stands last."""
        number = re.match(r"[+−-]?\d+(\.\d+)?", text)
        return number.group().replace("−", "-") if number else ""

    environment.globals.update(
        zip=zip,
        answer_title=TITLE,
        here=HEADER[1],
        signed=signed,
        behind=_behind,
        sort_key=sort_key,
    )
    return environment.get_template("report.html.j2").render(
        tier=tier,
        title="What limits local self-attention?" if article else titles,
        meaning=meaning(tier, article=article),
        summary=summary(tables, judged),
        answer=answer(tables, pairs[0][1]),
        sections=sections,
        tables=tables,
        sheets={
            study.name: sheet_of(study)
            for study in studies
            if tier == "paper" and study.file.article
        },
        pictures={
            name: [picture for one, picture in drawn.items() if owners[one] == name]
            for name in names
        },
        overview=[picture for one, picture in drawn.items() if not owners[one]],
        broken=sorted({line for _, collected in pairs for line in collected.left_out}),
        colours={f"figure-{light[1:]}": (light, dark) for light, dark in style.DARK.items()},
    )


def _section(
    family: str, judged: Sequence[ClaimVerdict], forest: tuple[Markup, str] | None, tier: str
) -> dict[str, Any]:
    """What the page shows of claims that were tested together."""
    groups = list(claims.GROUPS)
    return {
        "name": f"{family}-claims" if family else "claims",
        "title": f"Claims of {family}" if family else "The articles' claims",
        "article": not family,
        "verdicts": sorted(judged, key=lambda one: (groups.index(one.grouped), one.wanted or 0)),
        "groups": {
            group: (title.partition(":")[0], number)
            for group, title in claims.GROUPS.items()
            if (number := sum(one.grouped == group for one in judged))
        },
        "forest": forest,
        "abouts": [*dict.fromkeys(about for one in judged for about in one.overrides)],
        "counts": claims.claims_json(judged, tier)["counts"],
    }


def summary(tables: Sequence[Table], judged: Sequence[ClaimVerdict]) -> list[str]:
    """Three sentences: what was run, what is decided, and what is not with what it would take.

    Without claims the first alone.
    """
    tier = tables[0].study.tier
    rows = [row for table in tables for row in table.rows]
    runs = {run.identity: run for row in rows for run in row.runs}.values()
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    devices = sorted({run.device or "an unknown device" for run in runs})
    lost = sum(run.outcome != "done" for run in runs)
    ran = (
        f"What was run: {counted(len(runs), 'run')} at tier {tier}, for "
        f"{sum(bool(row.runs) for row in rows)} of the {len(rows)} rows of "
        f"{', '.join(table.study.place for table in tables)}"
        + (f"; seeds: {seeds}; on {', '.join(devices)}" if runs else "")
        + (f"; {lost} ended without an accuracy" if lost else "")
    )
    if not judged:
        return [f"{ran}."]
    if tier == "toy":
        shown = sum(one.word != "not run" for one in judged)
        return [
            f"{ran}.",
            "What is decided: nothing, as results of tier toy check the pipeline and are never "
            "evidence.",
            f"What is not: all {counted(len(judged), 'claim')}; {shown} have numbers that "
            "show what would be judged, and a verdict takes runs at tier proxy or paper.",
        ]
    decided = [one for one in judged if one.grouped == "decided"]
    found = "; ".join(
        f"{one.word}{' †' * bool(one.comparable)}: {one.claim.text.rstrip('.')}"
        for one in decided[:SHOWN]
    )
    more = f"; and {len(decided) - SHOWN} more" if len(decided) > SHOWN else ""
    nearest = [one for one in judged if one.grouped == "near"]
    near = min(nearest, key=lambda one: one.wanted or 0, default=None)
    waiting = [one for one in judged if one.grouped == "not run"]
    parts = [
        _counts("open", (one.needs for one in judged if one.grouped in ("near", "open"))),
        f"nearest: {near.claim.text.rstrip('.')} ({near.needs})" if near else "",
        _counts("not run", (re.sub(r".*: not run$", "rows not run", w.reason) for w in waiting)),
    ]
    return [
        f"{ran}.",
        f"What is decided: {len(decided)} of {counted(len(judged), 'claim')}"
        f"{'; ' * bool(found)}{found}{more}.",
        f"What is not: {'; '.join(filter(None, parts)) or 'nothing'}.",
    ]


def _counts(word: str, reasons: Iterable[str]) -> str:
    """How many claims are left so and why, as ``17 open (14: more seeds; 3: other devices)``."""
    # Claims that need other numbers of seeds need the same thing.
    found = Counter(re.sub(r"^about .*", "more seeds, as many as it says", one) for one in reasons)
    listed = [f"{number}: {reason}" for reason, number in found.most_common(SHOWN) if reason]
    listed = [*found] if len(found) == 1 else listed + ["..."] * (len(found) > SHOWN)
    return f"{found.total()} {word} ({'; '.join(listed)})" if found else ""


def _behind(row: Row, title: str) -> list[str]:
    """What is shown on hover and focus over a row's cell: the runs that it rests on."""
    if title == METRICS[row.metric].title:
        lines = []
        for run in row.runs:
            done, metric = run.outcome == "done", METRICS[row.metric]
            accuracy = metric.shown(run.accuracy) if done else run.outcome
            reason = f", {run.reason}" if run.reason else ""
            about = f"run {run.identity}, commit {run.shown('commit')}, {run.device}{reason}"
            said = [*run.remarks.tags, run.remarks.note] if run.remarks != NONE else []
            lines.append(", ".join(filter(None, (f"seed {run.seed}: {accuracy}", about, *said))))
        return lines
    if title != "Δ":
        return []
    contrast = row.contrast
    lines = [
        f"seed {seed}: {signed(value, 2)} against {row.reference}"
        for seed, value in zip(contrast.seeds, contrast.difference.values, strict=True)
    ]
    if (noise := contrast.noise) is not None:
        p = f"p = {contrast.p():.2g}"
        over = "over seeds alone" if noise.image is None else "over seeds and test images"
        lines.append(f"{over} ({noise.method}): {p}")
    if (images := contrast.by_image) is not None:
        lines.append(
            f"over test images: {signed(images.low, 2)} to {signed(images.high, 2)}, "
            f"p = {images.p:.2g}; {images.gained} gained, {images.lost} lost"
        )
    return lines


def _picture(name: str, figure: Figure) -> tuple[Markup, str]:
    """A figure inside a page, with own ids and the page's colours, and its caption."""
    caption, svg = str(figure.get_label()), style.svg(figure)
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour in style.DARK:
        body = body.replace(colour, f"var(--figure-{colour[1:]})")
    size = re.search(r'viewBox="[^"]*"', body)
    assert size is not None
    opening = f'<svg role="img" aria-label="{escape(caption)}" {size.group()}>'
    return Markup(opening + body[body.index(">") + 1 :]), caption
