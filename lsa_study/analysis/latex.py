r"""Write a table as LaTeX: booktabs only, every text escaped, the runs behind a row as comments.

Needs ``\usepackage{booktabs}``. Tables with further label columns want the width of a page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lsa_study.analysis.table import Table

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
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "–": "--",
    "—": "---",
    "’": "'",
    "⁹": r"\textsuperscript{9}",
    "³": r"\textsuperscript{3}",
    "⁰": r"\textsuperscript{0}",
}
MELTING = "-,'"
"""Two of these in a row would melt into another sign."""


def escape(text: str) -> str:
    """Make a text show as written, whatever signs it holds; control characters become spaces."""
    text = one_line(text)
    return "".join(
        f"{{{sign}}}" if sign in MELTING and sign == after else ESCAPES.get(sign, sign)
        for sign, after in zip(text, f"{text[1:]} ", strict=False)
    )


def latex(table: Table) -> str:
    """The table as a ``table`` environment with its notes."""
    cells, notes = table.escaped(escape, r"\textsuperscript{{{}}}")
    header, *body = (" & ".join(line) + r" \\" for line in cells)
    texts = 1 + len(table.label_columns)
    shape = "l" * texts + "r" * (len(cells[0]) - texts)
    label = re.sub("[^a-zA-Z0-9]+", "-", f"{table.study.name}-{table.study.tier}")
    lines = [
        rf"% {one_line(table.caption)}",
        r"\begin{table}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"  \caption{{{escape(table.caption)}}}",
        rf"  \label{{tab:lsa-{label}}}",
        # A table wider than the text stands out on both sides alike.
        r"  \makebox[\linewidth]{%",
        rf"  \begin{{tabular}}{{{shape}}}",
        r"    \toprule",
        f"    {header}",
        r"    \midrule",
    ]
    for row, line in zip(table.rows, body, strict=True):
        runs = one_line(" ".join(row.identities)) or "no runs"
        lines += [f"    % {one_line(row.variant)}: {runs}", f"    {line}"]
    lines += [r"    \bottomrule", r"  \end{tabular}}", r"  \par\smallskip"]
    lines += [r"  \begin{minipage}{\linewidth}\footnotesize"]
    lines += [f"    {mark}{text}\\par" for mark, text in notes]
    lines += [r"  \end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """Control characters and ends of lines become spaces."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
