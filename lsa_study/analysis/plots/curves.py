"""Learning curves of a study: its metric on the test set after every epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.config.names import counted
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS, curve_key

FEW = 3
"""Epochs whose points are marked, and that need no second look."""


@dataclass(frozen=True)
class Curve:
    """Accuracies of a row's seeds by epoch, and their mean where every seed has one."""

    row: Row
    look: dict[str, Any]

    @cached_property
    def seeds(self) -> list[dict[int, float]]:
        """By epoch, for each seed that has finished one."""
        key = curve_key(self.row.metric)
        curves = [json.loads(run.curve) for run in self.row.done or self.row.runs]
        points = [
            {int(r["epoch"]): float(r[key]) for r in curve if r.get(key) is not None}
            for curve in curves
        ]
        return [seed for seed in points if seed]

    @cached_property
    def mean(self) -> dict[int, float]:
        """By epoch; empty if no seed has finished one."""
        common = set.intersection(*map(set, self.seeds)) if self.seeds else set()
        return {e: sum(s[e] for s in self.seeds) / len(self.seeds) for e in sorted(common)}


def curves(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw the whole training on the left and its second half, enlarged and labelled, right.

    A training of few epochs has no half worth enlarging, and is drawn once.
    """
    drawn = style.figure(8.6, 3.9, study=study)
    ways = style.looks(study, [row.variant for row in rows])
    every = [Curve(row, look) for row, look in zip(rows, ways, strict=True)]
    found = [curve for curve in every if curve.mean]
    finished = [curve for curve in found if curve.row.done]
    last = max((max(curve.mean) for curve in found), default=0)
    titles = ("Whole training", "Second half") if last > FEW else ("Whole training",)
    panels = drawn.subplots(1, len(titles), squeeze=False, width_ratios=(1, 1.25)[: len(titles)])[0]
    metric = METRICS[study.metrics[0]]
    name = "Test accuracy" if metric.first == "Accuracy" else f"{metric.first} on the test set"
    panels[0].set_ylabel(metric.axis)
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not found:
        style.empty(panels[0], "no run has finished an epoch")
        drawn.set_label(f"{name} after every epoch: no run has finished one.")
        return drawn
    _trace(panels[0], found)
    panels[0].set_xlim((1 if last <= FEW else 0) - 0.15 * (last <= FEW), max(last, 1.15))
    if last > FEW:
        _trace(panels[1], finished)
        panels[1].set_xlim(last / 2, last)
        seeds = [seed for curve in finished for seed in curve.seeds]
        if late := [y for seed in seeds for x, y in seed.items() if x >= last / 2]:
            margin = 0.06 * (max(late) - min(late)) or 1.0
            panels[1].set_ylim(min(late) - margin, max(late) + margin)
    for axes in panels:
        style.within_percent(axes)
    _label(panels[-1], every)
    caption = f"{name} after each of {counted(last, 'epoch')}"
    if finished:
        best = max(finished, key=lambda curve: curve.mean[max(curve.mean)])
        caption += f" of {counted(len(finished), 'row')}, highest at the end: {best.row.name}"
    several = max(len(curve.seeds) for curve in found) > 1
    drawn.set_label(f"{caption}; {'thin: every seed, thick: the mean' if several else 'one seed'}.")
    return drawn


def _trace(axes: Axes, shown: Sequence[Curve]) -> None:
    """Draw every curve's mean and, faintly, its seeds; one that was lost ends in a cross."""
    for curve in shown:
        colour, mean = curve.look["color"], curve.mean
        for seed in curve.seeds if len(curve.seeds) > 1 else ():
            axes.plot(list(seed), list(seed.values()), color=colour, lw=0.6, alpha=0.35)
        few: dict[str, Any] = {"clip_on": False} if len(mean) <= FEW else {"marker": ""}
        axes.plot(list(mean), list(mean.values()), **curve.look | few)
        if not curve.row.done:
            end = max(mean)
            axes.plot(end, mean[end], "x", color=colour, ms=8, mew=2)
            style.note(axes, curve.row.word, end, mean[end], colour)


def _label(axes: Axes, curves: Sequence[Curve]) -> None:
    """Name the curves at their ends, and under these the rows that have none."""
    shown = [curve for curve in curves if curve.row.done and curve.mean]
    ends = [curve.mean[max(curve.mean)] for curve in shown]
    low, high = axes.get_ylim()
    line = (high - low) * 0.056
    heights = spread(ends, line, high - line / 2)
    across = axes.get_yaxis_transform()
    for curve, end, height in zip(shown, ends, heights, strict=True):
        ways: dict[str, Any] = {"transform": across, "color": curve.look["color"], "clip_on": False}
        axes.plot([1.0, 1.03], [end, height], lw=0.8, **ways)
        axes.text(1.04, height, style.short(curve.row.name), va="center", fontsize=8, **ways)
    lowest = min([low + line, *(height - line for height in heights)])
    for step, curve in enumerate(curve for curve in curves if curve not in shown):
        text = f"{style.short(curve.row.name)}: {curve.row.word}"
        place = lowest - line * step
        axes.text(1.04, place, text, transform=across, va="center", fontsize=8, color=style.QUIET)


def spread(wanted: Sequence[float], gap: float, highest: float) -> list[float]:
    """Move label heights apart to at least ``gap`` and below ``highest``, keeping their order."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    # Heights that keep their distances are those that rise, once the steps between are taken off.
    rising = isotonic_regression(np.asarray(wanted)[order] - steps).x if len(order) else steps
    placed = np.empty(len(order))
    placed[order] = np.minimum(rising + steps, highest - steps[::-1])
    return [float(height) for height in placed]
