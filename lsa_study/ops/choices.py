"""Which way computes an operator fastest on a device, as ``lsa bench --choose`` measured it there.

What was measured is a JSON file in the cache of the kernels, one for each device, torch, Triton and
state of the sources that compute; a table of anything else is not read. It never decides what an
operator computes, only how. ``auto`` follows it on the devices of ``FOLLOWED``, for the cases that
were measured alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_kernels.build import cache_folder, constant_in_graphs
from lsa_kernels.operators import wants_gradients
from lsa_study.files import read_whole
from lsa_study.machine import cpu_name
from lsa_study.ops.checks import Size, sides

FOLLOWED = ("cuda",)
"""Kinds of devices where ``auto`` follows a table; a CPU's choices are measured once for all."""
WAYS = {
    "neighboring": ("fused", "flex", "reference"),
    "window": ("fused", "sdpa", "reference"),
    "filters": ("fused", "reference"),
}
"""The ways that compute each operator; the first that is not slower than the others is chosen."""
SMALLEST, STEP = 2, 4
"""Batches up to 2, 8, 32, 128, ... images are alike."""
FORMAT = 1


class Case(NamedTuple):
    """What a choice is made for."""

    form: str
    size: tuple[int, int]
    """Rows and columns of the area."""
    options: tuple[str, ...]
    """Norm and border of Eq. 4; none of filters."""
    terms: tuple[str, ...]
    """Of Eq. 4, or the ghost matrices."""
    heads: int
    map_size: tuple[int, int]
    depth: int
    """Channels of a head."""
    batch: int
    """The largest that is alike."""
    dtype: torch.dtype
    learns: bool
    """Whether gradients are wanted."""

    def __str__(self) -> str:
        """The same for a reader, and in the file."""
        parts = [f"{self.form} {self.size[0]} x {self.size[1]}", *self.options]
        parts += ["+".join(self.terms)] if self.terms else []
        height, width = self.map_size
        return ", ".join(
            (
                *parts, f"map {height} x {width}", f"{self.heads} heads of {self.depth}",
                f"batch {self.batch}", str(self.dtype).removeprefix("torch."),
                "training" if self.learns else "inference",
            )
        )  # fmt: skip


def eq4_case(x: Eq4Inputs, norm: str, size: Size, border: str) -> Case:
    """The case of Eq. 4 with these inputs.

    Args:
        border: zero or mask of a neighborhood; of a window, shifted or whole.
    """
    form = "neighboring" if border in ("zero", "mask") else "window"
    there = (x.use_qk, *(table is not None for table in x.tables))
    terms = tuple(n for n, t in zip(("qk", "q_rk", "rq_k", "bias"), there, strict=True) if t)
    batch, heads, height, width, depth = map(int, x.v.shape)
    return Case(
        form, sides(size), (norm, border), terms, heads, (height, width), depth, alike(batch),
        x.v.dtype, wants_gradients(x),
    )  # fmt: skip


def filter_case(values: Any, filters: Any, mul: Any, add: Any, size: int) -> Case:
    """The case of filters with these inputs."""
    batch, height, width, channels = map(int, values.shape)
    heads = int(filters.shape[3])
    terms = tuple(n for n, t in (("mul", mul), ("add", add)) if t is not None)
    return Case(
        "filters", sides(size), (), terms, heads, (height, width), channels // max(heads, 1),
        alike(batch), values.dtype, wants_gradients((values, filters, mul, add)),
    )  # fmt: skip


def alike(batch: int) -> int:
    """The largest batch that this one's choice is measured with."""
    bound = SMALLEST
    while bound < batch:
        bound *= STEP
    return bound


@dataclass(frozen=True)
class Table:
    """What was measured on this device."""

    path: Path
    made: str
    """When, in UTC as ISO 8601 writes it."""
    digest: str
    """Of the file, 10 hex digits: two tables are equal if it is."""
    ways: dict[str, str]
    """The fastest right way of every case."""
    tiles: dict[str, int]
    """The fastest tiles of the kernels; see ``lsa_kernels.gpu``."""


def made_for(device: torch.device) -> dict[str, str]:
    """What a table must have been made with to be read on this device."""
    name = cpu_name()
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return {"device": name, "torch": torch.__version__, "triton": triton, "code": _sources()}


