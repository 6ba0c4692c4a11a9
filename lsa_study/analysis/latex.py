r"""Write a table as LaTeX: booktabs only, every text escaped, the runs behind a row as comments.

Needs ``\usepackage{booktabs}``. A table fits the text of ``article`` in one column; in two
columns it takes one of them where it fits, else the page (``table*``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from lsa_study.analysis.pivot import Pivot
from lsa_study.analysis.rows import COSTS, Row
from lsa_study.analysis.table import Table
from lsa_study.config.names import nearest
from lsa_study.config.task import METRICS
from lsa_study.errors import ConfigError

ESCAPES: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # A row that begins with [ or * would be taken for an argument of the \\ before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    "±": r"\ensuremath{\pm}",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "Δ": r"\ensuremath{\Delta}",
    "†": r"\ensuremath{\dagger}",
    "‡": r"\ensuremath{\ddagger}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "–": "--",
    "—": "---",
    "’": "'",
    "⁹": r"\textsuperscript{9}",
    "³": r"\textsuperscript{3}",
    "⁰": r"\textsuperscript{0}",
}
COLUMN, PAGE = 229.0, 345.0
"""Widths in points of a column of ``article`` in two columns, and of its text in one."""
SEPARATION: Mapping[str, float] = {"footnotesize": 3.0, "scriptsize": 3.0, "tiny": 2.0}
"""Points on either side of a column, by size of type."""
SIZES: Mapping[str, float] = {"footnotesize": 8.5, "scriptsize": 8.0, "tiny": 6.8}
"""Points of an em (Computer Modern), by size of type."""
WIDTHS = (
    (" .,:;'|ijl!", 0.34), ("()[]", 0.4), ("0123456789–/", 0.5), ("MW—", 1.03), ("mw@%", 0.84),
    ("ABCDEFGHIJKLNOPQRSTUVXYZ+−±×Δ", 0.78),
)  # fmt: skip
"""Widths of signs, in ems; 0.56 for every other."""
PLAIN = re.compile(r"[\w@/%Δ() ]+")
"""A title that can be set one word under the other."""
TALLEST = 480.0
"""Points that a table with its notes may take of a page."""
BEST = "Bold: the highest mean of the rows that have an accuracy; not a verdict on any difference."
KEYS: Mapping[str, str] = {
    "model": "Model",
    **{name: metric.title for name, metric in METRICS.items()},
    "delta": "Δ",
    "paper": "Article",
    **{name: cost.title for name, cost in COSTS.items()},
}
"""Titles of columns by their names in files of data; others have one name."""
MELTING = "-,'"
"""Two of these in a row would melt into another sign."""


def escape(text: str) -> str:
    """Make a text show as written, whatever signs it holds; control characters become spaces."""
    text = one_line(text)
    return "".join(
        f"{{{sign}}}" if sign in MELTING and sign == after else ESCAPES.get(sign, sign)
        for sign, after in zip(text, f"{text[1:]} ", strict=False)
    )


def check_columns(names: Sequence[str], tables: Sequence[Table]) -> None:
    """Refuse a choice of columns that none of the tables has.

    Raises:
        ConfigError: a name is neither a title nor a name in files of data; it names the nearest.
    """
    known = [*KEYS, *dict.fromkeys(title for table in tables for title in table.header())]
    for name in names:
        if name not in known and name not in KEYS.values():
            raise ConfigError(f"--columns {name}: no such column; {nearest(name, known)}")


def places(table: Table, names: Sequence[str]) -> list[int]:
    """Where the chosen columns of a table stand; the model's is always the first of them.

    ``names``: titles, or names in files of data; none for all. Those that it lacks are left out.
    """
    header = table.header()
    titles = dict.fromkeys(["Model", *(KEYS.get(name, name) for name in names)])
    return (
        [header.index(title) for title in titles if title in header]
        if names
        else [*range(len(header))]
    )


def latex(table: Table, columns: Sequence[str] = ()) -> str:
    """The table as a float with its notes; ``columns`` as of ``places``."""
    shown = places(table, columns)
    texts = [[line[at] for at in shown] for line in (table.header(), *table.texts())]
    for line, row in zip(texts[1:], table.rows, strict=True):
        line[0] += ",".join(row.marks)
    words = sum(at <= len(table.label_columns) for at in shown)
    size, widths, wrapped = _fit(texts, words)
    star = "*" if sum(widths) > COLUMN else ""
    cells, notes = table.escaped(escape, r"\textsuperscript{{{}}}")
    cells = [[line[at] for at in shown] for line in cells]
    best = _best(table) if table.metric in texts[0] else set()
    label = re.sub("[^a-zA-Z0-9]+", "-", f"{table.study.name}-{table.study.tier}")
    shape = "".join(
        f"p{{{width:.0f}pt}}" if at in wrapped else "l" if at < words else "r"
        for at, width in enumerate(width - 2 * SEPARATION[size] for width in widths)
    )
    titles = [
        _title(_parts(raw, size, text), "l" if at < words else "r")
        for at, (raw, text) in enumerate(zip(texts[0], cells[0], strict=True))
    ]
    lines = [
        rf"% {one_line(table.caption)}",
        rf"\begin{{table{star}}}",
        rf"  \centering\{size}\setlength{{\tabcolsep}}{{{SEPARATION[size]:.0f}pt}}",
        rf"  \caption{{{escape(table.caption)}}}",
        rf"  \label{{tab:lsa-{label}}}",
        rf"  \begin{{tabular}}{{{shape}}}",
        r"    \toprule",
        rf"    {' & '.join(titles)} \\",
        r"    \midrule",
    ]
    rules = _rules(table.rows)
    for row, line in zip(table.rows, cells[1:], strict=True):
        for at in wrapped:
            line[at] = rf"\raggedright\let\\\tabularnewline {line[at]}"
        if row.variant in best:
            at = texts[0].index(table.metric)
            mean, *rest = line[at].split(" ", 1)
            line[at] = " ".join([rf"\textbf{{{mean}}}", *rest])
        runs = one_line(" ".join(row.identities)) or "no runs"
        lines += [r"    \midrule"] * (row.variant in rules)
        lines += [f"    % {one_line(row.variant)}: {runs}", rf"    {' & '.join(line)} \\"]
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    under = _notes(table, [mark for mark, _ in notes], bold=bool(best))
    end = rf"\end{{table{star}}}"
    if _height(table) > TALLEST:
        # A float cannot go on in the next page; text can.
        lines += [end, r"\begingroup\raggedright\scriptsize"]
        lines += [rf"    \noindent Notes on Table~\ref{{tab:lsa-{label}}}.\par", *under]
        lines += [r"\endgroup"]
    else:
        lines += [r"  \par\smallskip", r"  \begin{minipage}{\linewidth}\raggedright\scriptsize"]
        lines += [*under, r"  \end{minipage}", end]
    return "\n".join(lines) + "\n"


def latex_pivot(table: Table, pivot: Pivot) -> str:
    """A grid by two factors, with a rule above each block of the other factors' values."""
    blocks = {
        name: [[value, *map(pivot.shown, cells)] for value, cells in lines.items()]
        for name, lines in pivot.blocks.items()
    }
    titles = [pivot.down, *pivot.columns]
    size, widths, _ = _fit([titles, *itertools.chain(*blocks.values())], 1)
    star = "*" if sum(widths) > COLUMN else ""
    label = re.sub("[^a-zA-Z0-9]+", "-", f"{table.study.name}-{table.study.tier}")
    number = len(pivot.columns)
    lines = [
        rf"\begin{{table{star}}}",
        rf"  \centering\{size}\setlength{{\tabcolsep}}{{{SEPARATION[size]:.0f}pt}}",
        rf"  \caption{{{escape(f'{table.caption}: {pivot.about}')}}}",
        rf"  \label{{tab:lsa-{label}-pivot}}",
        rf"  \begin{{tabular}}{{l{'r' * number}}}",
        r"    \toprule",
        rf"    & \multicolumn{{{number}}}{{c}}{{{escape(pivot.across)}}} \\",
        rf"    \cmidrule(l){{2-{number + 1}}}",
        rf"    {' & '.join(map(escape, titles))} \\",
    ]
    for name, cells in blocks.items():
        lines.append(r"    \midrule")
        if name:
            lines.append(rf"    \multicolumn{{{number + 1}}}{{l}}{{{escape(name)}}} \\")
        lines += [rf"    {' & '.join(map(escape, line))} \\" for line in cells]
    lines += [r"    \bottomrule", r"  \end{tabular}", rf"\end{{table{star}}}"]
    return "\n".join(lines) + "\n"


