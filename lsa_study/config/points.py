"""Points in a product of settings: how rows are named after them, and how they are drawn."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LONGEST = 20
"""Longer values are cut in the names of rows."""
At = tuple[int, ...]


class Value(NamedTuple):
    """One value of a factor: in the names of rows, for readers, and where it is written."""

    name: str
    label: str
    value: Any
    place: int | str

    @classmethod
    def of(cls, value: Any, place: int | str) -> Value:
        """A value that is written at a place."""
        label = _label(value)
        name = re.sub("[^A-Za-z0-9_.+-]+", "-", label.replace(" + ", "+")).strip("-") or "none"
        name = f"-{name}" if isinstance(value, int | float) and value < 0 else name
        if len(name) > LONGEST:
            name = f"{name[: LONGEST - 7]}+{digest(value)}"
        return cls(name, label, value, place)


def titles(settings: Iterable[str]) -> dict[str, str]:
    """The last part of each setting's path; more parts where two would be called the same."""
    paths = {one: one.split(".") for one in settings}
    found = {}
    for one, parts in paths.items():
        for number in range(1, len(parts) + 1):
            found[one] = ".".join(parts[-number:])
            if sum(other[-number:] == parts[-number:] for other in paths.values()) == 1:
                break
    return found


def name_of(point: Mapping[str, Value]) -> str:
    """The name of the row at a point, such as ``size-3_norm-softmax``."""
    called = titles(point)
    return "_".join(f"{called[key]}-{one.name}" for key, one in point.items())


def label_of(point: Mapping[str, Value]) -> str:
    """What readers see of it, such as ``size 3, norm softmax``."""
    called = titles(point)
    return ", ".join(f"{called[key]} {one.label}" for key, one in point.items())


@dataclass(frozen=True)
class Range:
    """Numbers between two, drawn evenly, or so that their logarithms are."""

    low: float
    high: float
    log: bool = False

    @staticmethod
    def mistakes(given: Any) -> list[str]:
        """What is wrong with a range as written."""
        if not isinstance(given, dict):
            return [f"{given!r} is nothing to draw from"]
        low, high, log = given.get("low"), given.get("high"), given.get("log", False)
        wrong = [f"{key} is not known" for key in given if key not in ("low", "high", "log")]
        wrong += [
            f"{name} = {end!r} is not a number"
            for name, end in (("low", low), ("high", high))
            if type(end) not in (int, float) or not math.isfinite(end or 0)
        ]
        wrong += [f"log = {log!r} is not true or false"] * (type(log) is not bool)
        if not wrong and low is not None and high is not None:
            wrong += [f"low {low} is not below high {high}"] * (not low < high)
            wrong += [f"low {low} has no logarithm"] * (log and low <= 0)
        return wrong

    def draw(self, chance: random.Random, place: int | str) -> Value:
        """A number; whole where both ends are, else of four digits."""
        low, high = self.low, self.high
        whole, part = isinstance(low, int) and isinstance(high, int), chance.random()
        if whole:  # each number has its part of the line
            low, high = low - 0.5, high + 0.5
        value = low * (high / low) ** part if self.log else low + (high - low) * part
        value = round(value) if whole else float(f"{value:.4g}")
        return Value.of(min(max(value, self.low), self.high), place)


def drawn(
    choices: Mapping[str, Sequence[Value] | Range],
    number: int,
    seed: int,
    places: Mapping[str, Any],
) -> dict[str, dict[str, Value]]:
    """Up to so many different points, by their names; the first of them for any larger number.

    ``places``: where the choices are written.
    """
    chance, points = random.Random(seed), dict[str, dict[str, Value]]()
    for _ in range(100 * number if choices else 0):
        point = {
            key: one.draw(chance, places[key]) if isinstance(one, Range)
            else one[int(chance.random() * len(one))]
            for key, one in choices.items()
        }  # fmt: skip
        points.setdefault(name_of(point), point)
        if len(points) == number:
            break
    return points


def _label(value: Any) -> str:
    """A value as readers see it."""
    if isinstance(value, dict):
        return str(value.get("kind") or digest(value))
    if isinstance(value, list):
        return " + ".join(map(_label, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


def digest(value: Any) -> str:
    """Six digits for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
