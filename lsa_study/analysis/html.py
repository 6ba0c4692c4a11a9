"""One self-contained page: claims, tables with the runs behind every cell, figures. Offline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lsa_study.analysis import claims
from lsa_study.analysis.claims import ClaimVerdict
from lsa_study.analysis.collect import Collected
from lsa_study.analysis.notes import MEANING
from lsa_study.analysis.plots import CAPTIONS, figures, style
from lsa_study.analysis.rows import Row, with_runs
from lsa_study.analysis.statistics import signed
from lsa_study.analysis.table import build
from lsa_study.config.study import Study
from lsa_study.files import write_whole


def write_report(studies: Sequence[Study], results: Path) -> list[Path]:
    """Write ``DIR/<tier>/report.html``, a page of claims, tables and figures, for each tier.

    The page needs no network and no other file.
    """
    paths = []
    for tier, pairs in with_runs(studies, results).items():
        judged = claims.judge_tier(results, tier, collected=pairs[0][1])
        paths.append(results / tier / "report.html")
        write_whole(paths[-1], page(pairs, judged))
    return paths


def page(pairs: Sequence[tuple[Study, Collected]], judged: Sequence[ClaimVerdict]) -> str:
    """The page of studies at one tier as HTML text; everything that is not markup is escaped."""
    tier = pairs[0][0].tier
    tables = [build(study, collected) for study, collected in pairs]
    made = figures([(table.study, table.rows) for table in tables])
    drawn = {name: _picture(name, figure) for name, figure in made.items()}
    begins = tuple(f"{study.name}-" for study, _ in pairs)
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

    environment.globals.update(zip=zip, signed=signed, behind=_behind, sort_key=sort_key)
    return environment.get_template("report.html.j2").render(
        tier=tier,
        meaning=MEANING[tier],
        verdicts=judged,
        counts=claims.claims_json(judged, tier)["counts"],
        tables=tables,
        pictures={
            begin[:-1]: [one for name, one in drawn.items() if name.startswith(begin)]
            for begin in begins
        },
        overview=[one for name, one in drawn.items() if not name.startswith(begins)],
        broken=sorted({line for _, collected in pairs for line in collected.broken}),
        colours={f"figure-{light[1:]}": (light, dark) for light, dark in style.DARK.items()},
    )


def _behind(row: Row, title: str) -> list[str]:
    """What is shown on hover and focus over a row's cell: the runs that it rests on."""
    if title == "Acc@1 (%)":
        lines = []
        for run in row.runs:
            accuracy = f"{run.acc1:.2f} %" if run.acc1 is not None else run.outcome
            reason = f", {run.reason}" if run.reason else ""
            about = f"run {run.identity}, commit {run.shown('commit')}, {run.device}{reason}"
            lines.append(f"seed {run.seed}: {accuracy}, {about}")
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
        lines.append(f"over seeds and test images ({noise.method}): {p}")
    if (images := contrast.by_image) is not None:
        lines.append(
            f"over test images: {signed(images.low, 2)} to {signed(images.high, 2)}, "
            f"p = {images.p:.2g}; {images.gained} gained, {images.lost} lost"
        )
    return lines


def _picture(name: str, figure: Figure) -> tuple[Markup, str]:
    """A figure inside a page, with own ids and the page's colours, and its caption."""
    caption, svg = CAPTIONS[name.rsplit("-", 1)[-1]], style.svg(figure)
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
