"""Rows by values: the product of a ``grid``, or points drawn at random by a ``sample``.

An experiment file with ``grid`` or ``sample`` is read as if these rows stood in its ``variants``,
after those that do. Each is a point over the study's ``set``, is named after its values, such as
``size-3_norm-softmax``, and its settings are factors by themselves.

A grid's baseline is the row that ``baseline`` names, else the first value of every factor. A row is
compared with the one that has the baseline's value of one factor, the first in which it has
another, and else the same values. So rows that are compared differ in one factor; what several
factors do together is for the main effects and interactions. Where ``baseline`` is a written row,
the grid's own is compared with nothing.

Points that are drawn differ in everything at once: all are compared with ``baseline``, else with
the first of them, and what is drawn counts as one factor, ``sample``.

``--grid`` puts its values in the place of the file's for the same setting. Others join the file's
grid, or its ``set`` where it has no rows. Where it has written rows or a sample, every row is
repeated at each point, such as ``net7_size-3``, and those at the first values are compared as the
file says. The file's own claims are not about such rows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lsa_study.config import yaml
from lsa_study.config.experiment import why_no_factor
from lsa_study.config.points import Range, Value, digest, drawn, label_of, name_of

MANY, MOST = 200, 10_000
"""More rows have to be allowed; more than the second are refused."""
ROW = "row"
"""The factor of which written row is repeated; of a grid in a file there is one, without name."""
COUNTS = {"n": 1, "seed": 0}
"""What a sample has beside settings, and the least that each can be."""
At = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A product of values and where in it each row stands."""

    factors: dict[str, tuple[str, ...]]
    """The values of each setting as readers see them; before them ``row``, the written rows."""
    rows: dict[str, At]
    """Which value of each factor a row has, by its name."""
    base: At
    """The values that others are compared with."""


@dataclass(frozen=True)
class Expanded:
    """An experiment file with its grid and sample as written rows."""

    document: yaml.Document
    grid: Grid | None = None
    origin: dict[str, str] = field(default_factory=dict)
    """Of rows that ``--grid`` repeats: the row as written."""
    mistakes: tuple[str, ...] = ()


def expand(document: yaml.Document, asked: Sequence[str] = (), *, many: bool = False) -> Expanded:
    """Write out the rows of an experiment file's ``grid`` and ``sample``, and of ``--grid``.

    Args:
        document: the file; what is no mapping in it is left to its schema.
        asked: ``key=value,value`` of each ``--grid``.
        many: more than ``MANY`` rows are meant.
    """
    writer = _Writer(document, MOST if many else MANY)
    flags = writer.read(asked)
    written, sample = (document.data.get(key) or {} for key in ("grid", "sample"))
    if not (written or sample or asked) or not all(isinstance(d, dict) for d in (written, sample)):
        return Expanded(document, mistakes=tuple(writer.mistakes))
    if written and sample:
        place = document.where("sample")
        writer.mistakes.append(f"{place}: sample beside a grid; give one of them")
    repeats = bool(writer.variants or sample)
    own = written | {k: v for k, v in flags.items() if k in written or not repeats}
    if factors := writer.factors(own):
        writer.multiply(factors, {"": {}})
    if sample:
        writer.draw(sample)
    if factors := writer.factors({k: v for k, v in flags.items() if k not in own}):
        rows, writer.variants = writer.variants, {}
        good = {name: row for name, row in rows.items() if isinstance(row, dict)}
        good = {n: row for n, row in good.items() if isinstance(row.get("set", {}), dict)}
        writer.variants = {name: row for name, row in rows.items() if name not in good}
        writer.multiply(factors, good)
    data = document.data | {"grid": written | flags} | writer.data
    if flags and "claims" in data:
        data["claims"] = []
    return Expanded(
        replace(document, data=data | {"variants": writer.variants}, lines=writer.lines),
        writer.grid, writer.origin, tuple(writer.mistakes),
    )  # fmt: skip


