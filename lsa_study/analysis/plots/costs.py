"""Accuracy against multiply-adds and against speed, for the rows of all studies of a tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, t_interval
from lsa_study.config.study import Study

SIZE = (8.2, 4.8)
"""Inches."""


def costs(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> dict[str, Figure]:
    """Draw accuracy over the MACs of an image and over images a second in training, by file name.

    A row that several studies share is drawn once. Runs of several devices cannot be compared in
    speed: the device that most rows ran on is drawn, and the axis names it.
    """
    distinct = {row.identities[0]: row for _, rows in pairs for row in rows if row.done}
    rows = list(distinct.values())
    counts = [row.done[0].macs for row in rows]
    largest = max((macs for macs in counts if macs is not None), default=0)
    unit, name = (1e9, "GMACs: 10⁹") if largest >= 1e8 else (1e6, "MMACs: 10⁶")
    places = [t_interval([] if macs is None else [macs / unit]) for macs in counts]
    devices = Counter(run.device or "unknown" for row in rows for run in row.done)
    device = max(devices, key=lambda name: (devices[name], name), default="no device")
    speeds = [
        t_interval(
            [
                run.train_images / run.seconds_per_epoch
                for run in row.done
                if (run.device or "unknown") == device
                and run.train_images
                and run.seconds_per_epoch
            ]
        )
        for row in rows
    ]
    label = f"Cost of one image ({name} multiply-adds)"
    figures = {"costs": _draw(pairs[0][0], "cost", label, rows, places)}
    label = f"Images a second in training (on {style.short(device, 60)})"
    figures["throughput"] = _draw(pairs[0][0], "speed", label, rows, speeds)
    return figures


def _draw(
    study: Study, title: str, label: str, rows: Sequence[Row], places: Sequence[Estimate]
) -> Figure:
    """Draw rows at their places with the intervals that both quantities have, and name them."""
    drawn = style.figure(*SIZE, f"Accuracy against {title}", study)
    axes = drawn.subplots()
    axes.set(xlabel=label, ylabel=style.ACCURACY)
    if title == "speed":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    look: dict[str, Any] = {"color": style.OURS, "lw": 1.6, "alpha": 0.3}
    points = []
    for row, across in zip(rows, places, strict=True):
        up = row.accuracy
        if across.mean is None or up.mean is None:
            continue
        points.append((across.mean, up.mean, style.short(row.variant)))
        if up.low is not None and up.high is not None:
            axes.plot([across.mean, across.mean], [up.low, up.high], **look)
        if across.low is not None and across.high is not None:
            axes.plot([across.low, across.high], [up.mean, up.mean], **look)
    if not points:
        style.empty(axes, "no run has finished")
        return drawn
    for x, y, _ in points:
        axes.plot(x, y, "o", color=style.OURS)
    axes.margins(x=0.12, y=0.08)
    _names(axes, points)
    return drawn


def _names(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, where the fewest others are."""
    width, height = (inches * 72 * 0.85 for inches in SIZE)
    axes.autoscale_view()  # else the limits are set only when the figure is saved
    across = axes.transData + axes.transAxes.inverted()
    spots = [(x * width, y * height) for x, y in across.transform([one[:2] for one in points])]
    # In points of the page.
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in spots]

    def clashes(box: Bbox) -> int:
        return int(box.count_overlaps(taken) + 2 * (box.x0 < 0 or box.x1 > width))

    for (x, y, name), (left, up) in zip(points, spots, strict=True):
        size = 4.6 * len(name)
        boxes: dict[tuple[int, int, str], Bbox] = {}
        for dy in (0, 8, -8, 14, -14, 20, -20):
            for dx, side, start in ((7, "left", left + 7), (-7, "right", left - 7 - size)):
                boxes[dx, dy, side] = Bbox.from_bounds(start, up + dy - 4.5, size, 9)
        offset = min(boxes, key=lambda one: (clashes(boxes[one]), abs(one[1])))
        taken.append(boxes[offset])
        dx, dy, side = offset
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=7.5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": style.QUIET} if dy else None,
        )  # fmt: skip