@functools.cache
def _sources() -> str:
    """A digest of the kernels and the operators."""
    digest = hashlib.sha256()
    for folder in (Path(lsa_kernels.__file__).parent, Path(__file__).parent):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def path_of(facts: Mapping[str, str]) -> Path:
    """Where the table for these facts is.

    Raises:
        BuildError: there is no folder for a cache.
    """
    key = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"choices-{key}.json"


def read(path: Path, facts: Mapping[str, str]) -> Table | None:
    """The table in a file; None where there is no file.

    Raises:
        ValueError: it is damaged or was made elsewhere; says what.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    if content is None:
        return None
    try:
        found = json.loads(content)
        if found["format"] != FORMAT or not isinstance(found["made"], str):
            raise ValueError("no table of this version")
        made_for = found["made_for"]
        ways = {case: one["way"] for case, one in found["cases"].items()}
        wrong = [f"{c}: {way!r:.40}" for c, way in ways.items() if way not in _ways(c)]
        tiles = found["tiles"]
        wrong += [f"{k}: {n!r:.40}" for k, n in tiles.items() if type(n) is not int or n < 0]
        if wrong:
            raise ValueError(f"no way is known as {wrong[0]}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    if made_for != facts:
        other = ", ".join(k for k in facts if not _same(made_for, facts, k))
        raise ValueError(f"{path} was made with another {other or 'machine'}")
    digest = hashlib.sha256(content).hexdigest()[:10]
    return Table(path, found["made"], digest, ways, dict(tiles))


def _ways(case: str) -> tuple[str, ...]:
    return WAYS.get(case.partition(" ")[0], ())


def _same(made_for: Any, facts: Mapping[str, str], name: str) -> bool:
    return isinstance(made_for, dict) and made_for.get(name) == facts[name]


def _device(kind: str, index: int | None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


def table_of(device: torch.device) -> tuple[Table | None, str | None]:
    """The table of a device, and why there is none; looked up once in a process."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return None, "torch sees no GPU"
    index = device.index
    if index is None and device.type == "cuda":
        index = torch.cuda.current_device()
    return _table_of(device.type, index or 0)


@functools.cache
def _table_of(kind: str, index: int) -> tuple[Table | None, str | None]:
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    try:
        facts = made_for(device)
        table = read(path_of(facts), facts)
    except (ValueError, RuntimeError) as error:  # torch's, of a GPU that it cannot use, too
        reason = f"{error}; nothing is taken from it, make it anew: lsa bench --choose"
        warnings.warn(f"lsa: table of choices: {reason}", stacklevel=2)
        return None, reason
    if table is None:
        return None, "not measured here: lsa bench --choose"
    if kind == "cuda" and table.tiles:
        lsa_kernels.gpu.prefer_tiles(table.tiles)
    return table, None


def forget() -> None:
    """Look tables up anew, as after one was made."""
    _table_of.cache_clear()


_asked: dict[Case, None] | None = None


@contextlib.contextmanager
def listening() -> Iterator[dict[Case, None]]:
    """Collect the cases that ``auto`` is asked for in the block, in order."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before


@constant_in_graphs
def wanted(kind: str, index: int | None) -> bool:
    """Whether ``auto`` has to say which case it is asked for: there is a table, or one is made."""
    if _asked is not None:
        return True
    return kind in FOLLOWED and table_of(_device(kind, index))[0] is not None


def way_of(case: Case, device: torch.device) -> str | None:
    """The way that was measured as the fastest one; None where this case was not."""
    if _asked is not None:
        _asked.setdefault(case)
        return None
    return _looked_up(str(case), device.type, device.index)


@constant_in_graphs
def _looked_up(case: str, kind: str, index: int | None) -> str | None:
    table = table_of(_device(kind, index))[0]
    return None if table is None else table.ways.get(case)


def said(device: torch.device) -> str:
    """For people: the table of a device, or why there is none."""
    table, reason = table_of(device)
    if table is None:
        return reason or "none"
    count = {way: [*table.ways.values()].count(way) for way in sorted({*table.ways.values()})}
    chosen = ", ".join(f"{way} {number} x" for way, number in count.items()) or "nothing chosen"
    return f"table {table.digest} of {table.made}: {chosen}"
