"""Rows from the top down, ours and the article's: accuracy, differences, seeds, layers, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lsa_study.analysis.article import read_csv
from lsa_study.analysis.contrasts import compare
from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.config.names import counted
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS

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


def _point(
    axes: Axes,
    place: float,
    value: float | None,
    text: str,
    *,
    article: bool = False,
    size: float | None = None,
    ends: tuple[float | None, float | None] = (None, None),
) -> None:
    """Draw a value with its interval's ``ends`` and ``text`` beside them, ours or the article's.

    Without a value the text stands alone, as a word.
    """
    if value is None:
        axes.text(
            0.03, place, text, transform=axes.get_yaxis_transform(), va="center",
            color=style.QUIET, fontsize=8, style="italic", bbox=style.PATCH,
        )  # fmt: skip
        return
    colour, marker = (style.ARTICLE, "D") if article else (style.OURS, "o")
    low, high = ends
    right = value
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, lw=2.4, alpha=0.5)
        right = max(right, high)
    axes.plot(value, place, marker, color=colour, ms=size)
    axes.annotate(
        text, (right, place), (7, 0), textcoords="offset points", va="center", fontsize=8,
        bbox=style.PATCH,
    )  # fmt: skip


def _legend(of: Axes | Figure, *, ours: str = "", columns: int = 2, article: bool = True) -> None:
    """Name what is drawn, above a plot or under a figure; ``ours`` beside the article's sign."""
    ways: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 8}
    if ours:
        ways["handles"] = [
            Line2D([], [], color=style.OURS, marker="o", ls="none", label=ours),
            Line2D([], [], color=style.ARTICLE, marker="D", ls="none", ms=4, label="the article"),
        ][: 1 + article]
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
    ratios = (3, 2) if study.file.article else (1,)
    panels = drawn.subplots(1, len(ratios), squeeze=False, sharey=True, width_ratios=ratios)[0]
    left, article = panels[0], panels[1:]
    several = any(row.accuracy.n > 1 for row in rows)
    title = "mean, 95 % interval and seeds" if several else "one seed"
    title = f"Ours: {title}" if study.file.article else title.capitalize()
    metric = METRICS[rows[0].metric]
    left.set(title=title, xlabel=metric.axis)
    for right in article:
        right.set(title=f"The article: {study.place}", xlabel=metric.article)
        right.xaxis.set_major_locator(MaxNLocator(5))
    digits = decimals(run.test_images for row in rows for run in row.done)
    for place, row in enumerate(rows):
        found, printed = row.accuracy, row.article.value
        if found.n > 1:
            ticks = [place + 0.18] * found.n
            left.plot(found.values, ticks, "|", color=style.QUIET, ms=5, mew=1)
        text = found.shown(digits) + (f"  ({row.outcome})" if row.ends else "")
        _point(left, place, found.mean, row.word or text, ends=(found.low, found.high))
        for right in article:
            _point(right, place, printed, row.article.text or "not in the article", article=True)
    _widen(left, room=0.5)
    low, high = left.get_xlim()
    left.set_xlim(max(low, 0), high)  # words may stand beyond 100, ticks may not
    left.set_xticks([tick for tick in left.get_xticks() if low <= tick <= min(high, 100)])
    for right in article:
        _widen(right, room=0.3)
    style.rows_down(panels, [_named(row) for row in rows])
    ours = {row.name: row.accuracy.mean for row in rows if row.accuracy.mean is not None}
    theirs = {row.name: row.article.value for row in rows if row.article.value is not None}
    parts = [
        f"{who}, best {best} with {metric.shown(values[best], 1)}"
        for who, values in (("ours (left)", ours), ("the article's (right)", theirs))
        if values
        for best in [max(values, key=lambda name: values[name])]
    ]
    if not study.file.article:
        parts = [part.partition(", ")[2] for part in parts]
    drawn.set_label(
        f"{metric.first} of {counted(len(ours), 'row')} of {study.place}: "
        f"{'; '.join([*parts, style.basis(rows)])}.{_dagger(rows)}"
    )
    return drawn


def _named(row: Row) -> str:
    return style.short(row.name) + " †" * ("†" in row.marks)


def _dagger(rows: Sequence[Row]) -> str:
    if not any("†" in row.marks for row in rows):
        return ""
    return " †: not made as the row it is compared with; the table's notes say how."


