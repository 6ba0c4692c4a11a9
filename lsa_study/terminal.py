"""Standard output: guarded against closed pipes, odd encodings and what files would do to it."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typing_extensions import Buffer, override

from lsa_study.errors import EnvironmentLacks
from lsa_study.files import CONTROL

ASCII = {
    "−": "-", "–": "-", "—": "-", "±": "+-", "×": "x", "†": "+", "‡": "++", "…": "...", "’": "'", "≤": "<=",
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

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(file=getattr(stream, "plain", stream), soft_wrap=True)

    @override
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_printable(segment.text))


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
