"""Differences to the reference row with both intervals, and the article's on the same scale."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsa_study.analysis.contrasts import Contrast, contrasts
from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.config.study import Study


def forest(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw each row's paired difference to its reference, in points.

    Thick: the interval over seeds; thin: over test images; a diamond: the article's difference.
    """
    by_variant = {row.variant: row for row in rows}
    shown = [row for row in rows if row.reference != row.variant]
    found = contrasts(rows)
    drawn = style.figure(8.2, 1.75 + 0.42 * len(shown))
    axes = drawn.subplots()
    drawn.suptitle(style.title(study), x=0.01, ha="left", weight="bold")
    style.key(axes, "ours, with intervals over seeds (thick) and over test images (thin)")
    axes.axvline(0, color=style.QUIET, lw=0.8)
    digits = decimals(max((run.test_images or 0 for row in rows for run in row.done), default=0))
    for place, row in enumerate(shown):
        reference = by_variant.get(row.reference)
        _article(axes, place, row, reference)
        if row.variant in found:
            _ours(axes, place, found[row.variant], digits)
        else:
            style.word(axes, place - 0.2, _word(row, reference))
    names = [_name(row, by_variant.get(row.reference)) for row in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Difference in top-1 accuracy (points)")
    style.widen(axes, room=0.2)
    return drawn


def _ours(axes: Axes, place: float, contrast: Contrast, digits: int) -> None:
    difference, images = contrast.difference, contrast.by_image
    assert difference.mean is not None
    ends = [difference.mean]
    at = place - 0.2
    if difference.low is not None and difference.high is not None:
        ends += [difference.low, difference.high]
        axes.plot(ends[1:], [at, at], color=style.OURS, lw=3, alpha=0.5)
    if images is not None:
        ends += [images.low, images.high]
        axes.plot([images.low, images.high], [at, at], color=style.OURS, lw=0.9)
    axes.plot(difference.mean, at, "o", color=style.OURS)
    seeds = "" if difference.n > 1 else "  (one seed)"
    style.beside(axes, f"{signed(difference.mean, digits)}{seeds}", max(ends), at)


def _article(axes: Axes, place: float, row: Row, reference: Row | None) -> None:
    if reference is None or row.article.value is None or reference.article.value is None:
        return
    difference = row.article.value - reference.article.value
    axes.plot(difference, place + 0.2, "D", color=style.ARTICLE, ms=4)
    style.beside(axes, signed(difference, 1), difference, place + 0.2)


def _word(row: Row, reference: Row | None) -> str:
    if row.word:
        return row.word
    if reference is None or reference.word:
        return f"{row.reference}: {reference.word if reference else 'not in this table'}"
    return "no seed in common"


def _name(row: Row, reference: Row | None) -> str:
    other = reference.name if reference else row.reference
    return f"{style.short(row.name)} − {style.short(other)}"
