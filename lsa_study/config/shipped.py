"""What comes with the package beside its code: experiment files and the article's numbers."""

from __future__ import annotations

from pathlib import Path

from lsa_study.errors import Refused
from lsa_study.files import read_whole, write_whole

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "share"
ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent
"""Where it lies: inside an installed package, else in the checkout."""
FILES = ("experiments/**/*.yaml", "experiments/**/*.json", "results/paper/*.csv",
         "results/benchmarks/*.json")  # fmt: skip
"""As pyproject.toml puts them into a wheel."""


def find(name: str) -> Path:
    """The file of this name under the working directory, else the one with the package."""
    here = Path(name)
    return here if here.exists() else ROOT / name


def copy_to(folder: Path) -> list[Path]:
    """Copy all of it to edit, and give what was written.

    Raises:
        Refused: files of other content are there already; nothing is written.
        EnvironmentLacks: the folder cannot be written.
    """
    sources = [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    wanted = {folder / path.relative_to(ROOT): path.read_bytes() for path in sources}
    found = {path: read_whole(path) for path in wanted}
    if changed := [path for path in wanted if found[path] not in (None, wanted[path])]:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise Refused(f"{changed[0]}{more}: changed since it was copied; give another folder")
    missing = [path for path in wanted if found[path] is None]
    for path in missing:
        write_whole(path, wanted[path], make_folder=True)
    return missing
