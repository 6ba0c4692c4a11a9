"""The article's Fig. 2: accuracy over the number of heads, attention against convolution."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.config.study import Study

SETTING = "Heads"
"""The column of the rows that says how many heads they have."""


def heads(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw a line per layer over the head settings: ours on the left, the article's right."""
    drawn = style.figure(8.2, 3.7)
    left, right = drawn.subplots(1, 2)
    drawn.suptitle(style.title(study), x=0.01, ha="left", weight="bold")
    left.set_title("Ours")
    left.set_ylabel("Top-1 accuracy on the test set (%)")
    right.set_title(f"The article: {study.file.article.source}")
    right.set_ylabel("Top-1 accuracy on ImageNet-1K (%)")
    settings = list(dict.fromkeys(row.columns.get(SETTING, "") for row in rows))
    for at, layer in enumerate(dict.fromkeys(row.label for row in rows)):
        mine = [row for row in rows if row.label == layer]
        places = [settings.index(row.columns.get(SETTING, "")) for row in mine]
        look = style.look(at)
        ours = [row.accuracy.mean for row in mine]
        _line(left, places, ours, [row.word for row in mine], layer, look)
        for place, row in zip(places, mine, strict=True):
            if row.accuracy.low is not None and row.accuracy.high is not None:
                ends = [row.accuracy.low, row.accuracy.high]
                left.plot([place, place], ends, color=look.colour, lw=2.4, alpha=0.45)
        theirs = [row.article.value for row in mine]
        _line(right, places, theirs, [row.article.word for row in mine], layer, look)
    for axes in (left, right):
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xlim(-0.4, len(settings) - 0.3)
        axes.set_xlabel("Heads (1x: the backbone's own; C: one a channel)")
        axes.margins(y=0.2)
    return drawn


def _line(
    axes: Axes,
    places: Sequence[int],
    values: Sequence[float | None],
    words: Sequence[str],
    layer: str,
    look: style.Look,
) -> None:
    points = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=look.colour, ls=look.dash, marker=look.marker)
        style.note(axes, style.short(layer), xs[-1], ys[-1], look.colour)
    for place, value, word in zip(places, values, words, strict=True):
        if value is None and word:
            axes.text(
                place, 0.03, f"{style.short(layer)}:\n{word}", transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8, color=look.colour,
            )  # fmt: skip
