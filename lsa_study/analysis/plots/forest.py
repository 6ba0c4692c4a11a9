"""All claims of a tier against their margins, and ours against the article's differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lsa_study.analysis.claims import GROUPS, ClaimVerdict
from lsa_study.analysis.plots import style
from lsa_study.analysis.plots.costs import SIZE, Scatter
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import Estimate, kendall, signed
from lsa_study.config.names import counted
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS

SCALES = {
    ("points",): "Difference in top-1 accuracy (points)",
    ("%", "share"): "Percent: of the second row, or of the runs",
}
"""The panels, by how the units of what a claim estimates begin."""
SHADE = 0.13
"""Opacity of the span where a claim holds."""


def claims(study: Study, judged: Sequence[ClaimVerdict]) -> Figure | None:
    """Draw each claim's estimate and interval over the span in which it holds, by group.

    None if no claim has an estimate.
    """
    known = [one for one in judged if one.estimate.mean is not None]
    known.sort(key=lambda one: (list(GROUPS).index(one.grouped), one.wanted or 0))
    panels: dict[str, list[ClaimVerdict]] = {}
    for units, label in SCALES.items():
        if mine := [one for one in known if str(one.as_json()["unit"]).startswith(units)]:
            others = any(one.claim.metric in METRICS and one.claim.metric != "acc1" for one in mine)
            panels["Difference in accuracy, AP or mIoU (points)" if others else label] = mine
    if not panels:
        return None
    heights = [len(mine) + 1.5 * len({one.grouped for one in mine}) for mine in panels.values()]
    family = judged[0].family
    title = f"Claims of {family}" if family else "The articles' claims"
    drawn = style.figure(9.6, 1.9 + 0.21 * sum(heights), title, study)
    every = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, mine) in zip(every, panels.items(), strict=True):
        axes.set_xlabel(label)
        _panel(axes, mine)
    found = {one.word for mine in panels.values() for one in mine}
    words = [word for word in style.VERDICTS if word in found] + sorted(found - {*style.VERDICTS})
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, label=word)
        for word in words
        for colour, marker in [style.VERDICTS.get(word, (style.QUIET, "o"))]
    ]
    handles.append(Patch(color=style.QUIET, alpha=SHADE, label="where the claim holds"))
    ways: dict[str, Any] = {"ncols": len(handles), "frameon": False, "fontsize": 8}
    every[0].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), **ways)
    shown = sum(map(len, panels.values()))
    several = max(one.estimate.n for mine in panels.values() for one in mine) > 1
    counts = ", ".join(f"{n} {word}" for word, n in Counter(one.word for one in judged).items())
    marked = any(one.comparable for one in known)
    number = counted(len(judged), "claim")
    whose = f"{number} of {family}" if family else f"the article's {number}"
    alone = "bars are 95 % intervals of each claim alone, colours what holds among all"
    drawn.set_label(
        f"Estimates of {shown} of {whose} against the span "
        f"where each holds (shaded): {counts}; those without an estimate are counted alone; "
        f"{alone if several else 'one seed: no interval'}."
        + " †: its rows were not made alike; the verdict's remarks say how."
        * marked
    )
    return drawn


def _panel(axes: Axes, mine: Sequence[ClaimVerdict]) -> None:
    """Draw claims that share a unit from the top down, each group under its title."""
    places: list[float] = []
    names, titles = [], []
    group = ""
    for one in mine:
        if one.grouped != group:
            group = one.grouped
            titles.append(len(places))
            places.append(places[-1] + 1.5 if places else 0.0)
            names.append(GROUPS[group])
        places.append(places[-1] + 1)
        names.append(style.short(one.claim.text, 70) + " †" * bool(one.comparable))
    left, right = _limits(mine)
    axes.axvline(0, color=style.QUIET, lw=0.8)
    below = [place for at, place in enumerate(places) if at not in titles]
    for one, place in zip(mine, below, strict=True):
        colour, marker = style.VERDICTS.get(one.word, (style.QUIET, "o"))
        tall = [place - 0.42, place + 0.42]
        span = _span(one)
        start, stop = (min(max(end, left), right) for end in span)
        axes.fill_betweenx(tall, start, stop, color=style.QUIET, alpha=SHADE, lw=0)
        for end in span:
            if math.isfinite(end) and end:
                axes.plot([end] * 2, tall, color=style.QUIET, lw=0.9)
        mean, *interval = _ends(one)
        if len(set(interval)) == 2:
            axes.plot(interval, [place] * 2, color=colour, lw=2.2, alpha=0.6)
        axes.plot(mean, place, marker, color=colour, ms=5)
    axes.set_yticks(places, names, fontsize=7.5)
    for at in titles:
        axes.get_yticklabels()[at].set_fontweight("bold")
    axes.set(xlim=(left, right), ylim=(places[-1] + 0.8, -0.8))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _span(one: ClaimVerdict) -> tuple[float, float]:
    """Where the estimate of a claim must lie for it to hold."""
    if one.claim.relation in ("ends", "signs"):  # more than half of the runs, or of the pairs
        return 50.0, math.inf
    edges = one.claim.edges
    return edges[0], edges[1] if len(edges) > 1 else math.inf


def _ends(one: ClaimVerdict) -> list[float]:
    """The mean of a claim's estimate and the ends of its interval, if it has one."""
    found, scale = one.estimate, 100 if str(one.as_json()["unit"]).startswith("share") else 1
    return [scale * end for end in (found.mean, found.low, found.high) if end is not None]


