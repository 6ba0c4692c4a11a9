"""Rows from the top down, ours and the article's: accuracy, differences, seeds, layers, heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lsa_study.analysis.article import read_csv
from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.config.study import Study

LAYERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "LSA": (("table4", "swin"), ("table1", "swin")),
    "DwConv": (("table5", "dwconv"), ("fig2", "dwconv")),
    "DDF": (("table6", "ddf"),),
    "ELSA": (("table4", "elsa"),),
}
"""The layers of Fig. 1 and the rows, by study and variant, that stand for them."""
PANELS = (
    "Accuracy\nagainst LSA's (points)",
    "Parameters\nin % of LSA's",
    "Multiply-adds\nin % of LSA's",
)
Span = tuple[float | None, float | None, float, float]
"""An interval's ends, and the width and opacity of its line."""


def _point(
    axes: Axes,
    place: float,
    value: float | None,
    text: str,
    *,
    article: bool = False,
    size: float | None = None,
    spans: Iterable[Span] = (),
) -> None:
    """Draw a value with its intervals and ``text`` beside them, ours or the article's.

    Without a value the text stands alone, as a word.
    """
    if value is None:
        axes.text(
            0.03, place, text, transform=axes.get_yaxis_transform(), va="center",
            color=style.QUIET, fontsize=8, style="italic",
        )  # fmt: skip
        return
    colour, marker = (style.ARTICLE, "D") if article else (style.OURS, "o")
    right = value
    for low, high, width, alpha in spans:
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, lw=width, alpha=alpha)
            right = max(right, high)
    axes.plot(value, place, marker, color=colour, ms=size)
    # The text must stay readable where it lies over a line.
    patch = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 0.5}
    axes.annotate(
        text, (right, place), (7, 0), textcoords="offset points", va="center", fontsize=8,
        bbox=patch,
    )  # fmt: skip


def _legend(of: Axes | Figure, *, ours: str = "", columns: int = 2) -> None:
    """Name what is drawn, above a plot or under a figure; ``ours`` beside the article's sign."""
    ways: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 8}
    if ours:
        ways["handles"] = [
            Line2D([], [], color=style.OURS, marker="o", ls="none", label=ours),
            Line2D([], [], color=style.ARTICLE, marker="D", ls="none", ms=4, label="the article"),
        ]
    if isinstance(of, Axes):
        of.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, **ways)
    else:
        of.legend(loc="outside lower center", **ways)


def _widen(axes: Axes, *, room: float) -> None:
    """Leave ``room``, a share of the width, right for words; an empty axis loses its ticks."""
    if not axes.lines:
        axes.set_xticks([])
        return
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + room * (high - low))


