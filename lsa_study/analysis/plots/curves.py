"""Learning curves of a study: test accuracy after every epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.config.study import Study


@dataclass(frozen=True)
class _Curve:
    """Accuracies of a row's seeds by epoch, and their mean where every seed has one."""

    row: Row
    seeds: tuple[dict[int, float], ...]

    @cached_property
    def mean(self) -> dict[int, float]:
        common = set.intersection(*map(set, self.seeds)) if self.seeds else set()
        return {e: sum(s[e] for s in self.seeds) / len(self.seeds) for e in sorted(common)}


def curves(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw the whole training on the left and its second half, enlarged and labelled, right."""
    drawn = style.figure(8.6, 3.9)
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.25))
    drawn.suptitle(style.title(study), x=0.01, ha="left", weight="bold")
    found = [curve for row in rows if (curve := _curve(row)).mean]
    left.set_title("Whole training")
    right.set_title("Second half")
    for axes in (left, right):
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    left.set_ylabel("Top-1 accuracy on the test set (%)")
    if not found:
        for axes in (left, right):
            style.empty(axes, "no run has finished an epoch")
        return drawn
    look = {row.variant: style.look(at) for at, row in enumerate(rows)}
    for curve in found:
        _draw(left, curve, look[curve.row.variant])
        if curve.row.done:
            _draw(right, curve, look[curve.row.variant])
    last = max(max(curve.mean) for curve in found)
    left.set_xlim(0, last)
    right.set_xlim(last / 2, last)
    _enlarge(right, found, last / 2)
    _label(right, rows, found, look)
    return drawn


def _curve(row: Row) -> _Curve:
    seeds = []
    for run in row.done or row.runs:
        records = json.loads(run.curve)
        points = {int(r["epoch"]): float(r["acc1"]) for r in records if r.get("acc1") is not None}
        if points:
            seeds.append(points)
    return _Curve(row, tuple(seeds))


def _draw(axes: Axes, curve: _Curve, look: style.Look) -> None:
    if len(curve.seeds) > 1:
        for seed in curve.seeds:
            axes.plot(list(seed), list(seed.values()), color=look.colour, lw=0.6, alpha=0.35)
    mean = curve.mean
    marker = look.marker if len(mean) < 4 else ""
    axes.plot(list(mean), list(mean.values()), color=look.colour, ls=look.dash, marker=marker)
    if not curve.row.done:
        axes.plot(max(mean), mean[max(mean)], "x", color=look.colour, ms=8, mew=2)
        style.note(axes, curve.row.word, max(mean), mean[max(mean)], look.colour)


def _enlarge(axes: Axes, found: Sequence[_Curve], start: float) -> None:
    seeds = [seed for curve in found if curve.row.done for seed in curve.seeds]
    late = [y for seed in seeds for x, y in seed.items() if x >= start]
    if late:
        margin = 0.06 * (max(late) - min(late)) or 1.0
        axes.set_ylim(min(late) - margin, max(late) + margin)


def _label(
    axes: Axes, rows: Sequence[Row], found: Sequence[_Curve], look: dict[str, style.Look]
) -> None:
    ends = {c.row.variant: c.mean[max(c.mean)] for c in found if c.row.done}
    low, high = axes.get_ylim()
    line = (high - low) * 0.056
    shown = [row for row in rows if row.variant in ends]
    words = [row for row in rows if row.variant not in ends]
    heights = style.spread([ends[row.variant] for row in shown], line, high - line / 2)
    across = axes.get_yaxis_transform()
    for row, height in zip(shown, heights, strict=True):
        colour = look[row.variant].colour
        ways: dict[str, Any] = {"transform": across, "color": colour, "clip_on": False}
        axes.plot([1.0, 1.03], [ends[row.variant], height], lw=0.8, **ways)
        axes.text(1.04, height, style.short(row.name), va="center", fontsize=8, **ways)
    lowest = min([low + line, *(height - line for height in heights)])
    for step, row in enumerate(words):
        text = f"{style.short(row.name)}: {row.word}"
        place = lowest - line * step
        axes.text(1.04, place, text, transform=across, va="center", fontsize=8, color=style.QUIET)
