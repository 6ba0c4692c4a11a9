"""Gather the finished runs of a tier from its run folders and the committed ``runs.parquet``."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd

from lsa_study import rundir
from lsa_study.config.settings import SCHEMA_VERSION, flatten
from lsa_study.errors import ConfigError
from lsa_study.files import write_whole
from lsa_study.record import Count, Result
from lsa_study.rundir import RunDir


class RunRecord(Result):
    """One finished run: its result, and what else of its folder reports are made from."""

    identity: str
    variant: str
    seed: Count
    curve: str = "[]"
    """JSON text of the epochs' records."""
    correct_count: Count | None = None
    """How many test images ``correct`` has a bit for."""
    correct: bytes | None = None
    """Packed bits, one per test image: was it classified rightly; None if that is not known."""
    settings: Mapping[str, Any] = {}
    """By dotted name, such as ``model.op.norm``; lists as JSON text."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy of a run that is done, percent."""
        assert self.acc1 is not None
        return self.acc1


def _dtypes() -> dict[str, str]:
    numeric = {int: "Int64", float: "float64", bool: "boolean"}
    found = {}
    for name, column, _ in RunRecord.facts():
        hint = get_type_hints(RunRecord)[name]
        kinds = (numeric[kind] for kind in (hint, *get_args(hint)) if kind in numeric)
        found[column] = next(kinds, "object")
    # Neither has a column: one came later, the others have one each.
    del found["start"], found["settings"]
    return found


DTYPES = _dtypes()
"""The columns that every collection has; ``settings.*`` follow, as the runs have them."""
COLUMNS = tuple(DTYPES)
SETTINGS_DTYPES = {
    "boolean": "boolean",
    "integer": "Int64",
    "floating": "float64",
    "mixed-integer-float": "float64",
}
"""How a column of settings is kept, by what pandas finds in it; all others hold objects."""
ORDER = ["variant", "seed", "identity"]
NEEDED = (*ORDER, "outcome", "schema", "settings.tier")
"""Columns without which a collection says nothing; others that it lacks hold None."""


@dataclass(frozen=True)
class Collected:
    """The finished runs of a tier, and a message for each file that could not be read.

    ``runs`` has one row per run, indexed by identity: the result's facts, the settings as
    ``settings.model.op.norm`` and so on (lists as JSON text), ``correct`` (packed bits, one per
    test image; ``correct_count`` says how many) and ``curve`` (JSON text of the epochs' records).
    """

    runs: pd.DataFrame
    broken: tuple[str, ...] = ()

    def of(self, identities: Iterable[str]) -> dict[str, RunRecord]:
        """The runs with these identities that have ended, by identity."""
        every = self._every
        return {identity: every[identity] for identity in identities if identity in every}

    @cached_property
    def _every(self) -> dict[str, RunRecord]:
        names = [str(name) for name in self.runs if name not in COLUMNS]
        short = [name.removeprefix("settings.") for name in names]
        settings = _by_identity(self.runs, names)
        return {
            identity: RunRecord.model_validate(
                dict(zip(COLUMNS, values, strict=True))
                | {"settings": dict(zip(short, settings[identity], strict=True))}
            )
            for identity, values in _by_identity(self.runs, COLUMNS).items()
        }


def parquet_path(results: Path, tier: str) -> Path:
    """Where the collected runs of a tier are kept."""
    return results / tier / "runs.parquet"


def collect(results: Path, tier: str) -> Collected:
    """Read every finished run of a tier; run folders win over the committed ``runs.parquet``.

    Runs that have not ended are left out; files that cannot be read are named in ``broken``.
    """
    broken: list[str] = []
    return _with_folders(_stored(results, tier, broken), results, tier, broken)


def stored(results: Path, tier: str) -> Collected:
    """The runs of ``runs.parquet`` alone, as a fresh clone has them."""
    broken: list[str] = []
    return Collected(_stored(results, tier, broken).sort_values(ORDER), tuple(broken))


def refresh(results: Path, tier: str) -> Collected:
    """Collect, and bring ``runs.parquet`` up to date if anything changed."""
    broken: list[str] = []
    known = _stored(results, tier, broken)
    collected = _with_folders(known, results, tier, broken)
    if len(collected.runs) and not collected.runs.equals(known):
        content = io.BytesIO()
        collected.runs.to_parquet(content, compression="zstd", index=False)
        write_whole(parquet_path(results, tier), content.getvalue())
    return collected


def _with_folders(known: pd.DataFrame, results: Path, tier: str, broken: list[str]) -> Collected:
    facts = _by_identity(known, tuple(_RESULT))
    fresh: list[dict[str, Any]] = []
    reader = _Reader(tier, broken)
    for identity, run in sorted(rundir.existing(results, tier).items()):
        try:
            result = run.result()
            # It is written once, after all else, so a run whose result is known is known whole.
            if result is not None and facts.get(identity) != _facts_of(result):
                fresh.append(reader.record(run, identity, result))
        except ConfigError as error:
            broken.append(_first_line(error))
    runs = known
    if fresh:
        new = _frame(fresh, reader.rows)
        kept = known[~known.index.isin(new.index)]
        runs = _typed(pd.concat([kept, new])) if len(kept) else new
    return Collected(_in_order(runs).sort_values(ORDER), tuple(broken))


