"""Counts the size and the shape of the package: ``python tests/house.py [ROOT]``.

The rules, so that two counts can be compared:

- Lines are all lines of all ``.py`` files of ``lsa_study``, blank lines and comments included;
  those of ``kernels`` are counted apart.
- Public names are classes and functions defined at a module's top level whose name does not begin
  with an underscore. Constants are the public names assigned there (one for each target of a
  tuple); they are counted apart. What stands under ``if`` or ``try`` at the top is not counted.
- Private functions are functions at the top level and methods that begin with an underscore and
  are not dunder methods. One has a single call site if its name is referred to exactly once in its
  own file, as a name or as an attribute (called or handed on; its definition does not count).
- A file is long above 400 lines, wherever it lies: tests, benchmarks, kernels and notebooks too.
- A function of ``lsa_study`` is long above 60, from ``def`` to its last line; functions in
  functions count by themselves too, and within the outer one.
- An import circle is a set of modules that reach each other by imports of ``lsa_study``, imports
  inside functions and under ``TYPE_CHECKING`` included. ``from lsa_study.a import b`` leads to
  ``lsa_study.a.b`` where that is a module, else to ``lsa_study.a``; the packages above a module,
  which Python imports on the way, do not count.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("lsa_study", "kernels", "tests", "benchmarks", "notebooks")
"""Where all Python of a checkout lies."""
FILE_LINES = 400
FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class House:
    """What was counted; lists name what they count."""

    files: int = 0
    lines: int = 0
    kernel_lines: int = 0
    public: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    single: list[str] = field(default_factory=list)
    """The private functions with a single call site."""
    long_files: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    circles: list[list[str]] = field(default_factory=list)

    def as_text(self, *, names: bool = False) -> str:
        """The figures as lines; ``names`` also lists the single-call private functions."""
        circles = [" <-> ".join(circle) for circle in self.circles]
        rows: list[tuple[str, object, list[str]]] = [
            ("lines of lsa_study", f"{self.lines} in {self.files} files", []),
            ("lines of kernels (Python)", self.kernel_lines, []),
            ("public classes and functions", len(self.public), []),
            ("public constants", len(self.constants), []),
            ("private functions", len(self.private), []),
            ("  with a single call site", len(self.single), self.single if names else []),
            (f"files over {FILE_LINES} lines", len(self.long_files), self.long_files),
            (f"functions over {FUNCTION_LINES} lines", len(self.long_functions),
             self.long_functions),
            ("import circles", len(circles), circles),
        ]  # fmt: skip
        lines = []
        for title, figure, listed in rows:
            lines.append(f"{title:<30} {figure}")
            lines += [f"    {name}" for name in listed]
        return "\n".join(lines)


def count(root: Path) -> House:
    """Count the checkout at ``root``, the folder that holds ``lsa_study``."""
    house = House()
    imports: dict[str, set[str]] = {}
    modules: dict[str, Path] = {}
    for path in (p for folder in FOLDERS for p in sorted((root / folder).rglob("*.py"))):
        place = path.relative_to(root)
        length = len(path.read_text("utf-8").splitlines())
        if length > FILE_LINES:
            house.long_files.append(f"{place}: {length}")
        if place.parts[0] == "kernels":
            house.kernel_lines += length
        if place.parts[0] == "lsa_study":
            house.files += 1
            house.lines += length
            modules[_module(root, path)] = path
    for module, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"))
        name = str(path.relative_to(root))
        _count_names(house, tree, name)
        for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
            own = (function.end_lineno or function.lineno) - function.lineno + 1
            if own > FUNCTION_LINES:
                house.long_functions.append(f"{name}:{function.lineno} {function.name}: {own}")
        imports[module] = set(_imports(tree, module, path, modules)) - {module}
    house.circles = _circles(imports)
    return house


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _count_names(house: House, tree: ast.Module, name: str) -> None:
    references = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            house.public.append(f"{name}: {node.name}")
        house.constants += [f"{name}: {one}" for one in _assigned(node) if one[0] != "_"]
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, Function) or not node.name.startswith("_"):
                continue
            if node.name.endswith("__"):
                continue
            house.private.append(f"{name}: {node.name}")
            if references[node.name] == 1:
                house.single.append(f"{name}:{node.lineno} {node.name}")


def _assigned(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for one in getattr(target, "elts", [target]):
                if isinstance(one, ast.Name):
                    yield one.id


def _imports(tree: ast.Module, module: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in modules or base in modules:
                    yield inner if inner in modules else base


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    reached = {module: _reach(module, imports) for module in imports}
    circles: set[tuple[str, ...]] = set()
    for module, far in reached.items():
        if module in far:
            circles.add(tuple(sorted(other for other in far if module in reached[other])))
    return [list(circle) for circle in sorted(circles)]


def _reach(module: str, imports: dict[str, set[str]]) -> set[str]:
    far: set[str] = set()
    waiting = [*imports[module]]
    while waiting:
        one = waiting.pop()
        if one not in far:
            far.add(one)
            waiting += imports[one]
    return far


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("root", nargs="?", type=Path, default=here, help="a checkout; else this")
    parser.add_argument("--names", action="store_true", help="list single-call private functions")
    asked = parser.parse_args()
    sys.stdout.write(count(asked.root).as_text(names=asked.names) + "\n")


if __name__ == "__main__":
    main()