def _height(table: Table) -> float:
    """About how many points of a page the rows and the notes take."""
    return 10 * len(table.rows) + 8 * sum(1 + len(note.text) // 85 for note in table.notes)


def _fit(texts: list[list[str]], words: int) -> tuple[str, list[float], list[int]]:
    """A size of type, the widths of the columns at it, and which of them break their lines.

    ``words``: how many columns, from the first, hold words; they alone may break their lines.
    """
    for size, em in SIZES.items():
        # Titles are set in several lines.
        lines = [["\n".join(_parts(title, size)) for title in texts[0]], *texts[1:]]
        columns = list(zip(*lines, strict=True))
        widths, least = (
            [
                em * max(_ems(part) for cell in column for part in cell.split(end) or [""])
                + 2 * SEPARATION[size]
                for column in columns
            ]
            for end in ("\n", None)
        )
        wrapped = []
        # Large type is given up before lines are broken.
        for at in (
            sorted(range(words), key=lambda at: -widths[at]) if size != "footnotesize" else ()
        ):
            if (over := sum(widths) - PAGE) > 0 and widths[at] > least[at]:
                widths[at] = max(least[at], widths[at] - over)
                wrapped.append(at)
        if sum(widths) <= PAGE:
            break
    return size, widths, sorted(wrapped)


def _ems(text: str) -> float:
    """About how wide a text is as Computer Modern sets it, rather more than less."""
    return sum(next((ems for signs, ems in WIDTHS if sign in signs), 0.56) for sign in text)


def _parts(title: str, size: str, text: str | None = None) -> list[str]:
    """The lines of a column's title, or of its ``text`` in LaTeX: its unit under it, or each word.

    Each word in the smallest type, where the title is of plain words.
    """
    text = title if text is None else text
    if size == "tiny" and PLAIN.fullmatch(title):
        return text.split(" ")
    name, bracket, unit = text.partition(" (")
    return [name, f"({unit}"] if bracket else [text]


def _title(parts: Sequence[str], side: str) -> str:
    lines = r"\\".join(parts)
    return rf"\shortstack[{side}]{{{lines}}}" if len(parts) > 1 else lines


def _rules(rows: Sequence[Row]) -> set[str]:
    """The rows that a rule stands above: the first of each group of rows of one reference.

    None where groups are mixed with one another, or all hold one row.
    """
    references = [row.reference for row in rows]
    first = [
        row for row, before in zip(rows, ["", *references], strict=False) if row.reference != before
    ]
    whole = len(first) == len(set(references)) < len(rows)
    return {row.variant for row in first[1:]} if whole else set()


def _best(table: Table) -> set[str]:
    """The rows of the highest mean accuracy as shown, if two rows or more have one."""
    at = table.header().index(table.metric)
    means = {
        row.variant: float(line[at].split()[0].replace(",", ""))
        for row, line in zip(table.rows, table.texts(), strict=True)
        if row.done and not row.alike.refused
    }
    return (
        {name for name, mean in means.items() if mean == max(means.values())}
        if len(means) > 1
        else set()
    )


def _notes(table: Table, marks: list[str], *, bold: bool) -> list[str]:
    """The notes: those on single rows run on in one paragraph, each other one has its own."""
    texts = [f"{mark}{breaking(note.text)}" for mark, note in zip(marks, table.notes, strict=True)]
    of_rows = " ".join(text for text, mark in zip(texts, marks, strict=True) if mark)
    rest = [text for text, mark in zip(texts, marks, strict=True) if not mark]
    rest += [escape(BEST)] * bold
    return [f"    {text}\\par" for text in (of_rows, *rest) if text]


def breaking(text: str) -> str:
    """A text as ``escape`` writes it, whose long words may go on in the next line."""
    return " ".join(
        r"\allowbreak{}".join(map(escape, re.findall(r".{1,12}?[._/=:,;-]|.{1,12}", word)))
        if len(word) > 20 else escape(word)
        for word in one_line(text).split(" ")
    )  # fmt: skip


def one_line(text: str) -> str:
    """Control characters and ends of lines become spaces."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