_RESULT = {column: name for name, column, _ in Result.facts() if column in COLUMNS}
_facts_of = attrgetter(*_RESULT.values())


def _by_identity(runs: pd.DataFrame, names: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    columns = [runs[name].to_numpy(object, copy=True) for name in names]
    for column in columns:
        column[pd.isna(column)] = None
    plain = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(runs["identity"].tolist(), plain, strict=True))


def _stored(results: Path, tier: str, broken: list[str]) -> pd.DataFrame:
    path, empty = parquet_path(results, tier), _frame([], [])
    if not path.exists():
        return empty
    try:
        found = pd.read_parquet(path)
        if missing := [name for name in NEEDED if name not in found]:
            broken.append(f"{path}: lacks {', '.join(missing)}; run folders alone count")
            return empty
        fits = {"schema": found["schema"] == SCHEMA_VERSION, "tier": found["settings.tier"] == tier}
        kept = _keyed(_typed(_in_order(found[fits["schema"] & fits["tier"]])))
    except (OSError, ValueError, TypeError, OverflowError) as error:
        broken.append(f"{path}: is unreadable ({_first_line(error)}); run folders alone count")
        return empty
    for name, fit in fits.items():
        if not fit.all():
            broken.append(f"{path}: {(~fit).sum()} runs of another {name} are left out")
    return kept


def _in_order(runs: pd.DataFrame) -> pd.DataFrame:
    settings = sorted({str(name) for name in runs} - set(COLUMNS))
    return runs.reindex(columns=[*COLUMNS, *settings])


def _frame(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per record; ``row`` of a record is the place of its settings in ``rows``."""
    facts = _columns(records, COLUMNS)
    names = dict.fromkeys(name for row in rows for name in row)
    settings = _columns(rows, names).iloc[[record["row"] for record in records]]
    whole = facts.join(settings.set_axis(facts.index))
    if len(whole):
        whole["settings.seed"] = whole["seed"]
    return _keyed(whole)


def _keyed(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.set_index("identity", drop=False).rename_axis("key")


def _columns(records: Sequence[Mapping[str, Any]], names: Iterable[str]) -> pd.DataFrame:
    columns = {name: [record.get(name) for record in records] for name in names}
    return _typed(pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in columns.items()}))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    names = [str(name) for name in frame]
    types = {
        name: DTYPES.get(name)
        or SETTINGS_DTYPES.get(pd.api.types.infer_dtype(frame[name]), "object")
        for name in names
    }
    wrong = {name: kind for name, kind in types.items() if frame[name].dtype != kind}
    typed = frame.astype(wrong)
    for name, kind in types.items():
        if kind == "object" and typed[name].isna().any():
            typed[name] = typed[name].where(typed[name].notna(), None)
    return typed


class _Reader:
    """Reads run folders; settings that differ in seed alone are parsed once."""

    # YAML takes half a millisecond a file, and the runs of a row differ in these lines only.
    OWN_LINES = re.compile(r"^(?:identity|start|variant|  seed):.*\n", re.MULTILINE)

    def __init__(self, tier: str, broken: list[str]) -> None:
        self.tier = tier
        self.broken = broken
        self.rows: list[dict[str, Any]] = []
        self.parsed: dict[str, int] = {}

    def record(self, run: RunDir, identity: str, result: Result) -> dict[str, Any]:
        """The run's columns, but for its settings: ``row`` is their place in ``rows``.

        Raises:
            ConfigError: the folder does not hold this run, or not in this tier and schema.
        """
        if result.identity != identity:
            raise ConfigError(
                f"{run.root}: its result is of run {result.identity}; "
                "give the folder its own name back"
            )
        if result.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"{run.root}: was made by schema {result.schema_version}, this is {SCHEMA_VERSION}"
            )
        needed = ("variant", "seed", *(("acc1",) if result.outcome == "done" else ()))
        if missing := [f"{name} = None" for name in needed if getattr(result, name) is None]:
            raise ConfigError(
                f"{run.root}: its result holds {', '.join(missing)}; move it away, run it again"
            )
        row = self.row(run)
        if (tier := self.rows[row].get("settings.tier")) != self.tier:
            raise ConfigError(
                f"{run.root}: is of tier {tier}, this is {self.tier}; move it to its own"
            )
        bits = self.bits(run, result) if result.outcome == "done" else None
        return {
            **result.as_json(),
            "row": row,
            "curve": json.dumps(run.metrics(), separators=(",", ":")),
            "correct": bits,
            "correct_count": None if bits is None else result.test_images,
        }

    def row(self, run: RunDir) -> int:
        """Where the run's settings, but for its seed, stand in ``rows``."""
        common = self.OWN_LINES.sub("", run.config_text())
        if common not in self.parsed:
            nested = run.config()["settings"]
            if not isinstance(nested, dict):
                raise ConfigError(f"{run.root}: is not a run's configuration; move it away")
            self.parsed[common] = len(self.rows)
            self.rows.append(
                {
                    key: json.dumps(value) if isinstance(value, list | dict) else value
                    for key, value in flatten(nested, "settings.").items()
                }
            )
        return self.parsed[common]

    def bits(self, run: RunDir, result: Result) -> bytes | None:
        try:
            return run.correct(result.test_images)
        except ValueError as error:
            self.broken.append(f"{error}; comparisons by image leave this run out")
            return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
