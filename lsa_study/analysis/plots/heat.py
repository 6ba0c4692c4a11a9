"""Grids as maps: a cell for every row, its mean and interval as numbers and as a colour."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from lsa_study.analysis.pivot import pivot_of
from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS

MOST = 12
"""More blocks of further factors are left to the table."""
LIGHT, DARK = "#f4f6f8", "#101418"
"""Of numbers on cells, which keep their colours on a dark page."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""What red, green and blue add to how bright a colour is."""


def heat(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draw a grid by its first two factors, one map for each value of the others.

    None where a study has no grid of two factors.
    """
    pivot = pivot_of(study, rows)
    if pivot is None:
        return None
    blocks = dict([*pivot.blocks.items()][:MOST])
    across, down = len(pivot.columns), len(next(iter(blocks.values())))
    width, height = 1.6 + 0.95 * across, 0.55 + 0.5 * down
    beside = max(1, min(len(blocks), round(12 / width)))
    deep = -(-len(blocks) // beside)
    drawn = style.figure(max(8.2, width * beside), 1.2 + height * deep, study=study)
    panels = [*drawn.subplots(deep, beside, squeeze=False).flat]
    known = [row.accuracy.mean for row in rows if row.accuracy.mean is not None]
    low, high = min(known, default=0.0), max(known, default=100.0)
    scale = mpl.colors.Normalize(low, high if high > low else low + 1)
    colours = mpl.colormaps["Blues"]
    for axes, (name, lines) in zip(panels, blocks.items(), strict=False):
        for y, cells in enumerate(lines.values()):
            for x, row in enumerate(cells):
                mean = row.accuracy.mean if row else None
                colour = mpl.colors.to_rgb(
                    LIGHT if mean is None else colours(0.1 + 0.8 * scale(mean))
                )
                axes.add_patch(mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="w"))
                bright = sum(w * c**2.2 for w, c in zip(LUMINANCE, colour, strict=True))
                ink = DARK if bright > 0.18 else LIGHT
                text = pivot.shown(row, "\n")
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
        at = f", {name}" if name else ""
        axes.set(title=f"{pivot.metric}{at}", xlabel=pivot.across, ylabel=pivot.down)
        axes.set_xticks(range(across), [style.short(one, 16) for one in pivot.columns])
        axes.set_yticks(range(down), [style.short(one, 32) for one in lines])
        axes.set(xlim=(-0.5, across - 0.5), ylim=(down - 0.5, -0.5))
        axes.tick_params(length=0)
        axes.grid(visible=False)
    for axes in panels[len(blocks) :]:
        axes.remove()
    metric = METRICS[rows[0].metric]
    means = {row.name: row.accuracy.mean for row in rows if row.accuracy.mean is not None}
    best = max(means, key=lambda name: means[name], default="")
    more = len(pivot.blocks) - len(blocks)
    drawn.set_label(
        f"{pivot.about}: {len(means)} of {len(rows)} rows"
        + (f", best {best} with {metric.shown(means[best], 1)}" if best else "")
        + (f"; colours from {low:.1f} to {metric.shown(high, 1)}" if known else "")
        + f"; {style.basis(rows)}."
        + f" Maps in the table alone: {more}." * bool(more)
    )
    return drawn
