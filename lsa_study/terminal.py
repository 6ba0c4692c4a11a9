"""Standard output: guarded against closed pipes, odd encodings and what files would do to it."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typing_extensions import Buffer, override

from lsa_study.errors import EnvironmentLacks
from lsa_study.files import CONTROL

WIDTH = 80
"""Columns that lines of text may take."""
ASCII = {
    "−": "-", "–": "-", "—": "-", "±": "+-", "×": "x", "†": "+", "…": "...", "’": "'", "≤": "<=",
    "‡": "++", "─": "-", "━": "=",
    "≥": ">=", "Δ": "d", "λ": "lambda", "γ": "gamma", "³": "^3", "⁶": "^6", "⁹": "^9", "⁰": "0",
}  # fmt: skip
"""How signs of tables are written where an encoding lacks them."""


class _Output(io.FileIO):
    """Bytes for a file descriptor; once it fails, what is written is lost."""

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed

    @override
    def write(self, content: Buffer) -> int:
        try:
            return os.write(self.fileno(), content)
        except OSError as error:
            needed, self.needed = self.needed, False
            if needed and isinstance(error, BrokenPipeError):
                sys.exit(0)  # as in ``lsa status | head``: its reader has seen enough
            if needed:
                message = f"standard output: cannot be written ({error.strerror})"
                raise EnvironmentLacks(message) from None
            return memoryview(content).nbytes


def _printable(text: str) -> str:
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class _Shown:
    """A text stream that shows control characters instead of sending them on."""

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain
        self.encoding, self.errors = plain.encoding, plain.errors
        self.flush, self.isatty, self.fileno = plain.flush, plain.isatty, plain.fileno

    def write(self, text: str) -> int:
        return self.plain.write(_printable(text))


class Screen(Console):
    """A console whose own styles are obeyed, unlike what control characters its texts hold."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(file=getattr(stream, "plain", stream), soft_wrap=True, quiet=quiet)

    @override
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_printable(segment.text))


STYLES = {
    "done": "green", "diverged": "yellow", "oom": "yellow", "stopped early": "yellow",
    "running": "cyan", "queued": "blue", "waiting": "", "stopped": "magenta", "failed": "red",
    "lost": "red",
}  # fmt: skip
"""The states of a run as they are counted and shown; the first four are results."""
NARROWEST = 8
"""So far a column of words is cut; where that is not enough, the last columns go."""
NUMBER = re.compile(r"[-+−–]?(\d[\de.,:+-]*([ %/].*)?)?")


def fitted(
    rows: Sequence[Sequence[str]], width: int | None, numbers: Collection[int] | None = None
) -> tuple[list[list[str]], list[str]]:
    """Cells padded to columns, numbers to the right; the first row is the header.

    Args:
        width: of all columns together, two signs between them; None: as wide as they are.
        numbers: the columns that hold numbers; None: those that look so.

    Returns:
        The rows, and the titles of the columns at the end that found no room.
    """
    columns = [[_printable(" ".join(cell.split())) for cell in column]
               for column in zip(*rows, strict=True)]  # fmt: skip
    right = [
        all(map(NUMBER.fullmatch, column[1:])) if numbers is None else at in numbers
        for at, column in enumerate(columns)
    ]
    widths = [max(map(cell_len, column)) for column in columns]
    # Numbers are never cut, their titles are.
    least = [
        max([4, *map(cell_len, column[1:])]) if end else NARROWEST
        for column, end in zip(columns, right, strict=True)
    ]
    gone: list[str] = []
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        wide = [(n, -at) for at, n in enumerate(widths) if n > least[at]]
        if wide:
            widths[-max(wide)[1]] -= 1
        elif len(widths) > 1:
            gone.insert(0, columns.pop()[0])
            widths.pop()
        else:
            break
    lines = [
        [_cell(*one) for one in zip(line, widths, right, strict=False)]
        for line in zip(*columns, strict=True)
    ]
    return lines, gone


def _cell(text: str, width: int, right: bool) -> str:
    if (room := width - cell_len(text)) < 0:
        return set_cell_size(text, width - 1) + "…"
    return " " * room + text if right else text + " " * room


def width_of(console: Console) -> int | None:
    """Of a terminal; a pipe has none."""
    return console.width if console.is_terminal else None


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its header first: Markdown in a pipe, aligned and coloured on a terminal."""
    screen = Screen()
    if not screen.is_terminal:
        signs = [[re.sub(r"([\\|])", r"\\\1", " ".join(c.split())) for c in row] for row in rows]
        signs.insert(1, ["---"] * len(rows[0]))
        sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in signs))
        return
    (header, *lines), gone = fitted(rows, screen.width)
    text = Text().append("  ".join(header).rstrip(), "bold")
    text.append(f"\n{'─' * cell_len('  '.join(header))}", "dim")
    for row, line in zip(rows[1:], lines, strict=True):
        text.append("\n")
        for at, cell in enumerate(line):
            text.append(cell.rstrip() if at == len(line) - 1 else cell, STYLES.get(row[at], ""))
            text.append("  " * (at < len(line) - 1))
    screen.print(text, no_wrap=True)
    if gone:
        screen.print(f"No room for {', '.join(gone)}: widen the terminal.", style="dim")


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(ASCII.get(sign, "?") for sign in lacking), error.end


codecs.register_error("lsa", _as_ascii)


def guard_output(*, needed: bool, help_only: bool = False) -> None:
    """Have a closed or full standard output end a command without a traceback, or not at all.

    Signs that the output's encoding lacks are replaced; control characters are shown as escapes.

    Args:
        needed: whether what is printed is what the command is for: then it ends with
            ``EnvironmentLacks``, or quietly where a reader has gone. Else it goes on.
        help_only: nothing is printed yet that comes from files, so control characters pass: those
            of typer's help.
    """
    # Where they were closed, the next file to be opened would take their place.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None:
            stream.flush()
            try:
                descriptor = stream.fileno()
            except OSError:  # not a file: whoever put it there sees to it
                continue
        raw = _Output(descriptor, needed=needed and name == "stdout")
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="lsa",
            line_buffering=name == "stderr" or raw.isatty(),
        )
        setattr(sys, name, text if help_only else _Shown(text))


def wrapped(text: str, indent: str = "", further: int | None = None) -> list[str]:
    """Lines of a terminal's usual width; those after the first start ``further`` to the right."""
    later = indent + "  " if further is None else " " * further
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
