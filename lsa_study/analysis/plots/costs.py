"""Accuracy against multiply-adds and against speed, for the rows of all studies of a tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, t_interval
from lsa_study.config.study import Study

SIZE = (8.2, 4.8)
"""Inches."""


def costs(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> Figure:
    """Draw accuracy over MACs; a row that several studies share is drawn once."""
    counted = [(row, macs) for row in _distinct(pairs) if (macs := row.done[0].macs) is not None]
    largest = max((macs for _, macs in counted), default=0)
    unit, name = (1e9, "GMACs: 10⁹") if largest >= 1e8 else (1e6, "MMACs: 10⁶")
    places = [(row, t_interval([macs / unit])) for row, macs in counted]
    drawn, axes = _frame(pairs, "Accuracy against cost")
    axes.set_xlabel(f"Cost of one image ({name} multiply-adds)")
    _draw(axes, places)
    return drawn


def throughput(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> Figure:
    """Draw accuracy over images a second in training, with intervals over seeds of both.

    Runs of several devices cannot be compared: the device that most rows ran on is drawn, and the
    axis names it.
    """
    devices = Counter(run.device or "unknown" for row in _distinct(pairs) for run in row.done)
    device = max(devices, key=lambda name: (devices[name], name), default="no device")
    places = [(row, _speed(row, device)) for row in _distinct(pairs)]
    drawn, axes = _frame(pairs, "Accuracy against speed")
    axes.set_xlabel(f"Images a second in training (on {style.short(device, 60)})")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    _draw(axes, [(row, speed) for row, speed in places if speed.n])
    return drawn


def _speed(row: Row, device: str) -> Estimate:
    return t_interval(
        [
            run.train_images / run.seconds_per_epoch
            for run in row.done
            if (run.device or "unknown") == device and run.train_images and run.seconds_per_epoch
        ]
    )


def _distinct(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> list[Row]:
    found = {row.runs[0].identity: row for _, rows in pairs for row in rows if row.done}
    return list(found.values())


def _frame(pairs: Sequence[tuple[Study, Sequence[Row]]], title: str) -> tuple[Figure, Axes]:
    drawn = style.figure(*SIZE)
    axes = drawn.subplots()
    tier = pairs[0][0].tier if pairs else "toy"
    drawn.suptitle(f"{title}\n{style.TIERS[tier]}", x=0.01, ha="left", weight="bold")
    axes.set_ylabel("Top-1 accuracy on the test set (%)")
    return drawn, axes


def _draw(axes: Axes, places: Sequence[tuple[Row, Estimate]]) -> None:
    """Draw rows at their places with the intervals that both quantities have, and name them."""
    points = [
        (across.mean, row.accuracy.mean, style.short(row.variant))
        for row, across in places
        if across.mean is not None and row.accuracy.mean is not None
    ]
    if not points:
        style.empty(axes, "no run has finished")
        return
    for row, across in places:
        _intervals(axes, across, row.accuracy)
    for x, y, _ in points:
        axes.plot(x, y, "o", color=style.OURS)
    axes.margins(x=0.12, y=0.08)
    _names(axes, points)


def _intervals(axes: Axes, across: Estimate, up: Estimate) -> None:
    if across.mean is None or up.mean is None:
        return
    look: Any = {"color": style.OURS, "lw": 1.6, "alpha": 0.3}
    if up.low is not None and up.high is not None:
        axes.plot([across.mean, across.mean], [up.low, up.high], **look)
    if across.low is not None and across.high is not None:
        axes.plot([across.low, across.high], [up.mean, up.mean], **look)


def _names(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, where the fewest others are."""
    width, height = (inches * 72 * 0.85 for inches in SIZE)
    axes.autoscale_view()  # else the limits are set only when the figure is saved
    across = axes.transData + axes.transAxes.inverted()
    spots = [(x * width, y * height) for x, y in across.transform([one[:2] for one in points])]
    taken: list[tuple[float, float, float, float]] = [
        (x - 4, y - 4, x + 4, y + 4) for x, y in spots
    ]
    for (x, y, name), (across, up) in zip(points, spots, strict=True):
        size = 4.6 * len(name)
        boxes = {
            (dx, dy, side): _box(across + dx, up + dy, size, side)
            for dy in (0, 8, -8, 14, -14, 20, -20)
            for dx, side in ((7, "left"), (-7, "right"))
        }
        offset = min(boxes, key=lambda one: (_clashes(boxes[one], taken, width), abs(one[1])))
        taken.append(boxes[offset])
        dx, dy, side = offset
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=7.5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": style.QUIET} if dy else None,
        )  # fmt: skip


Box = tuple[float, float, float, float]


def _box(x: float, y: float, size: float, side: str) -> Box:
    return (x, y - 4.5, x + size, y + 4.5) if side == "left" else (x - size, y - 4.5, x, y + 4.5)


def _clashes(box: Box, taken: Sequence[Box], width: float) -> int:
    over = sum(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in taken
    )
    return over + 2 * (box[0] < 0 or box[2] > width)