def accuracy(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw one line per row: ours on the left, the article's right, each on its own scale."""
    drawn = style.figure(8.2, 1.3 + 0.34 * len(rows), study=study)
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    several = any(row.accuracy.n > 1 for row in rows)
    title = "Ours: mean, 95 % interval and seeds" if several else "Ours: one seed"
    left.set(title=title, xlabel=style.ACCURACY)
    right.set(title=f"The article: {study.file.article.source}", xlabel=style.ARTICLE_ACCURACY)
    right.xaxis.set_major_locator(MaxNLocator(5))
    digits = decimals(run.test_images for row in rows for run in row.done)
    for place, row in enumerate(rows):
        found, printed = row.accuracy, row.article.value
        if found.n > 1:
            ticks = [place + 0.18] * found.n
            left.plot(found.values, ticks, "|", color=style.QUIET, ms=5, mew=1)
        text = found.shown(digits) + (f"  ({row.outcome})" if row.ends else "")
        interval = (found.low, found.high, 2.4, 0.5)
        _point(left, place, found.mean, row.word or text, spans=[interval])
        _point(right, place, printed, row.article.text or "not in the article", article=True)
    _widen(left, room=0.5)
    low, high = left.get_xlim()
    left.set_xticks([tick for tick in left.get_xticks() if low <= tick <= min(high, 100)])
    _widen(right, room=0.3)
    style.rows_down((left, right), [style.short(row.name) for row in rows])
    return drawn


def differences(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw each row's paired difference to its reference, in points.

    Thick: the interval over seeds; thin: over test images; a diamond: the article's difference.
    """
    compared = [row for row in rows if row.reference != row.variant]
    drawn = style.figure(8.2, 1.75 + 0.42 * len(compared), study=study)
    axes = drawn.subplots()
    _legend(axes, ours="ours, with intervals over seeds (thick) and over test images (thin)")
    axes.axvline(0, color=style.QUIET, lw=0.8)
    digits = decimals(run.test_images for row in rows for run in row.done)
    names = []
    for place, row in enumerate(compared):
        base = row.base
        other = base.name if base else row.reference
        names.append(f"{style.short(row.name)} − {style.short(other)}")
        if row.article_delta is not None:
            text = signed(row.article_delta, 1)
            _point(axes, place + 0.2, row.article_delta, text, article=True, size=4)
        if not row.contrast.seeds:
            word = base.word if base else "not in this table"
            absent = row.word or (f"{row.reference}: {word}" if word else "no seed in common")
            _point(axes, place - 0.2, None, absent)
            continue
        found, images = row.contrast.difference, row.contrast.by_image
        spans: list[Span] = [(found.low, found.high, 3, 0.5)]
        if images is not None:
            spans.append((images.low, images.high, 0.9, 1))
        text = signed(found.mean, digits) + ("" if found.n > 1 else "  (one seed)")
        _point(axes, place - 0.2, found.mean, text, spans=spans)
    style.rows_down((axes,), names)
    axes.set_xlabel("Difference in top-1 accuracy (points)")
    _widen(axes, room=0.2)
    return drawn


def seeds(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw one line per seed through the rows; lines that run side by side share their luck."""
    drawn = style.figure(8.2, 1.5 + 0.34 * len(rows), study=study)
    axes = drawn.subplots()
    axes.set_xlabel(f"{style.ACCURACY}; a bar: the mean")
    ended = [(run, place) for place, row in enumerate(rows) for run in row.done]
    known = sorted({run.seed for run, _ in ended})
    for at, seed in enumerate(known):
        points = [(run.accuracy, place) for run, place in ended if run.seed == seed]
        look = style.look(at) | {"lw": 0.9, "ms": 4, "label": f"seed {seed}"}
        axes.plot(*zip(*points, strict=True), **look)
    for place, row in enumerate(rows):
        if row.accuracy.mean is None:
            _point(axes, place, None, row.word)
        else:
            bar = [place - 0.22, place + 0.22]
            axes.plot([row.accuracy.mean] * 2, bar, color=style.INK, lw=2)
    _legend(axes, columns=min(len(known), 8))
    style.rows_down((axes,), [style.short(row.name) for row in rows])
    return drawn


def layers(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> Figure | None:
    """Draw the three quantities of Fig. 1 relative to LSA, ours and the article's together.

    Relative, because other tiers train smaller networks on other images. None without the rows
    of LSA and ELSA.
    """
    known = {(study.name, row.variant): row for study, rows in pairs for row in rows}
    rows = {}
    for name, places in LAYERS.items():
        if here := [known[place] for place in places if place in known]:
            rows[name] = next((row for row in here if row.runs), here[0])
    if not {"LSA", "ELSA"} <= rows.keys():
        return None
    study = pairs[0][0]
    path = (study.document.path.parent / study.file.article.csv).parent / "fig1.csv"
    theirs: dict[Any, list[float]] = {}
    if path.exists():
        printed = read_csv(path).set_index("layer")[["acc1", "params_m", "flops_g"]].astype(float)
        theirs = printed.T.to_dict("list")
    ours = {
        name: [row.accuracy.mean, row.costs["params_m"], row.costs["gmacs"]]
        for name, row in rows.items()
    }
    drawn = style.figure(8.6, 2.9, "Fig. 1: Comparison of different layers", study)
    panels = drawn.subplots(1, 3, sharey=True)
    for at, (axes, title) in enumerate(zip(panels, PANELS, strict=True)):
        axes.set_title(title, fontsize=9)
        axes.axvline(0 if at == 0 else 100, color=style.QUIET, lw=0.8)
        for place, name in enumerate(LAYERS):
            for facts, shift in ((ours, -0.17), (theirs, 0.17)):
                base, value = (facts[one][at] if one in facts else None for one in ("LSA", name))
                if value is not None and base:
                    value = value - base if at == 0 else 100 * value / base
                    text = signed(value, 1) if at == 0 else f"{value:.0f}"
                    _point(axes, place + shift, value, text, article=facts is theirs, size=5)
                elif facts is ours and at == 0:
                    word = rows[name].word if name in rows else "not run"
                    _point(axes, place + shift, None, word)
        _widen(axes, room=0.25)
    style.rows_down(panels, LAYERS)
    _legend(drawn, ours="ours")
    return drawn


def heads(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw Fig. 2, a line per layer over its heads: ours on the left, the article's right."""
    drawn = style.figure(8.2, 3.7, study=study)
    left, right = drawn.subplots(1, 2)
    left.set(title="Ours", ylabel=style.ACCURACY)
    right.set(title=f"The article: {study.file.article.source}", ylabel=style.ARTICLE_ACCURACY)
    settings = list(dict.fromkeys(row.columns.get("Heads", "") for row in rows))
    placed = [(settings.index(row.columns.get("Heads", "")), row) for row in rows]
    for at, layer in enumerate(dict.fromkeys(row.label for row in rows)):
        mine = [(place, row) for place, row in placed if row.label == layer]
        look, name = style.look(at), style.short(layer)
        ours = [(place, row.accuracy.mean, row.word) for place, row in mine]
        theirs = [(place, row.article.value, row.article.word) for place, row in mine]
        for axes, points in ((left, ours), (right, theirs)):
            known = [(place, value) for place, value, _ in points if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), **look)
                style.note(axes, name, *known[-1], look["color"])
            for place, value, word in points:
                if value is None and word:
                    axes.text(
                        place, 0.03, f"{name}:\n{word}", transform=axes.get_xaxis_transform(),
                        ha="center", va="bottom", fontsize=8, color=look["color"],
                    )  # fmt: skip
        for place, row in mine:
            if row.accuracy.low is not None:
                ends = [row.accuracy.low, row.accuracy.high]
                left.plot([place, place], ends, color=look["color"], lw=2.4, alpha=0.45)
    for axes in (left, right):
        axes.set_xticks(range(len(settings)), settings)
        label = "Heads (1x: the backbone's own; C: one a channel)"
        axes.set(xlim=(-0.4, len(settings) - 0.3), xlabel=label)
        axes.margins(y=0.2)
    return drawn
