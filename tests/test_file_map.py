"""The file map of CONTRIBUTING.md names every file of the packages, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"lsa_study": "*.py", "kernels/lsa_kernels": "*.[pch]*", "benchmarks": "*.py"}
EMPTY = 200
"""Bytes of an ``__init__.py`` that says nothing worth a line."""


def mapped(text):
    """Path -> what the map says of it."""
    blocks = re.findall(r"^```tree\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found, folders = {}, []
    for line in "\n".join(blocks).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, purpose = line.strip().partition(" ")
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            path = "/".join(folders)
            assert path not in found, f"{path} stands twice"
            found[path] = purpose.strip()
    return found


def files(root):
    """The files that a map has to name."""
    return {
        path.relative_to(root).as_posix()
        for folder, pattern in MAPPED.items()
        for path in (root / folder).rglob(pattern)
        if "__pycache__" not in path.parts
        and not (path.name == "__init__.py" and path.stat().st_size < EMPTY)
    }


def test_the_map_is_the_tree():
    said = mapped((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert set(said) == files(ROOT)
    short = [path for path, purpose in said.items() if len(purpose.split()) < 3]
    assert not short, f"these lines say nothing: {short}"


def test_a_new_file_is_missed(tmp_path):
    for folder in MAPPED:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lsa_study/new.py").touch()
    assert files(tmp_path) == {"lsa_study/new.py"}


def test_a_line_that_stands_twice_is_refused():
    with pytest.raises(AssertionError, match=r"a/b\.py stands twice"):
        mapped("```tree\na/\n  b.py   one\n  b.py   two\n```\n")
