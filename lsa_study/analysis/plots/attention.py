"""Attention maps over a picture, and how many pixels each head reads. Draws arrays, needs no torch.

The arrays come from :mod:`lsa_study.models.attention_maps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from lsa_study.analysis.plots import style

Floats = npt.NDArray[np.floating]
PANEL = 1.5
"""Inches."""


def attention_maps(
    picture: Floats,
    maps: Mapping[str, Mapping[str, Floats]],
    pixel: tuple[int, int],
    *,
    title: str,
) -> Figure:
    """Draw what one pixel reads: a row for each operator, a panel for each way to look at it.

    Weights of one sign go from white to blue; where some are negative, these are orange. Every
    panel has its own scale; its largest weight stands below.

    Args:
        picture: (H', W') in 0..1, drawn faintly behind.
        maps: row -> panel -> (H, W), the weights with which ``pixel`` reads each pixel.
        pixel: (row, column) of the reading pixel on the map, from the top left.
    """
    columns = max(map(len, maps.values()))
    drawn = style.figure(PANEL * (columns + 0.8), (PANEL + 0.4) * len(maps) + 0.4, title)
    panels = drawn.subplots(len(maps), columns, squeeze=False)
    for line, (name, row) in zip(panels, maps.items(), strict=True):
        for axes in line[len(row) :]:
            axes.axis("off")
        for axes, (column, weights) in zip(line, row.items(), strict=False):
            (height, width), largest = weights.shape, weights.flat[np.abs(weights).argmax()]
            colours = np.where(weights[..., None] < 0, to_rgba(style.ARTICLE), to_rgba(style.OURS))
            # Where a map says nothing the picture shows through.
            colours[..., 3] = np.clip(np.abs(weights) / (abs(largest) or 1.0), 0, 1)
            where = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"largest {largest:.2g}", fontsize=7)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.imshow(0.55 + 0.45 * picture, cmap="gray", vmin=0, vmax=1, extent=where)
            axes.imshow(colours, extent=where, interpolation="nearest")
            axes.plot(pixel[1], pixel[0], "s", ms=5, mfc="none", mec=style.INK, mew=1.2)
            axes.set_title(style.short(column, 22), fontsize=8)
        line[0].set_ylabel(
            style.short(name, 22), rotation=0, ha="right", va="center", weight="bold"
        )
    return drawn


def effective_areas(
    areas: Mapping[str, Sequence[float] | Floats], *, largest: int, title: str
) -> Figure:
    """Draw how many pixels each head reads.

    Args:
        areas: row name -> pixels of each head, of ``models.attention_maps.effective_area``.
        largest: pixels of the whole area, where a line is drawn.
    """
    drawn = style.figure(7.4, 0.36 * len(areas) + 1.5, title)
    axes = drawn.subplots()
    for place, values in enumerate(areas.values()):
        axes.plot(values, np.full(len(values), place), "o", color=style.OURS, alpha=0.45, mew=0)
        middle = float(np.median(values))
        axes.plot([middle, middle], [place - 0.3, place + 0.3], color=style.INK, lw=2)
    axes.axvline(largest, color=style.QUIET, lw=0.8, ls="dashed")
    axes.set_xlim(0, largest * 1.04)
    style.rows_down((axes,), [style.short(name) for name in areas])
    axes.set_xlabel(f"Pixels that a head reads in effect (dashed: its whole area, {largest})")
    return drawn
