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

from lsa_study.analysis.rows import Row
from lsa_study.config.operators import UnifiedOp
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
FAMILIES: Mapping[str, str] = {
    "LSA": "#0072b2",
    "Net1-7": "#b3478c",
    "DwConv": "#007f5c",
    "DDF": "#7a5c00",
    "ELSA": "#c44e00",
    "others": "#4b4b9f",
}
"""Families of layers and their colours, in every figure that can show them."""
VERDICTS: Mapping[str, tuple[str, str]] = {
    "supported": ("#007f5c", "o"),
    "contradicted": ("#c44e00", "X"),
    "unresolved": ("#7a5c00", "s"),
}
"""Colour and marker of a claim's verdict; any other word is quiet."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Beside colours, so that lines can be told apart without them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
PATCH = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
"""Behind a text that must stay readable where it lies over a line."""
TIERS = {
    "toy": "tier toy: a check of the pipeline, never a reproduction",
    "proxy": "tier proxy: small images, never a reproduction",
    "paper": "tier paper: the article's data set and protocol",
}
OWN_TIERS = {
    "toy": "tier toy: a check of the pipeline, never evidence",
    "proxy": "tier proxy: small images and a small network",
    "paper": "tier paper: ImageNet-1K, a full training",
}
"""The same in studies without an article."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in the project's look, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(LOOK)
        yield


def figure(width: float, height: float, title: str = "", study: Study | None = None) -> Figure:
    """An empty figure of this many inches with a title, that needs no display.

    Of a ``study`` the title is the study's own unless it is given, and says the tier. What draws
    on it sets its label to a sentence that says what it shows, also for those who cannot see it.
    """
    if study is not None:
        tiers = TIERS if study.file.article else OWN_TIERS
        title = f"{title or short(study.heading, 72)}\n{tiers[study.tier]}"
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
    later = at // len(COLOURS)  # one of the same colour has other dashes and another marker
    dash, marker = DASHES[(at // 2 + later) % len(DASHES)], MARKERS[(at + later) % len(MARKERS)]
    return {"color": COLOURS[at % len(COLOURS)], "ls": dash, "marker": marker}


def family(study: Study, variant: str) -> str:
    """The family of layers, of ``FAMILIES``, to which a row's operator belongs."""
    op = study.variants[variant].model.op
    match op.kind:
        case "unified" if isinstance(op, UnifiedOp):
            return "LSA" if {*op.terms} == {"qk", "bias"} else "Net1-7"
        case "dwconv" | "dwnet" | "ddwconv":
            return "DwConv"
        case "ddf":
            return "DDF"
        case "elsa":
            return "ELSA"
    return "others"


def looks(study: Study, variants: Sequence[str]) -> list[dict[str, Any]]:
    """How the lines of rows are told apart: by family, unless one has more rows than dashes."""
    families = [family(study, variant) for variant in variants]
    places = [families[:at].count(name) for at, name in enumerate(families)]
    if max(places, default=0) >= len(DASHES):
        return [look(at) for at in range(len(families))]
    return [
        {"color": FAMILIES[name], "ls": DASHES[place], "marker": MARKERS[place]}
        for name, place in zip(families, places, strict=True)
    ]


def within_percent(axes: Axes, way: str = "y") -> None:
    """Stop an axis of accuracy at 0 and 100."""
    low, high = getattr(axes, f"get_{way}lim")()
    getattr(axes, f"set_{way}lim")(max(low, 0.0), min(high, 100.0))


def basis(rows: Sequence[Row]) -> str:
    """What a caption says of the intervals of rows: how many seeds they rest on."""
    seeds = {row.accuracy.n for row in rows if row.done}
    if max(seeds, default=0) < 2:
        return "one seed: no interval"
    fewest, most = min(seeds), max(seeds)
    return f"95 % intervals over {most if fewest == most else f'{fewest} to {most}'} seeds"


def short(text: str, most: int = 34) -> str:
    """Cut a text that would leave the plot no room; its end stays, as names may differ there."""
    text, end = " ".join(text.split()), most // 3
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"


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