def _limits(mine: Sequence[ClaimVerdict]) -> tuple[float, float]:
    """An axis that holds every mean and margin, and intervals as far as they are no wider."""
    margins = [end for one in mine for end in _span(one) if math.isfinite(end)]
    core = [0.0, *margins, *(_ends(one)[0] for one in mine)]
    low, high = min(core), max(core)
    room = (high - low) or 1.0
    ends = [end for one in mine for end in _ends(one)]
    low = max(min([low, *ends]), low - room) - 0.06 * room
    return low, min(max([high, *ends]), high + room) + 0.06 * room


def agreement(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draw every row's difference to its reference, ours over the article's, in points.

    Differences, because accuracies of another data set lie on a scale of their own. None below
    two rows that both sides know.
    """
    compared = [
        (row, row.article_delta)
        for row in rows
        if row.article_delta is not None and row.contrast.seeds
    ]
    if len(compared) < 2:
        return None
    drawn = style.figure(*SIZE, study=study)
    axes = drawn.subplots()
    axes.set(
        xlabel="The article: difference to the reference row (points)",
        ylabel="Ours: difference to the reference row (points)",
    )
    made = Scatter(axes)
    for row, theirs in compared:
        name = f"{style.short(row.name)}{' †' * ('†' in row.marks)}"
        known = Estimate((theirs,), theirs)
        made.add(name, style.family(study, row.variant), known, row.contrast.difference)
    for line in (axes.axhline, axes.axvline):
        line(0, color=style.QUIET, lw=0.8, zorder=1)
    axes.margins(x=0.14, y=0.1)
    axes.axline((0, 0), slope=1, color=style.QUIET, lw=1, ls="dashed", label="equal differences")
    made.finish()
    pairs = [(row.contrast.difference.mean or 0.0, theirs) for row, theirs in compared]
    alike = sum(ours * theirs > 0 for ours, theirs in pairs)
    references = {row.reference for row, _ in compared}
    # With one reference for all, it is a row of the order too.
    ranked = [*pairs, (0.0, 0.0)] if len(references) == 1 else pairs
    order = ""
    if found := kendall([ours for ours, _ in ranked], [theirs for _, theirs in ranked]):
        tau, p, method = found
        order = (
            f", Kendall's tau-b {signed(tau, 2)} over {len(ranked)} rows (p = {p:.2g}, {method})"
        )
    drawn.set_label(
        f"Differences to the reference row of {study.place}, ours over the "
        f"article's: {alike} of {len(pairs)} have the same sign{order}; "
        f"{style.basis([row for row, _ in compared])}."
    )
    return drawn
