"""Gather the finished runs of a tier from its run folders and the committed ``runs.parquet``."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
from pydantic import ValidationError

from lsa_study import rundir
from lsa_study.analysis.tags import NONE, Remarks, read_remarks
from lsa_study.config.asked import WHOLE, parquet_path
from lsa_study.config.settings import SCHEMA_VERSION, flatten
from lsa_study.errors import ConfigError
from lsa_study.files import read_whole, write_whole
from lsa_study.record import LATER, Count, Result
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
    remarks: Remarks = NONE
    """What people put on it."""
    image_scores: bytes | None = None
    """One float32 for each test image, whose mean is the metric as a share to first order; of runs
    whose metric is no mean over images and yet known so. See ``training.scores``."""
    seen: bytes | None = None
    """A JPEG of what it finds in a few test images below what stands there, of such tasks."""
    metric: str = "acc1"
    """By which it is judged; see ``by``."""

    @property
    def accuracy(self) -> float:
        """Of a run that is done, its metric: top-1 accuracy in percent, or what ``by`` chose."""
        found = self.acc1 if self.metric == "acc1" else self.metrics.get(self.metric)
        assert found is not None
        return found

    def by(self, metric: str) -> RunRecord:
        """The same run judged by another metric, which images classified rightly say nothing of."""
        if metric == self.metric:
            return self
        nothing = {"correct": None, "correct_count": None}
        return self.model_copy(update={"metric": metric, **nothing})


CURVE = json.JSONEncoder(separators=(",", ":"))
NUMERIC = {int: "Int64", float: "float64", bool: "boolean"}
DTYPES = {
    column: next((NUMERIC[kind] for kind in (hint, *get_args(hint)) if kind in NUMERIC), "object")
    for name, column, _ in RunRecord.facts()
    for hint in [get_type_hints(RunRecord)[name]]
    # They have no column: some came later, others have one for each of their entries.
    if name not in ("start", "settings", "remarks", "image_scores", "seen", "metric", *LATER)
}
"""The columns that every collection has; ``settings.*`` follow, as the runs have them."""
COLUMNS = tuple(DTYPES)
SETTINGS_DTYPES = {
    "boolean": "boolean",
    "integer": "Int64",
    "floating": "float64",
    "mixed-integer-float": "float64",
}
"""How a column of settings is kept, by what pandas finds in it; all others hold objects."""
TORN = 1e-3
"""Points by which answers by image may miss the accuracy that was counted from them."""
ORDER = ["variant", "seed", "identity"]
NEEDED = (*ORDER, "outcome", "schema", "settings.tier")
"""Columns without which a collection says nothing; others that it lacks hold None."""


@dataclass(frozen=True)
class Collected:
    """The finished runs of a tier, and a message for each file that could not be read.

    ``runs`` has one row per run, indexed by identity: the result's facts, the settings as
    ``settings.model.op.norm`` and so on (lists as JSON text), ``metrics.NAME`` of functions from
    outside (``metrics_missing`` says why one is), ``correct`` (packed bits, one per
    test image; ``correct_count`` says how many) and ``curve`` (JSON text of the epochs' records).
    """

    runs: pd.DataFrame
    broken: tuple[str, ...] = ()
    results: Path | None = None
    """The folder that holds them."""
    remarks: Mapping[str, Remarks] = field(default_factory=dict)
    """By identity, of the runs that people have said something of."""
    lost: tuple[str, ...] = ()
    """Those of ``broken`` that say what ``runs.parquet`` holds beside ``runs``."""

    @property
    def left_out(self) -> list[str]:
        """The messages of ``broken`` for pages that others read: paths begin at the tier."""
        return [self.plain(line) for line in self.broken]

    def plain(self, line: str) -> str:
        """A message whose paths in the results folder begin at the tier."""
        return line.replace(f"{self.results}{os.sep}", "") if self.results else line

    def of(self, identities: Iterable[str]) -> dict[str, RunRecord]:
        """The runs with these identities that have ended, by identity."""
        return {one: self._every[one] for one in identities if one in self._every}

    @cached_property
    def _every(self) -> dict[str, RunRecord]:
        names = [str(name) for name in self.runs if name not in COLUMNS]
        others = _by_identity(self.runs, names)
        return {
            identity: RunRecord.model_validate(
                dict(zip(COLUMNS, values, strict=True))
                | _grouped(dict(zip(names, others[identity], strict=True)))
                | {"remarks": self.remarks.get(identity, NONE)}
            )
            for identity, values in _by_identity(self.runs, COLUMNS).items()
        }


def _grouped(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns such as ``settings.seed`` as fields that are mappings."""
    fields: dict[str, Any] = {"settings": {}, "metrics": {}}
    for name, value in columns.items():
        group, _, key = name.partition(".")
        if group == "settings":
            fields["settings"][key] = value
        elif name in ("metrics_missing", "image_scores", "seen"):
            fields[name] = value
        elif group == "metrics" and (
            value is not None or columns.get(f"settings.evaluation.{name}") is not None
        ):
            fields["metrics"][key] = value
    return fields


def collect(results: Path, tier: str, *, folders: bool = True, update: bool = False) -> Collected:
    """Read every finished run of a tier; run folders win over the committed ``runs.parquet``.

    Runs that have not ended are left out; files that cannot be read are named in ``broken``.

    Args:
        folders: False reads ``runs.parquet`` alone, as a fresh clone has it.
        update: bring ``runs.parquet`` up to date if anything changed, and nothing in it is left
            out here: that would be lost.
    """
    broken, lost = list[str](), list[str]()
    known = runs = _stored(results, tier, lost)
    facts = _by_identity(known, tuple(_RESULT))
    fresh: list[dict[str, Any]] = []
    reader = _Reader(tier, broken)
    # What is not compared with the results below; it is read again where it cannot be right.
    columns = zip(known["identity"], known["correct"], known["curve"], strict=True)
    torn = {i for i, b, c in columns if not isinstance(b, bytes | None) or not isinstance(c, str)}
    here = rundir.existing(results, tier, twice=broken) if folders else {}
    for identity, run in sorted(here.items()):
        try:
            result = run.result()
            # It is written once, after all else, so a run whose result is known is known whole.
            if result is not None:
                if facts.get(identity) != _facts_of(result) or identity in torn:
                    fresh.append(reader.record(run, identity, result))
                facts.pop(identity, None)
        except ConfigError as error:
            broken.append(str(error))
    runs = known = _sound(known, facts.keys(), lost)
    if fresh:
        runs = _typed(pd.DataFrame(fresh, dtype=object))
        kept = known[~known.index.isin(runs.index)]
        runs = _typed(pd.concat([kept, runs])) if len(kept) else runs
    runs = runs.sort_values(ORDER)
    if lost:
        lost[-1] += f"; the file is not brought up to date: {WHOLE}"
    elif update and len(runs) and not runs.equals(known):
        store(results, tier, runs)
    remarks: Mapping[str, Remarks] = {}
    try:
        remarks = read_remarks(results, tier)
    except ConfigError as error:
        broken.append(str(error))
    return Collected(runs, (*lost, *broken), results, remarks, tuple(lost))


def store(results: Path, tier: str, runs: pd.DataFrame, *others: pd.DataFrame) -> None:
    """Write these runs as what is kept of a tier; those of ``others`` beside them."""
    if others:
        runs = _typed(pd.concat([one for one in (runs, *others) if len(one)])).sort_values(ORDER)
    content = io.BytesIO()
    runs.to_parquet(content, compression="zstd", index=False)
    write_whole(parquet_path(results, tier), content.getvalue(), make_folder=True)


def _sound(known: pd.DataFrame, alone: Collection[Any], broken: list[str]) -> pd.DataFrame:
    """Leave out what the file alone holds of runs where its values are impossible."""
    bad = []
    for identity, values in _by_identity(known[known.index.isin([*alone])], COLUMNS).items():
        try:
            RunRecord.model_validate(dict(zip(COLUMNS, values, strict=True)))
        except ValidationError as error:
            first = error.errors()[0]
            holds = f"{'.'.join(map(str, first['loc']))} = {first['input']!r:.50}"
            broken.append(f"runs.parquet: run {identity} holds {holds} and is left out")
            bad.append(identity)
    return known.drop(index=bad)


_RESULT = {column: name for name, column, _ in Result.facts() if column in COLUMNS}
_facts_of = attrgetter(*_RESULT.values())


def _by_identity(runs: pd.DataFrame, names: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    columns = [runs[name].to_numpy(object, copy=True) for name in names]
    for column in columns:
        column[pd.isna(column)] = None
    plain = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(runs["identity"].tolist(), plain, strict=True))


def _stored(results: Path, tier: str, broken: list[str]) -> pd.DataFrame:
    path, empty = parquet_path(results, tier), _typed(pd.DataFrame())
    try:
        found = pd.read_parquet(path)
        if missing := [name for name in NEEDED if name not in found]:
            broken.append(f"{path}: lacks {', '.join(missing)}; run folders alone count")
            return empty
        fits = {"schema": found["schema"] == SCHEMA_VERSION, "tier": found["settings.tier"] == tier}
        kept = _typed(found[fits["schema"] & fits["tier"]])
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        broken.append(f"{path}: is unreadable ({reason}); run folders alone count")
        return empty
    for name, fit in fits.items():
        if not fit.all():
            broken.append(f"{path}: {(~fit).sum()} runs of another {name} are left out")
    return kept


def _typed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by identity, their columns in order and each of its type."""
    settings = sorted({str(name) for name in runs} - set(COLUMNS))
    runs = runs.reindex(columns=[*COLUMNS, *settings])
    kinds = {name: SETTINGS_DTYPES.get(pd.api.types.infer_dtype(runs[name])) for name in settings}
    types = DTYPES | {name: kind or "object" for name, kind in kinds.items()}
    typed = runs.astype({name: kind for name, kind in types.items() if runs[name].dtype != kind})
    for name, kind in types.items():
        if kind == "object" and typed[name].isna().any():
            typed[name] = typed[name].where(typed[name].notna(), None)
    return typed.set_index("identity", drop=False).rename_axis("key")


def _by_image(run: RunDir, result: Result) -> dict[str, Any]:
    """The columns of a finished run that are about single test images.

    Raises:
        ValueError: a file is damaged, or is not of this result.
    """
    if result.outcome != "done":
        return {}
    if result.acc1 is None:
        by_image = "miou" in result.metrics
        columns = {
            "image_scores": run.image_scores(result.test_images) if by_image else None,
            "seen": read_whole(run.seen_file),
        }
        return {name: value for name, value in columns.items() if value is not None}
    bits = run.correct(result.test_images)
    right = 100 * int.from_bytes(bits, "big").bit_count() / (result.test_images or 1)
    if abs(right - result.acc1) > TORN:
        shown = f"{right:.4f} % are right, its result says {result.acc1:.4f} %"
        raise ValueError(f"{run.correct_bits}: {shown}; run it again")
    return {"correct": bits, "correct_count": result.test_images}


@dataclass
class _Reader:
    """Reads run folders; settings that differ in seed alone are parsed once."""

    # YAML takes half a millisecond a file, and the runs of a row differ in these lines only.
    OWN_LINES = re.compile(r"^(?:identity|start|reference|variant|  seed):.*\n", re.MULTILINE)

    tier: str
    broken: list[str]
    parsed: dict[str, tuple[Callable[[int], str], dict[str, Any]]] = field(default_factory=dict)

    def record(self, run: RunDir, identity: str, result: Result) -> dict[str, Any]:
        """The run's columns.

        Raises:
            ConfigError: the folder does not hold this run, or not in this tier and schema.
        """
        needed: dict[str, object] = {"variant": result.variant, "seed": result.seed}
        if result.outcome == "done":
            needed["acc1"] = result.score
        missing = [f"{name} = None" for name, value in needed.items() if value is None]
        schema = result.schema_version
        for wrong, problem in (
            (
                result.identity != identity,
                f"its result is of run {result.identity}; give the folder its own name back",
            ),
            (schema != SCHEMA_VERSION, f"was made by schema {schema}, this is {SCHEMA_VERSION}"),
            (missing, f"its result holds {', '.join(missing)}; move it away, run it again"),
        ):
            if wrong:
                raise ConfigError(f"{run.root}: {problem}")
        columns = self.settings(run, result.seed or 0)
        if (tier := columns["settings.tier"]) != self.tier:
            raise ConfigError(
                f"{run.root}: is of tier {tier}, this is {self.tier}; move it to its own"
            )
        try:
            by_image = _by_image(run, result)
        except (ValueError, OSError) as error:
            by_image = {}
            self.broken.append(f"{error}; comparisons by image leave this run out")
        return {
            **dict(zip(_RESULT, _facts_of(result), strict=True)),
            "curve": CURVE.encode(run.metrics()),
            "correct": None,
            "correct_count": None,
            **columns,
            **{f"metrics.{name}": value for name, value in result.metrics.items()},
            **({"metrics_missing": result.metrics_missing} if result.metrics_missing else {}),
            **by_image,
            "settings.seed": result.seed,
        }

    def settings(self, run: RunDir, seed: int) -> dict[str, Any]:
        """By column, of a run whose result is of this seed; the seed may be that of another run."""
        text = run.config_text()
        written = re.search(r"^  seed: (\d+)$", text, re.MULTILINE)
        if written and int(written[1]) != seed:
            raise ConfigError(
                f"{run.root}: its result is of seed {seed}, its config.yaml of {written[1]}; "
                "move the folder away and run it again"
            )
        common = self.OWN_LINES.sub("", text)
        if common not in self.parsed:
            self.parsed[common] = (
                run.settings().identify(),
                {
                    key: json.dumps(value) if isinstance(value, list | dict) else value
                    for key, value in flatten(run.config()["settings"], "settings.").items()
                },
            )
        identity, columns = self.parsed[common]
        if (own := identity(seed)) != run.identity:
            raise ConfigError(
                f"{run.root}: its config.yaml was edited: its settings are those of run {own}; "
                "undo that, or move the folder away"
            )
        return columns
