"""Conditions on runs, such as ``acc1 > 45 and norm == "softmax"``: read, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsa_study.config.names import nearest
from lsa_study.errors import ConfigError

Run = Mapping[str, Any]
Value = Callable[[Run], Any]
LONGEST = 1000
"""Signs of a condition; what is longer may be nested too deeply to read."""
CONSTANTS = {"true": True, "false": False, "null": None}
"""As YAML writes them; Python's own are constants too."""
EQUAL: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.eq, ast.IsNot: operator.ne,
}  # fmt: skip
ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def column(name: str, columns: Collection[str], asked: str) -> str:
    """The column of this name, or the one whose dotted name ends so: ``norm`` for model.op.norm.

    Raises:
        ConfigError: there is none, or several; ``asked`` is what the user wrote.
    """
    if name in columns:
        return name
    found = sorted(one for one in columns if one.endswith(f".{name}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{asked}: {name} may be {' or '.join(found)}; write one of them")
    last = {one.rpartition(".")[2]: one for one in sorted(columns)}
    hint = nearest(name, [*columns, *last])
    hint = hint if hint.startswith("did") else f"lsa runs --json lists all {len(columns)}"
    raise ConfigError(f"{asked}: {name[:80]} is no column; {hint}")


@dataclass
class Condition:
    """A condition on a run's columns; ``needed`` are those that it reads.

    Comparisons, ``in``, ``and``, ``or``, ``not``, brackets, sums and products of numbers; nothing
    else. A value that a run lacks fulfils no comparison but ``== null``.

    Raises:
        ConfigError: anything else, or a column that there is not.
    """

    text: str
    columns: Collection[str]
    needed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.asked = f"--where {self.text[:200]}"
        try:
            if len(self.text) > LONGEST:
                raise ConfigError(f"{self.asked}...: too long; give at most {LONGEST} signs")
            tree = ast.parse(self.text.strip(), mode="eval")
            self._holds = self._value(tree.body)
        except ConfigError:
            raise
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refused("cannot be read") from None

    def __call__(self, run: Run) -> bool:
        """Whether a run fulfils it."""
        try:
            return bool(self._holds(run))
        except (TypeError, OverflowError):
            raise self._refused("compares or adds numbers and text") from None

    def _refused(self, problem: str) -> ConfigError:
        example = """write it like 'acc1 > 45 and norm == "softmax"'"""
        return ConfigError(f"{self.asked}: {problem}; {example}")

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return lambda run: value
            case ast.List() | ast.Tuple():
                parts = [self._value(one) for one in node.elts]
                return lambda run: [part(run) for part in parts]
            case ast.BoolOp():
                parts, every = [self._value(one) for one in node.values], type(node.op) is ast.And
                return lambda run: (all if every else any)(part(run) for part in parts)
            case ast.UnaryOp(op=ast.Not()):
                inner = self._value(node.operand)
                return lambda run: not inner(run)
            case ast.UnaryOp(op=ast.USub()):
                inner = self._value(node.operand)
                return lambda run: None if (number := inner(run)) is None else -number
            case ast.BinOp() if type(node.op) in SUMS:
                sum_of, sides = (
                    SUMS[type(node.op)],
                    (self._value(node.left), self._value(node.right)),
                )
                return lambda run: _sum(sum_of, *(side(run) for side in sides))
            case ast.Compare():
                return self._comparison(node)
            case ast.Name() | ast.Attribute():
                return self._column(node)
        raise self._refused(f"{ast.unparse(node)[:60]} is not allowed")

    def _comparison(self, node: ast.Compare) -> Value:
        sides = [self._value(one) for one in (node.left, *node.comparators)]
        kinds = [type(one) for one in node.ops]

        def holds(run: Run) -> bool:
            values = [side(run) for side in sides]
            return all(
                EQUAL[kind](a, b)
                if kind in EQUAL
                else a is not None and b is not None and ORDER[kind](a, b)
                for kind, a, b in zip(kinds, values, values[1:], strict=False)
            )

        return holds

    def _column(self, node: ast.expr) -> Value:
        name = ast.unparse(node)
        if isinstance(node, ast.Name) and name in CONSTANTS:
            return lambda run: CONSTANTS[name]
        if not all(part.isidentifier() for part in name.split(".")):
            raise self._refused(f"{name[:60]} is not allowed")
        found = column(name, self.columns, self.asked)
        self.needed.add(found)
        return lambda run: run[found]


def _sum(sum_of: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    if a is None or b is None or (b == 0 and sum_of is operator.truediv):
        return None
    if isinstance(a, str | Sequence) or isinstance(b, str | Sequence):
        raise TypeError
    return sum_of(a, b)