class _Writer:
    """Writes rows into ``variants``, and notes what is wrong."""

    def __init__(self, document: yaml.Document, most: int) -> None:
        self.document, self.most, self.where = document, most, document.where
        found = document.data.get("variants")
        self.variants: dict[str, Any] = dict(found) if isinstance(found, dict) else {}
        self.data: dict[str, Any] = {}
        """What takes the place of the file's."""
        self.lines = dict(document.lines)
        self.mistakes: list[str] = []
        self.grid: Grid | None = None
        self.origin: dict[str, str] = {}
        self.flags: dict[str, str] = {}

    def read(self, asked: Sequence[str]) -> dict[str, list[Any]]:
        """The values of each ``--grid``, by setting."""
        found: dict[str, list[Any]] = {}
        for one in asked:
            key, _, text = (part.strip() for part in one.partition("="))
            self.flags[key] = place = f"--grid {one}"
            values = yaml.parse(f"[{text}]", place) if key and text else None
            if isinstance(values, list):
                found[key] = values
            else:
                self.mistakes.append(f"{place}: no values; write --grid key=a,b,c")
        return found

    def factors(self, grid: Mapping[str, Any]) -> dict[str, list[Value]]:
        """The values of each setting of a grid, without those that can be none."""
        return {
            key: self.values("grid", key, values)
            for key, values in grid.items()
            if self.known("grid", key) and isinstance(values, list) and values
        }

    def place(self, *keys: str) -> str:
        """Where the key inside ``grid`` or ``sample`` is written, be it a ``--grid``."""
        return self.flags.get(keys[1]) or self.where(*keys)

    def known(self, group: str, key: str) -> bool:
        """Whether rows can differ in a setting."""
        wrong = why_no_factor(key)
        if key.startswith("model.op."):
            wrong = None  # an operator knows its own settings
        if key in ("seed", "tier", "data.root") or key.startswith("runtime."):
            wrong = "makes no other row; give another setting (seeds: by seeds or --seeds)"
        if wrong:
            self.mistakes.append(f"{self.place(group, key)}: {key!r} {wrong}")
        return not wrong

    def values(self, group: str, key: str, given: list[Any]) -> list[Value]:
        """Values to choose from, each once."""
        texts = [json.dumps(value, sort_keys=True) for value in given]
        place, again = self.place(group, key), {text for text in texts if texts.count(text) > 1}
        self.mistakes += [f"{place}: {key}: {text} is given twice; give it once" for text in again]
        if len(given) < 2:
            self.mistakes.append(f"{place}: {key}: one value is no choice; give more, or use set")
        found = [
            Value.of(value, self.flags.get(key) or self.lines.get((group, key, str(at)), place))
            for at, value in enumerate(given)
            if texts.index(texts[at]) == at
        ]
        called = [one.name for one in found]
        return [
            one._replace(name=f"{one.name}+{digest(one.value)}")
            if called.count(one.name) > 1 else one
            for one in found
        ]  # fmt: skip

    def few(self, number: int, place: str) -> bool:
        """Whether so many rows are allowed."""
        if number > self.most:
            allow = f", or allow up to {MOST:,} with --yes" * (number <= MOST)
            self.mistakes.append(f"{place}: {number:,} rows; give fewer values{allow}")
        return number <= self.most

    def points(
        self, factors: Mapping[str, Sequence[Value]], times: int
    ) -> dict[At, dict[str, Value]]:
        """All points of a product; those one value away from the first where they are too many."""
        counts = [range(len(values)) for values in factors.values()]
        number, first = times * math.prod(map(len, counts)), (0,) * len(counts)
        if self.few(number, self.place("grid", next(iter(factors)))):
            places = [*itertools.product(*counts)]
        else:
            places = [_moved(first, i, at) for i, of in enumerate(counts) for at in of[:MANY]]
        return {
            at: {key: values[i] for (key, values), i in zip(factors.items(), at, strict=True)}
            for at in places
        }

    def multiply(
        self, factors: Mapping[str, Sequence[Value]], rows: Mapping[str, dict[str, Any]]
    ) -> None:
        """Write each row at every point of a product; ``""`` is the study's ``set``."""
        points, placed = self.points(factors, len(rows)), dict[str, At]()
        named = {at: name_of(point) for at, point in points.items()}
        given = str(self.data.get("baseline", self.document.data.get("baseline")) or "")
        base = next((at for at, name in named.items() if name == given), (0,) * len(factors))
        lines = {keys: line for keys, line in self.lines.items() if keys[:1] == ("variants",)}
        for order, (name, row) in enumerate(rows.items()):
            kept = {
                key: value for key, value in row.get("set", {}).items()
                if not any(key == one or key.startswith(f"{one}.") for one in factors)
            }  # fmt: skip
            for at, point in points.items():
                new, label = _joined(name, named[at]), str(row.get("label") or name)
                self.lines |= {
                    ("variants", new, *k[2:]): n for k, n in lines.items() if k[1:2] == (name,)
                }
                against = row.get("against") and _joined(row["against"], named[base])
                if (other := next((i for i, v in enumerate(at) if v != base[i]), None)) is not None:
                    near = _moved(at, other, base[other])
                    against = _joined(name, named.get(near, named[base]))
                label = ", ".join(filter(None, (label, label_of(point))))
                self.write(new, point, row | {"set": kept, "label": label, "against": against})
                self.origin[new], placed[new] = name or new, (order, *at)
        if given in rows:
            self.data["baseline"] = _joined(given, named[base])
        elif "" in rows and given != named[base]:
            self.variants[named[base]]["against"] = named[base]
        self.declare(factors)
        shown = {ROW: tuple(str(row.get("label", name)) for name, row in rows.items())}
        shown |= {key: tuple(one.label for one in values) for key, values in factors.items()}
        self.grid = Grid(shown, placed, ([*rows].index(given) if given in rows else 0, *base))

    def write(self, name: str, point: Mapping[str, Value], row: dict[str, Any]) -> None:
        """Add a row with values of its own; their places are those where they are written."""
        if name in self.variants:
            place = self.where("variants", name)
            self.mistakes.append(f"{place}: {name} is a row of the grid too; rename this one")
        # A whole group comes before what is set inside it.
        ordered = dict(sorted(point.items(), key=lambda pair: pair[0].count(".")))
        settings = row.get("set", {}) | {key: one.value for key, one in ordered.items()}
        self.variants[name] = row | {"set": settings}
        own = {("set", key): one.place for key, one in ordered.items()}
        self.lines |= {("variants", name, *rest): place for rest, place in own.items()}
        self.lines.setdefault(("variants", name), next(iter(own.values())))

    def declare(self, settings: Iterable[str], group: str = "") -> None:
        """Count what rows differ in as factors; as one, if it has a name."""
        known = self.data.get("factor", self.document.data.get("factor") or [])
        if isinstance(known, list):
            wanted = [group] if group else [*settings]
            self.data["factor"] = [*known, *(one for one in wanted if one not in known)]
        written = self.document.data.get("groups") or {}
        if group and isinstance(written, dict):
            if group in written:
                place = self.where("groups", group)
                self.mistakes.append(f"{place}: {group} is what is drawn; rename this group")
            self.data["groups"] = written | {group: [*settings]}

    def choices(self, sample: dict[str, Any]) -> dict[str, Sequence[Value] | Range]:
        """What each setting of a sample is drawn from, without those that can be none."""
        found: dict[str, Sequence[Value] | Range] = {}
        for key, given in sample.items():
            if key in COUNTS or not self.known("sample", key):
                continue
            if isinstance(given, list) and given:
                found[key] = self.values("sample", key, given)
            elif wrong := Range.mistakes(given):
                hint = "give a list of values, or {low: 1.0e-4, high: 1.0e-2, log: true}"
                place = self.where("sample", key)
                self.mistakes += [f"{place}: {key}: {one}; {hint}" for one in wrong]
            else:
                found[key] = Range(**given)
        if not found:
            self.mistakes.append(f"{self.where('sample')}: nothing to draw; give settings")
        return found

    def draw(self, sample: dict[str, Any]) -> None:
        """Write the rows of a sample."""
        for name, least in COUNTS.items():
            value = sample.get(name, 0)
            if type(value) is not int or value < least:
                given = f"= {value!r} will not do" if name in sample else "is missing"
                place = self.where("sample", name)
                self.mistakes.append(f"{place}: sample.{name} {given}; give a number from {least}")
        choices = self.choices(sample)
        place, n = self.where("sample", "n"), sample.get("n")
        if self.mistakes or type(n) is not int or not self.few(n, place):
            n = 1  # finds what else is wrong
        places = {key: self.lines.get(("sample", key), place) for key in choices}
        seed = sample.get("seed", 0)
        points = drawn(choices, n, seed if type(seed) is int else 0, places)
        if choices and len(points) < n:
            wrong = f"n = {n}: only {len(points)} different rows were found"
            self.mistakes.append(f"{place}: {wrong}; give n up to that, or more values")
        for name, point in points.items():
            self.write(name, point, {"label": label_of(point)})
        if "baseline" not in self.document.data:
            self.data["baseline"] = next(iter(points), "")
        self.declare(choices, "sample")


def _joined(row: str, point: str) -> str:
    return f"{row}_{point}" if row else point


def _moved(at: At, place: int, value: int) -> At:
    return (*at[:place], value, *at[place + 1 :])