def differences(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw each row's paired difference to its reference, in points.

    Thick: the interval, over seeds and, where they are known, test images; thin and grey beside it,
    from two seeds on: the part of the test images, of accuracies; a diamond: the article's
    difference. One seed has no interval, and that of its test images alone would read as one.
    """
    compared = [row for row in rows if row.reference != row.variant]
    drawn = style.figure(8.2, 1.75 + 0.42 * len(compared), study=study)
    axes = drawn.subplots()
    noises = [row.contrast.noise for row in compared if row.contrast.noise]
    apart = " (grey: the part of the test images)" if rows[0].metric == "acc1" else ""
    if noises and all(noise.image is None for noise in noises):
        apart = " (of seeds alone)"
    also = f", with its 95 % interval{apart}" if noises else ""
    article = study.file.article is not None
    of = axes if article else drawn
    _legend(of, ours=f"{'ours' if article else 'difference'}{also}", article=article)
    axes.axvline(0, color=style.QUIET, lw=0.8)
    digits = decimals(run.test_images for row in rows for run in row.done)
    names = []
    for place, row in enumerate(compared):
        base = row.base
        other = base.name if base else row.reference
        names.append(f"{_named(row)} − {style.short(other)}")
        if row.article_delta is not None:
            text = signed(row.article_delta, 1)
            _point(axes, place + 0.2, row.article_delta, text, article=True, size=4)
        if not row.contrast.seeds:
            word = base.word if base else "not in this table"
            absent = row.word or (f"{row.reference}: {word}" if word else "no seed in common")
            _point(axes, place - 0.2, None, absent)
            continue
        found, images = row.contrast.difference, row.contrast.by_image
        if images is not None and found.low is not None:
            beside = [place - 0.05, place - 0.05]
            axes.plot([images.low, images.high], beside, color=style.QUIET, lw=0.9)
        text = signed(found.mean, digits) + ("" if found.n > 1 else "  (one seed)")
        _point(axes, place - 0.2, found.mean, text, ends=(found.low, found.high))
    style.rows_down((axes,), names)
    axes.set_xlabel(f"Difference in {METRICS[rows[0].metric].text} (points)")
    _widen(axes, room=0.2)
    made = [row.contrast.difference for row in compared if row.contrast.seeds]
    known = [(one.low, one.high) for one in made if one.low is not None and one.high is not None]
    clear = sum(low > 0 or high < 0 for low, high in known)
    theirs = ", beside the article's" if article else ""
    drawn.set_label(
        f"Difference of {counted(len(made), 'row')} of {study.place} to the reference row, "
        f"in points{theirs}: "
        + (f"{clear} of {len(known)} intervals leave out 0; " * bool(known))
        + f"{style.basis(compared)}.{_dagger(compared)}"
    )
    return drawn


def seeds(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw one line per seed through the rows; lines that run side by side share their luck."""
    drawn = style.figure(8.2, 1.5 + 0.34 * len(rows), study=study)
    axes = drawn.subplots()
    metric = METRICS[rows[0].metric]
    axes.set_xlabel(f"{metric.axis}; a bar: the mean")
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
    style.within_percent(axes, "x")
    style.rows_down((axes,), [style.short(row.name) for row in rows])
    spans = [max(row.accuracy.values) - min(row.accuracy.values) for row in rows if row.done]
    drawn.set_label(
        f"{metric.first} of {counted(len(known), 'seed')} of {counted(len(spans), 'row')} of "
        f"{study.place}: the seeds of a row lie up to {max(spans, default=0):.1f} "
        "points apart; lines that run side by side share their luck."
    )
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
    theirs = _fig1([study for study, _ in pairs])
    ours = {
        name: [_beside(row, rows["LSA"]), row.costs["params_m"], row.costs["gmacs"]]
        for name, row in rows.items()
    }
    drawn = style.figure(8.6, 2.9, "Fig. 1: Comparison of different layers", pairs[0][0])
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
                    word = rows[name].word or "no seed in common" if name in rows else "not run"
                    _point(axes, place + shift, None, word)
        _widen(axes, room=0.25)
    style.rows_down(panels, LAYERS)
    _legend(drawn, ours="ours")
    relative = [
        f"{signed(elsa - lsa, 1)} points" if at == 0 else f"{100 * elsa / lsa:.0f} % {noun}"
        for at, noun in enumerate(("", "of the parameters", "of the multiply-adds"))
        for lsa, elsa in [(ours["LSA"][at], ours["ELSA"][at])]
        if lsa and elsa is not None
    ]
    drawn.set_label(
        "Layers of the article's Fig. 1 relative to local attention (LSA), ours and the "
        f"article's; ELSA, ours: {', '.join(relative) or 'not run'}; "
        f"{style.basis([*rows.values()])}."
    )
    return drawn


def _beside(row: Row, base: Row) -> float | None:
    """Its accuracy, beside the other's over all seeds: they differ as over the seeds of both."""
    if row is base or base.accuracy.mean is None:
        return row.accuracy.mean
    gain = compare(row.done, base.done).difference.mean
    return None if gain is None else base.accuracy.mean + gain


def _fig1(studies: Sequence[Study]) -> dict[Any, list[float]]:
    """The article's numbers of Fig. 1, where they lie beside those of a study."""
    for study in studies:
        if study.file.article is not None:
            path = (study.document.path.parent / study.file.article.csv).parent / "fig1.csv"
            if path.exists():
                columns = ["acc1", "params_m", "flops_g"]
                found: dict[Any, list[float]] = (
                    read_csv(path).set_index("layer")[columns].astype(float).T.to_dict("list")
                )
                return found
    return {}


def heads(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw Fig. 2, a line per layer over its heads: ours on the left, the article's right."""
    drawn = style.figure(8.2, 3.7, study=study)
    left, right = drawn.subplots(1, 2)
    metric = METRICS[rows[0].metric]
    left.set(title="Ours", ylabel=metric.axis)
    right.set(title=f"The article: {study.place}", ylabel=metric.article)
    settings = list(dict.fromkeys(row.columns.get("Heads", "") for row in rows))
    placed = [(settings.index(row.columns.get("Heads", "")), row) for row in rows]
    for at, layer in enumerate(dict.fromkeys(row.label for row in rows)):
        mine = [(place, row) for place, row in placed if row.label == layer]
        colour = style.FAMILIES[style.family(study, mine[0][1].variant)]
        look, name = style.look(at) | {"color": colour}, style.short(layer)
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
        style.within_percent(axes)
    done = [row for row in rows if row.accuracy.mean is not None]
    best = max(done, key=lambda row: row.accuracy.mean or 0.0, default=None)
    drawn.set_label(
        f"{metric.first} over the number of heads, ours (left) and the article's (right): "
        + (f"ours is highest for {best.name}; " if best else "")
        + f"{style.basis(rows)}."
    )
    return drawn
