"""One look for every figure: colour-blind safe, no dates, the same bytes for the same numbers."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsa_study.config.study import Study

LOOK = mpl.rc_params_from_file(Path(__file__).with_name("lsa.mplstyle"), use_default_template=False)
PAPER = "#ffffff"
INK, QUIET, GRID = (LOOK[name] for name in ("text.color", "axes.edgecolor", "grid.color"))
OURS = "#0072b2"
ARTICLE = "#b25400"
DARK: Mapping[str, str] = {
    PAPER: "#14181d",
    INK: "#e6e9ec",
    QUIET: "#9aa4ae",
    GRID: "#343b43",
    ARTICLE: "#ffb066",
    OURS: "#58b1e8",
    "#c44e00": "#ff9a52",
    "#007f5c": "#3fcf9f",
    "#b3478c": "#f29bd0",
    "#7a5c00": "#d6b44a",
    "#2f7cb0": "#8fd0f5",
    "#8a3b00": "#e0a080",
    "#4b4b9f": "#aab0ff",
}
"""Every colour of a figure and what stands for it on a dark page."""
COLOURS = tuple(DARK)[list(DARK).index(OURS) :]
"""After Okabe and Ito, darkened until text in them can be read on white (contrast 4.5)."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Beside colours, so that lines can be told apart without them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
TIERS = {
    "toy": "tier toy: a check of the pipeline, never a reproduction",
    "proxy": "tier proxy: small images, never a reproduction",
    "paper": "tier paper: the article's data set and protocol",
}
ACCURACY = "Top-1 accuracy on the test set (%)"
ARTICLE_ACCURACY = "Top-1 accuracy on ImageNet-1K (%)"


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in the project's look, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(LOOK)
        yield


def figure(width: float, height: float, title: str = "", study: Study | None = None) -> Figure:
    """An empty figure of this many inches with a title, that needs no display.

    Of a ``study`` the title is the study's own unless it is given, and says the tier.
    """
    if study is not None:
        title = title or short(f"{study.file.article.source}: {study.file.title}", 72)
        title = f"{title}\n{TIERS[study.tier]}"
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, x=0.01, ha="left", weight="bold")
    return made


def say_about(drawn: Figure, studies: Sequence[Study]) -> None:
    """Name in the title what side studies are about; where there are several, those alike once."""
    said: dict[str, list[str]] = {}
    for study in studies:
        if study.about:
            said.setdefault(study.about.partition(": ")[2], []).append(study.name)
    text = "; ".join(f"{', '.join(names)}: {what}" for what, names in said.items())
    text = studies[0].about if len(studies) == 1 else text
    lines = textwrap.wrap(text, 84, max_lines=3, placeholder=" ...")
    drawn.suptitle("\n".join([drawn.get_suptitle(), *lines]), x=0.01, ha="left", weight="bold")


def svg(drawn: Figure) -> str:
    """The figure as SVG text, without date or version."""
    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with styled():
        drawn.savefig(text, format="svg", metadata=metadata)
    # Where a reader lacks the font, one of about the same width must stand in, not a serif.
    return text.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def png(drawn: Figure) -> bytes:
    """The figure as PNG, without date or version."""
    content = io.BytesIO()
    with styled():
        drawn.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def empty(axes: Axes, words: str) -> None:
    """Say in the middle of an empty plot why nothing is there."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=QUIET)
    axes.set(xticks=[], yticks=[])


def look(at: int) -> dict[str, Any]:
    """How the line with this number is told apart: by colour, dashes and markers together."""
    dash = DASHES[(at // 2) % len(DASHES)]
    return {"color": COLOURS[at % len(COLOURS)], "ls": dash, "marker": MARKERS[at % len(MARKERS)]}


def short(text: str, most: int = 34) -> str:
    """Cut a text that would leave the plot no room."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def note(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    """Name a line at its last point."""
    axes.annotate(
        text, (x, y), (8, 0), textcoords="offset points", va="center", color=colour, weight="bold"
    )


def rows_down(panels: Sequence[Axes], names: Iterable[str]) -> None:
    """Give panels that share their height a line for each name, from the top down."""
    names = list(names)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
