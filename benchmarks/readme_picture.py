"""Draw Table 1 as a picture: the article's accuracies beside those of the committed proxy runs.

Run: python benchmarks/readme_picture.py     Writes docs/table1.png, which README.md shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsa_study.analysis.plots import style
from lsa_study.config.names import counted
from lsa_study.config.study import load_study
from lsa_study.vocabulary import TERMS

ROOT = Path(__file__).resolve().parent.parent


def draw() -> Figure:
    """The rows of Table 1: their terms, the article's accuracy, ours, each on its own scale."""
    study = load_study("table1", tier="proxy")
    path = ROOT / "results/proxy/tables/table1.json"
    rows = json.loads(path.read_text("utf-8"))["rows"]
    drawn = style.figure(8.4, 3.7, "Table 1: which terms should make the attention weights?")
    terms, left, right = drawn.subplots(1, 3, sharey=True, width_ratios=(1.25, 2, 2))
    terms.set(title="Terms of Eq. 4", xlim=(-0.6, len(TERMS) - 0.4))
    terms.set_xticks(range(len(TERMS)), TERMS)
    for place, row in enumerate(rows):
        chosen = study.variants[row["variant"]].model.op.terms
        at = [TERMS.index(term) for term in chosen]
        terms.plot(at, [place] * len(at), "o", color=style.INK, ms=6)
    _values(left, rows, [{"mean": row["paper"]} for row in rows], style.ARTICLE, "D", 1)
    left.set_title("The article\nSwin-T on ImageNet-1K")
    left.set_xlabel("Top-1 accuracy (%)")
    _values(right, rows, [row["acc1"] for row in rows], style.OURS, "o", 2)
    settings = next(iter(study.variants.values()))
    seeds = sorted({row["acc1"]["n"] for row in rows} - {0})
    most = counted(max(seeds, default=0), "seed")
    runs = f"{counted(settings.train.epochs, 'epoch')}, " + (
        f"{seeds[0]} to {most}" if len(seeds) > 1 else most
    )
    right.set_title(f"Here, tier proxy: a small Swin\non CIFAR-10, {runs}")
    right.set_xlabel("Top-1 accuracy (%), 95 % intervals")
    style.rows_down((terms, left, right), [row["model"] for row in rows])
    return drawn


def _values(
    axes: Axes, rows: list[Any], found: list[Any], colour: str, marker: str, digits: int
) -> None:
    """Draw accuracies with their intervals, by rows and against the reference."""
    ends = [one[key] for one in found for key in ("mean", "low", "high") if one.get(key)]
    base = found[[row["variant"] for row in rows].index(rows[0]["reference"])]["mean"]
    axes.axvline(base, color=style.QUIET, lw=0.8, ls=(0, (3, 2)))
    for place, one in enumerate(found):
        value = one["mean"]
        if value is None:
            axes.annotate("not run yet", (base, place), (7, 0), textcoords="offset points",
                          va="center", color=style.QUIET, fontsize=8)  # fmt: skip
            continue
        axes.plot([base, value], [place, place], color=colour, lw=2.2, alpha=0.4)
        if one.get("low"):
            axes.plot([one["low"], one["high"]], [place, place], color=colour, lw=1)
        axes.plot(value, place, marker, color=colour)
        ahead = value >= base
        axes.annotate(
            f"{value:.{digits}f}", (value, place), (7 if ahead else -7, 6 if one.get("low") else 0),
            textcoords="offset points", va="center", ha="left" if ahead else "right", fontsize=8,
        )  # fmt: skip
    room = 0.28 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - room, max(ends) + room)


def main() -> None:
    """Write the picture."""
    path = ROOT / "docs/table1.png"
    with style.styled():
        path.write_bytes(style.png(draw()))
    print(path)


if __name__ == "__main__":
    main()
