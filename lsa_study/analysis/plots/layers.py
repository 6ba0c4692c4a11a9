"""The article's Fig. 1: accuracy, parameters and operations of the layers, against LSA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import signed
from lsa_study.config.study import Study

LAYERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "LSA": (("table4", "swin"), ("table1", "swin")),
    "DwConv": (("table5", "dwconv"), ("fig2", "dwconv")),
    "DDF": (("table6", "ddf"),),
    "ELSA": (("table4", "elsa"),),
}
"""The layers of Fig. 1 and the rows, by study and variant, that stand for them."""

Facts = tuple[float | None, float | None, float | None]
PANELS = (
    "Accuracy\nagainst LSA's (points)",
    "Parameters\nin % of LSA's",
    "Multiply-adds\nin % of LSA's",
)


def has_layers(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> bool:
    """Whether the rows of LSA and ELSA are among these studies."""
    found = _rows(pairs)
    return "LSA" in found and "ELSA" in found


def layers(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> Figure:
    """Draw the three quantities of Fig. 1 relative to LSA, ours and the article's together.

    Relative, because other tiers train smaller networks on other images.
    """
    rows = _rows(pairs)
    ours = {name: _facts(row) for name, row in rows.items()}
    study = pairs[0][0]
    theirs = _article(study.document.path.parent / study.file.article.csv)
    names = list(LAYERS)
    drawn = style.figure(8.6, 2.9)
    panels = drawn.subplots(1, 3, sharey=True)
    drawn.suptitle(
        f"Fig. 1: Comparison of different layers\n{style.TIERS[study.tier]}",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    for at, (axes, title) in enumerate(zip(panels, PANELS, strict=True)):
        axes.set_title(title, fontsize=9)
        axes.axvline(0 if at == 0 else 100, color=style.QUIET, lw=0.8)
        for place, name in enumerate(names):
            for facts, shift, marker, colour in (
                (ours, -0.17, "o", style.OURS),
                (theirs, 0.17, "D", style.ARTICLE),
            ):
                value = _relative(facts, name, at)
                if value is not None:
                    axes.plot(value, place + shift, marker, color=colour, ms=5)
                    text = signed(value, 1) if at == 0 else f"{value:.0f}"
                    style.beside(axes, text, value, place + shift)
                elif facts is ours and at == 0:
                    style.word(axes, place + shift, rows[name].word if name in rows else "not run")
        style.widen(axes, room=0.25)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    style.key(drawn, "ours")
    return drawn


def _rows(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> dict[str, Row]:
    known = {(study.name, row.variant): row for study, rows in pairs for row in rows}
    found = {}
    for name, places in LAYERS.items():
        here = [known[place] for place in places if place in known]
        if here:
            found[name] = next((row for row in here if row.runs), here[0])
    return found


def _facts(row: Row) -> Facts:
    params = next((float(run.params) for run in row.runs if run.params), None)
    macs = next((float(run.macs) for run in row.runs if run.macs), None)
    return row.accuracy.mean, params, macs


def _article(beside: Path) -> dict[str, Facts]:
    path = beside.parent / "fig1.csv"
    if not path.exists():
        return {}
    printed = pd.read_csv(path)
    return {
        str(line["layer"]): (float(line["acc1"]), float(line["params_m"]), float(line["flops_g"]))
        for line in printed.to_dict("records")
    }


def _relative(facts: Mapping[str, Facts], name: str, at: int) -> float | None:
    value, base = (facts[one][at] if one in facts else None for one in (name, "LSA"))
    if value is None or not base:
        return None
    return value - base if at == 0 else 100 * value / base
