"""Accuracy against multiply-adds and against speed, for the rows of all studies of a tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, t_interval
from lsa_study.config.names import counted
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS

SIZE = (8.2, 4.8)
"""Inches."""


class _Point(NamedTuple):
    x: float
    y: float
    name: str
    family: str


@dataclass
class Scatter:
    """Rows as named points in the colours of their families of layers."""

    axes: Axes
    points: list[_Point] = field(default_factory=list)

    def add(self, name: str, family: str, across: Estimate, up: Estimate) -> None:
        """Place a row at its means, with the intervals that there are; without a mean, nowhere."""
        if across.mean is None or up.mean is None:
            return
        self.points.append(_Point(across.mean, up.mean, name, family))
        look: dict[str, Any] = {"color": style.FAMILIES[family], "lw": 1.6, "alpha": 0.3}
        if up.low is not None and up.high is not None:
            self.axes.plot([across.mean, across.mean], [up.low, up.high], **look)
        if across.low is not None and across.high is not None:
            self.axes.plot([across.low, across.high], [up.mean, up.mean], **look)
        marker = style.MARKERS[list(style.FAMILIES).index(family)]
        sign: dict[str, Any] = {"color": look["color"], "marker": marker, "ls": "none"}
        # A label that begins with this sign is in no legend.
        label = "_" * (family in self.axes.get_legend_handles_labels()[1]) + family
        self.axes.plot(across.mean, up.mean, label=label, clip_on=False, zorder=3, **sign)

    def best(self, *, more: bool) -> list[_Point]:
        """The points that no other beats in both, from the left; ``more``: larger x is better."""
        found: list[_Point] = []
        for point in sorted(self.points, key=lambda one: (-one.x if more else one.x, -one.y)):
            if not found or point.y > found[-1].y:
                found.append(point)
        return sorted(found, key=lambda one: one.x)

    def finish(self) -> None:
        """Draw a legend, then write each name where the fewest others are."""
        ways: dict[str, Any] = {"ncols": 7, "frameon": False, "fontsize": 8}
        self.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), **ways)
        self.axes.autoscale_view()  # else the limits are set only when the figure is saved
        across = self.axes.transData + self.axes.transAxes.inverted()
        width, height = SIZE[0] * 72 * 0.88, SIZE[1] * 72 * 0.74
        # In points of the page.
        places = across.transform([(one.x, one.y) for one in self.points])
        spots = [(x * width, y * height) for x, y in places]
        taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in spots]

        def clashes(box: Bbox) -> int:
            return int(box.count_overlaps(taken) + 2 * (box.x0 < 0 or box.x1 > width))

        for point, (left, up) in zip(self.points, spots, strict=True):
            size = 4.6 * len(point.name)
            boxes: dict[tuple[int, int, str], Bbox] = {}
            for dy in (0, 8, -8, 14, -14, 20, -20, 28, -28):
                for dx, side, start in ((7, "left", left + 7), (-7, "right", left - 7 - size)):
                    boxes[dx, dy, side] = Bbox.from_bounds(start, up + dy - 3.8, size, 7.6)
            dx, dy, side = min(boxes, key=lambda one: (clashes(boxes[one]), abs(one[1])))
            taken.append(boxes[dx, dy, side])
            line = {"arrowstyle": "-", "lw": 0.5, "color": style.QUIET} if dy else None
            self.axes.annotate(
                point.name, (point.x, point.y), (dx, dy), textcoords="offset points", ha=side,
                va="center", fontsize=7.5, arrowprops=line, bbox=style.PATCH,
                zorder=2.4 if dy else 2.5,  # lines lie under names
            )  # fmt: skip


def costs(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> dict[str, Figure]:
    """Draw accuracy over the MACs of an image and over images a second in training, by file name.

    A row that several studies share is drawn once. Runs of several devices cannot be compared in
    speed: the device that most rows ran on is drawn, and the axis names it.
    """
    distinct: dict[str, tuple[Row, str]] = {}
    for study, of_study in pairs:
        for row in of_study:
            if row.done:
                distinct.setdefault(row.identities[0], (row, style.family(study, row.variant)))
    rows = [row for row, _ in distinct.values()]
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
    known, study = list(distinct.values()), pairs[0][0]
    label = f"Cost of one image ({name} multiply-adds)"
    figures = {"costs": _draw(study, "cost", label, known, places)}
    label = f"Images a second in training (on {style.short(device, 60)})"
    figures["throughput"] = _draw(study, "speed", label, known, speeds)
    return figures


def _draw(
    study: Study,
    title: str,
    label: str,
    rows: Sequence[tuple[Row, str]],
    places: Sequence[Estimate],
) -> Figure:
    """Draw rows at their places with the intervals that both quantities have, and name them."""
    metric = METRICS[study.metrics[0]]
    drawn = style.figure(*SIZE, f"{metric.first} against {title}", study)
    axes = drawn.subplots()
    axes.set(xlabel=label, ylabel=metric.axis)
    fast = title == "speed"
    if fast:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    made = Scatter(axes)
    for (row, family), across in zip(rows, places, strict=True):
        made.add(style.short(row.name), family, across, row.accuracy)
    if not made.points:
        style.empty(axes, "no run has finished")
        drawn.set_label(f"{metric.first} against {title}: no run has finished.")
        return drawn
    best = made.best(more=fast)
    edge = {"color": style.QUIET, "lw": 1, "ls": "dashed", "zorder": 1.5}
    axes.plot([one.x for one in best], [one.y for one in best], label="not beaten in both", **edge)
    axes.margins(x=0.12, y=0.08)
    style.within_percent(axes)
    made.finish()
    names = [one.name for one in best]
    drawn.set_label(
        f"{metric.first} against {'images a second in training' if fast else 'multiply-adds'} of "
        f"{counted(len(made.points), 'row')}; beaten in both by no other (dashed): "
        f"{', '.join(names)}; {style.basis([row for row, _ in rows])}."
    )
    return drawn
