"""What the tests here share: the command line in this process, and comparison with pinned answers.

The tests use the command line and committed files alone, so that they hold whatever the package
looks like inside. Where an answer is meant to change, write the pins anew and review the change:

    RENEW_PINS=1 python -m pytest -n 0 tests/pins
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OLD = HERE / "old_run"
"""A results folder with four small runs, as written before the records were rewritten."""

RENEW = bool(os.environ.get("RENEW_PINS"))
SHOWN = 25


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def lsa(*arguments: object, code: int = 0, **environment: str) -> Answer:
    """Run ``python -m lsa_study.cli`` in this process, in the repository and without LSA_DATA."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    known = {name: value for name, value in os.environ.items() if name != "LSA_DATA"}
    known |= {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", **environment}
    before = signal.getsignal(signal.SIGINT)
    ended: object = 0
    with (
        mock.patch.dict(os.environ, known, clear=True),
        mock.patch.object(sys, "argv", ["lsa", *map(str, arguments)]),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        warnings.catch_warnings(),
    ):
        # runpy warns where another test has imported the module.
        warnings.filterwarnings("ignore", "'lsa_study", RuntimeWarning)
        try:
            runpy.run_module("lsa_study.cli", run_name="__main__", alter_sys=True)
        except SystemExit as exit_:
            ended = exit_.code
        finally:
            signal.signal(signal.SIGINT, before)
    texts = [stream.buffer.getvalue().decode() for stream in streams]
    answer = Answer(ended if isinstance(ended, int) else int(ended is not None), *texts)
    assert answer.code == code, f"lsa {' '.join(map(str, arguments))}: {answer}"
    return answer


def check(name: str, key: str, found: Any) -> None:
    """Compare with what ``tests/pins/<name>.json`` holds under ``key``; name what moved."""
    pins = read(name)
    if RENEW:
        text = json.dumps(pins | {key: found}, indent=1, sort_keys=True, ensure_ascii=False)
        (HERE / f"{name}.json").write_text(text + "\n", "utf-8")
        return
    lines = differences(pins[key], found)
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    told = [f"{name}, {key}: {len(lines)} pins moved", *lines[:SHOWN], *more]
    assert not lines, "\n  ".join(told)


def read(name: str) -> dict[str, Any]:
    """All that ``tests/pins/<name>.json`` holds; nothing if there is no such file."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def rounded(value: Any) -> Any:
    """JSON data with floats of nine significant digits, which every processor agrees on."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def differences(pinned: Any, found: Any, place: str = "") -> list[str]:
    """A line for everything that is gone, new or another."""
    if isinstance(pinned, dict) and isinstance(found, dict):
        lines = []
        for key in dict.fromkeys([*pinned, *found]):
            inner = f"{place} / {key}" if place else key
            if key not in found:
                lines.append(f"gone: {inner} ({pinned[key]})")
            elif key not in pinned:
                lines.append(f"new: {inner} ({found[key]})")
            else:
                lines += differences(pinned[key], found[key], inner)
        return lines
    if isinstance(pinned, list) and isinstance(found, list):
        if len(pinned) == len(found):
            pairs = enumerate(zip(pinned, found, strict=True), start=1)
            return [line for at, (a, b) in pairs for line in differences(a, b, f"{place} / {at}")]
        lines = [f"gone: {place}: {one}" for one in pinned if one not in found]
        lines += [f"new: {place}: {one}" for one in found if one not in pinned]
        return lines or [f"moved: {place}: {len(pinned)} -> {len(found)} elements"]
    same = pinned == found and type(pinned) is type(found)
    return [] if same else [f"moved: {place}: {pinned} -> {found}"]


def shape(*values: Any, free: Collection[str] = ()) -> dict[str, str]:
    """The paths of all keys in JSON values with the types found there.

    Elements of lists are merged as ``path[]``. Keys of the mappings at the paths ``free`` are data,
    not names: they are merged as ``path.*``.
    """
    kinds: dict[str, set[str]] = {}
    for value in values:
        for path, kind in _leaves(value, "", free):
            kinds.setdefault(path, set()).add(kind)
    return {path: "|".join(sorted(kinds[path])) for path in sorted(kinds)}


def _leaves(value: Any, path: str, free: Collection[str]) -> Iterator[tuple[str, str]]:
    yield path, "null" if value is None else type(value).__name__
    if isinstance(value, dict):
        for key, inner in value.items():
            name = "*" if path in free else key
            yield from _leaves(inner, f"{path}.{name}" if path else name, free)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, f"{path}[]", free)


def copy_committed(results: Path, tier: str) -> None:
    """Put what a clone has of a tier, its tables left out, under a results folder."""
    (results / tier).mkdir(parents=True)
    if has_runs(tier):
        shutil.copy(ROOT / "results" / tier / "runs.parquet", results / tier)
        if (asked := ROOT / "results" / tier / "studies").exists():
            shutil.copytree(asked, results / tier / "studies")


def has_runs(tier: str) -> bool:
    """Whether runs of a tier are committed."""
    return (ROOT / "results" / tier / "runs.parquet").exists()


def differing_files(folder: Path, other: Path) -> list[str]:
    """The names of files that differ, or are in one of two folders alone."""
    names = {path.name for place in (folder, other) for path in place.iterdir()}
    return sorted(name for name in names if _content(folder / name) != _content(other / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
