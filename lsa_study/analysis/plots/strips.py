"""Every seed of every row: how much of a difference is the luck of a seed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.config.study import Study


def strips(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw one line per seed through the rows; lines that run side by side share their luck."""
    drawn = style.figure(8.2, 3.9)
    axes = drawn.subplots()
    drawn.suptitle(style.title(study), x=0.01, ha="left", weight="bold")
    axes.set_title("Every seed; a bar: the mean")
    axes.set_ylabel("Top-1 accuracy on the test set (%)")
    seeds = sorted({run.seed for row in rows for run in row.done})
    if not seeds:
        style.empty(axes, "no run has finished")
        return drawn
    ends = {}
    for at, seed in enumerate(seeds):
        look = style.look(at)
        points = [
            (place, run.accuracy)
            for place, row in enumerate(rows)
            for run in row.done
            if run.seed == seed
        ]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=look.colour, ls=look.dash, marker=look.marker, lw=0.9, ms=4)
        ends[seed] = (xs[-1], ys[-1], look.colour)
    for place, row in enumerate(rows):
        if row.accuracy.mean is not None:
            bar = [place - 0.18, place + 0.18]
            axes.plot(bar, [row.accuracy.mean] * 2, color=style.INK, lw=2)
        else:
            axes.text(
                place, 0.02, row.word, transform=axes.get_xaxis_transform(), rotation=90,
                ha="center", va="bottom", fontsize=8, color=style.QUIET, style="italic",
            )  # fmt: skip
    axes.set_xlim(-0.5, len(rows) - 0.2)
    low, high = axes.get_ylim()
    heights = style.spread([y for _, y, _ in ends.values()], (high - low) * 0.056, high)
    for (seed, (x, y, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            f"seed {seed}", (x, y), (x + 0.28, height), color=colour, fontsize=8, va="center"
        )
    names = [style.short(row.name).replace(" (", "\n(") for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=30, ha="right", rotation_mode="anchor")
    return drawn
