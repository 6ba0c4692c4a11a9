"""Rows by values: the product of a ``grid``, or points drawn at random by a ``sample``.

An experiment file with ``grid`` or ``sample`` is read as if these rows stood in its ``variants``,
after those that do. Each is a point over the study's ``set``, is named after its values, such as
``size-3_norm-softmax``, and its settings are factors by themselves.

A grid's baseline is ``baseline`` where that names values or a row of it, else the first value of
every factor. A row is compared with the one that has the baseline's value of one factor, the first
in which it has another, and else the same values. So rows that are compared differ in one factor;
what several factors do together is for the main effects and interactions. The grid's baseline
beside a written ``baseline`` is a reference of its own.

Points that are drawn differ in everything at once: all are compared with ``baseline``, else with
the first of them, and what is drawn counts as one factor, ``sample``.

``--grid`` puts its values in the place of the file's for the same setting. Others join the file's
grid, or its ``set`` where it has no rows. Where it has written rows or a sample, every row is
repeated at each point, such as ``net7_size-3``, and those at the first values are compared as the
file says.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lsa_study.config import yaml
from lsa_study.config.experiment import why_no_factor
from lsa_study.config.names import nearest
from lsa_study.config.points import Range, Value, digest, drawn, label_of, name_of
from lsa_study.errors import ConfigError

MANY, MOST = 200, 10_000
"""More rows have to be allowed; more than the second are refused."""
ROW = "row"
"""The factor of a grid that repeats written rows."""
COUNTS = {"n": 1, "seed": 0}
"""What a sample has beside settings, and the least that each can be."""
At = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A product of values and where in it each row stands."""

    factors: dict[str, tuple[str, ...]]
    """The values of each setting as readers see them; ``row``: written rows that are repeated."""
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

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Name the mistakes of the grid before those that are found inside.

        Raises:
            ConfigError: all of them.
        """
        try:
            yield
        except ConfigError as error:
            if self.mistakes:
                raise ConfigError(*self.mistakes, *error.mistakes) from None
            raise
        if self.mistakes:
            raise ConfigError(*self.mistakes)


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
        writer.product(factors)
    if sample:
        writer.draw(sample)
    if factors := writer.factors({k: v for k, v in flags.items() if k not in own}):
        writer.repeat(factors)
    data = document.data | {"grid": written | flags} | writer.data
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
        self, factors: Mapping[str, Sequence[Value]], times: int = 1
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

    def product(self, factors: Mapping[str, Sequence[Value]]) -> None:
        """Write a row for every point of the grid."""
        points = self.points(factors)
        named = {at: name_of(point) for at, point in points.items()}
        base, own = self.base(factors, named)
        for at, point in points.items():
            other = next((i for i, here in enumerate(at) if here != base[i]), None)
            against = None if own else named[at]
            if other is not None:
                against = named.get(_moved(at, other, base[other]))
            self.write(named[at], point, {"label": label_of(point), "against": against})
        if own:
            self.data["baseline"] = named[base]
        self.declare(factors)
        self.grid = Grid(_labels(factors), {named[at]: at for at in points}, base)

    def base(
        self, factors: Mapping[str, Sequence[Value]], named: Mapping[At, str]
    ) -> tuple[At, bool]:
        """Where in a grid its baseline stands, and whether it is the study's."""
        given, first = self.document.data.get("baseline", {}), (0,) * len(factors)
        if not isinstance(given, dict):
            at = next((at for at, name in named.items() if name == given), None)
            return (first, False) if at is None else (at, True)
        for key, value in given.items():
            known = [one.value for one in factors.get(key, ())]
            if value not in known:
                hint = f"known: {', '.join(map(str, known))}" if known else nearest(key, factors)
                place = self.where("baseline", key)
                self.mistakes.append(f"{place}: baseline {key}: {value!r} is not in grid; {hint}")
        at = tuple(
            next((i for i, one in enumerate(values) if one.value == given.get(key, ())), 0)
            for key, values in factors.items()
        )
        return (at if at in named else first), True

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
        if group:
            written = self.document.data.get("groups") or {}
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
        if not isinstance(given := self.document.data.get("baseline", {}), str):
            if given:
                place = self.where("baseline")
                self.mistakes.append(f"{place}: baseline by values is a grid's; give a row's name")
            self.data["baseline"] = next(iter(points), "")
        self.declare(choices, "sample")

    def repeat(self, factors: Mapping[str, Sequence[Value]]) -> None:
        """Write every row once for each point of ``--grid``."""
        rows, self.variants, placed = self.variants, {}, dict[str, At]()
        points = self.points(factors, len(rows))
        named = {at: name_of(point) for at, point in points.items()}
        first = next(iter(named))
        written: dict[str, dict[yaml.Keys, int | str]] = {name: {} for name in rows}
        for keys, line in self.lines.items():
            if keys[:1] == ("variants",) and keys[1:2] and keys[1] in written:
                written[keys[1]][keys[2:]] = line
        good = {
            name: row for name, row in rows.items()
            if isinstance(row, dict) and isinstance(row.get("set", {}), dict)
        }  # fmt: skip
        self.variants |= {name: row for name, row in rows.items() if name not in good}
        for order, (name, row) in enumerate(good.items()):
            kept = {
                key: value for key, value in row.get("set", {}).items()
                if not any(key == one or key.startswith(f"{one}.") for one in factors)
            }  # fmt: skip
            for at, point in points.items():
                new = f"{name}_{named[at]}"
                self.lines |= {("variants", new, *rest): at for rest, at in written[name].items()}
                against = f"{row['against']}_{named[first]}" if row.get("against") else None
                if (other := next((i for i, here in enumerate(at) if here), None)) is not None:
                    against = f"{name}_{named[_moved(at, other, 0)]}"
                label = f"{row.get('label', name)}, {label_of(point)}"
                self.write(new, point, row | {"set": kept, "label": label, "against": against})
                self.origin[new], placed[new] = name, (order, *at)
        baseline = self.data.get("baseline", self.document.data.get("baseline"))
        if isinstance(baseline, str) and baseline in rows:
            self.data["baseline"] = f"{baseline}_{named[first]}"
        self.declare(factors)
        shown = {ROW: tuple(str(row.get("label", name)) for name, row in good.items())}
        base = [*good].index(baseline) if baseline in good else 0
        self.grid = Grid(shown | _labels(factors), placed, (base, *first))


def _moved(at: At, place: int, value: int) -> At:
    return (*at[:place], value, *at[place + 1 :])


def _labels(factors: Mapping[str, Sequence[Value]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(one.label for one in values) for key, values in factors.items()}
