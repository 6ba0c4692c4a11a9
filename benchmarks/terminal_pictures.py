"""Pictures of the terminal at 80 and 120 columns, as SVG, from the committed results.

Run: python benchmarks/terminal_pictures.py [FOLDER]     Writes into docs/pictures, else FOLDER.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from lsa_study.launch.board import Board
from lsa_study.record import Status

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (80, 120)
COMMANDS = {
    "runs": "runs --tier toy --where 'acc1 > 85' --sort -acc1 --columns name,outcome,acc1,norm",
    "runs-by": "runs --tier toy --by kind,norm --sort -acc1",
    "table": "table table1 --tier toy",
}
"""The name of a picture, and what is typed."""


def printed(command: str, width: int) -> str:
    """What a command prints on a terminal of this width."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    line = f"{sys.executable} -m lsa_study.cli {command}"
    with subprocess.Popen(line, shell=True, stdout=follower, env=environment, cwd=ROOT):
        os.close(follower)
        text = b""
        try:
            while part := os.read(leader, 1 << 16):
                text += part
        except OSError:  # how Linux says that a terminal has gone
            pass
    os.close(leader)
    return text.decode().replace("\r", "")


def live(width: int) -> Text:
    """The live view of `lsa run`, of invented runs."""
    now = time.monotonic()
    running = [
        ("net7_n_unfold-s0-1d00f1b2c3", Status(epoch=7, epochs=12, acc1=91.35, eta_seconds=31)),
        ("net6_n-s0-9ab2c3d4e5", Status(epoch=4, epochs=12, acc1=84.1, eta_seconds=52)),
    ]
    return Board(2, done=12, begun={name: now - 40 for name, _ in running}).shown(
        running, 34, width
    )


def main() -> None:
    """Take all pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        shown = {
            name: Text.from_ansi(printed(command, width)) for name, command in COMMANDS.items()
        }
        typed = {name: f"$ lsa {command}" for name, command in COMMANDS.items()}
        shown["live"], typed["live"] = live(width), "$ lsa run table3 --seeds 0-2 --jobs 2"
        for name, text in shown.items():
            console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
            console.print(typed[name], style="dim", highlight=False, markup=False)
            console.print(text)
            path = folder / f"terminal-{name}-{width}.svg"
            svg = console.export_svg(title="lsa", theme=DEFAULT_TERMINAL_THEME, unique_id=name)
            # A picture loads nothing from elsewhere: any font of equal widths will do.
            svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
            path.write_text(svg, "utf-8")
            print(path)


if __name__ == "__main__":
    main()
