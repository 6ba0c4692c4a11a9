"""The accuracy of every row with its interval, beside the article's value."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import decimals, shown
from lsa_study.config.study import Study


def accuracy(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw one line per row: ours on the left, the article's right, each on its own scale."""
    drawn = style.figure(8.2, 1.3 + 0.34 * len(rows))
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    drawn.suptitle(style.title(study), x=0.01, ha="left", weight="bold")
    _ours(left, rows)
    _article(right, study, rows)
    left.set_yticks(range(len(rows)), [style.short(row.name) for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return drawn


def _ours(axes: Axes, rows: Sequence[Row]) -> None:
    several = any(row.accuracy.n > 1 for row in rows)
    axes.set_title("Ours: mean, 95 % interval and seeds" if several else "Ours: one seed")
    axes.set_xlabel("Top-1 accuracy on the test set (%)")
    digits = decimals(max((run.test_images or 0 for row in rows for run in row.done), default=0))
    for place, row in enumerate(rows):
        found = row.accuracy
        if found.mean is None:
            style.word(axes, place, row.word)
            continue
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=style.OURS, lw=2.4, alpha=0.5)
            seeds = [place + 0.18] * found.n
            axes.plot(found.values, seeds, "|", color=style.QUIET, ms=5, mew=1)
        axes.plot(found.mean, place, "o", color=style.OURS)
        words = shown(found, digits) + (f"  ({row.outcome})" if row.ends else "")
        style.beside(axes, words, found.high or found.mean, place)
    style.widen(axes, room=0.5)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= min(high, 100)])


def _article(axes: Axes, study: Study, rows: Sequence[Row]) -> None:
    axes.set_title(f"The article: {study.file.article.source}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("Top-1 accuracy on ImageNet-1K (%)")
    for place, row in enumerate(rows):
        if row.article.value is None:
            style.word(axes, place, row.article.word or "not in the article")
            continue
        axes.plot(row.article.value, place, "D", color=style.ARTICLE)
        style.beside(axes, f"{row.article.value:.1f}", row.article.value, place)
    style.widen(axes, room=0.3)
