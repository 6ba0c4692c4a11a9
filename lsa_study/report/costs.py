"""Accuracy against the cost of a forward pass, for the rows of all studies of a tier."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsa_study.evidence.rows import Row
from lsa_study.report import style
from lsa_study.study import Study

SIZE = (8.2, 4.8)
"""Inches."""


def costs(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> Figure:
    """Draw accuracy over MACs; a row that several studies share is drawn once."""
    drawn = style.figure(*SIZE)
    axes = drawn.subplots()
    tier = pairs[0][0].tier if pairs else "toy"
    drawn.suptitle(f"Accuracy against cost\n{style.TIERS[tier]}", x=0.01, ha="left", weight="bold")
    axes.set_ylabel("Top-1 accuracy on the test set (%)")
    rows = {row.runs[0]["identity"]: row for _, found in pairs for row in found if row.done}
    counts = [row.done[0]["macs"] or 0 for row in rows.values()]
    unit, name = (1e9, "GMACs: 10⁹") if max(counts, default=0) >= 1e8 else (1e6, "MMACs: 10⁶")
    axes.set_xlabel(f"Cost of one image ({name} multiply-adds)")
    points = [
        (row.done[0]["macs"] / unit, row.accuracy.mean, style.short(row.variant))
        for row in rows.values()
        if row.done[0]["macs"] is not None and row.accuracy.mean is not None
    ]
    if not points:
        style.empty(axes, "no run has finished")
        return drawn
    for row in rows.values():
        low, high = row.accuracy.low, row.accuracy.high
        if low is not None and high is not None and row.done[0]["macs"] is not None:
            x = row.done[0]["macs"] / unit
            axes.plot([x, x], [low, high], color=style.OURS, lw=1.6, alpha=0.3)
    for x, y, _ in points:
        axes.plot(x, y, "o", color=style.OURS)
    axes.margins(x=0.12, y=0.08)
    _names(axes, points)
    return drawn


def _names(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, where the fewest others are."""
    width, height = (inches * 72 * 0.85 for inches in SIZE)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    spots = [
        ((x - left) / (right - left) * width, (y - low) / (high - low) * height)
        for x, y, _ in points
    ]
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
