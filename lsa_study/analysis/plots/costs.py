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
    figures = {}
    for file, title, label, across in (
        ("costs", "cost", f"Cost of one image ({name} multiply-adds)", places),
        (
            "throughput",
            "speed",
            f"Images a second in training (on {style.short(device, 60)})",
            speeds,
        ),
    ):
        figures[file] = style.figure(*SIZE, f"Accuracy against {title}", pairs[0][0])
        axes = figures[file].subplots()
        axes.set_ylabel(style.ACCURACY)
        axes.set_xlabel(label)
        if file == "throughput":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        _draw(axes, list(zip(rows, across, strict=True)))
    return figures


def _draw(axes: Axes, places: Sequence[tuple[Row, Estimate]]) -> None:
    """Draw rows at their places with the intervals that both quantities have, and name them."""
    points = []
    look: dict[str, Any] = {"color": style.OURS, "lw": 1.6, "alpha": 0.3}
    for row, across in places:
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
        return
    for x, y, _ in points:
        axes.plot(x, y, "o", color=style.OURS)
    axes.margins(x=0.12, y=0.08)
    _names(axes, points)


Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points of the page."""


def _names(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, where the fewest others are."""
    width, height = (inches * 72 * 0.85 for inches in SIZE)
    axes.autoscale_view()  # else the limits are set only when the figure is saved
    across = axes.transData + axes.transAxes.inverted()
    spots = [(x * width, y * height) for x, y in across.transform([one[:2] for one in points])]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots]

    def clashes(box: Box) -> int:
        over = sum(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        )
        return over + 2 * (box[0] < 0 or box[2] > width)

    for (x, y, name), (left, up) in zip(points, spots, strict=True):
        size = 4.6 * len(name)
        boxes: dict[tuple[int, int, str], Box] = {}
        for dy in (0, 8, -8, 14, -14, 20, -20):
            for dx, side, start in ((7, "left", left + 7), (-7, "right", left - 7 - size)):
                boxes[dx, dy, side] = (start, up + dy - 4.5, start + size, up + dy + 4.5)
        offset = min(boxes, key=lambda one: (clashes(boxes[one]), abs(one[1])))
        taken.append(boxes[offset])
        dx, dy, side = offset
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=7.5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": style.QUIET} if dy else None,
        )  # fmt: skip
