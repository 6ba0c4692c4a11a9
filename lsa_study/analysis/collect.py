"""Gather the finished runs of a tier from its run folders and the committed ``runs.parquet``."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lsa_study import correct, rundir
from lsa_study.config.settings import SCHEMA_VERSION, flatten
from lsa_study.errors import ConfigError
from lsa_study.files import read_whole, write_whole
from lsa_study.rundir import RunDir

NUMBERS = (
    "acc1", "acc5", "loss", "best_acc1", "ema_acc1", "seconds", "seconds_per_epoch",
)  # fmt: skip
COUNTS = (
    "epoch", "epochs", "params", "macs", "train_images", "test_images", "peak_memory_bytes",
    "effective_batch", "attempts", "schema", "seed", "correct_count",
)  # fmt: skip
WORDS = (
    "outcome", "weights", "selected", "device", "device_kind", "precision", "torch", "commit",
    "data_fingerprint", "identity", "variant", "implementation", "reason", "finished", "curve",
)  # fmt: skip
FLAGS = ("dirty",)
COLUMNS = (*WORDS, *COUNTS, *NUMBERS, *FLAGS, "correct")
"""Columns every collection has; ``settings.*`` columns follow, as the runs have them."""

DTYPES = {
    **dict.fromkeys(NUMBERS, "float64"),
    **dict.fromkeys(COUNTS, "Int64"),
    **dict.fromkeys(WORDS, "object"),
    **dict.fromkeys(FLAGS, "boolean"),
    "correct": "object",
}
SETTINGS_DTYPES = {
    "boolean": "boolean",
    "integer": "Int64",
    "floating": "float64",
    "mixed-integer-float": "float64",
}
"""How a column of settings is kept, by what pandas finds in it; all others hold objects."""
ORDER = ["variant", "seed", "identity"]

Run = dict[str, Any]
"""One finished run: a row of ``Collected.runs``."""


@dataclass(frozen=True)
class Collected:
    """The finished runs of a tier, and in words what could not be read.

    ``runs`` has one row per run, indexed by identity: the result's facts, the settings as
    ``settings.model.op.norm`` and so on (lists as JSON text), ``correct`` (packed bits, one per
    test image; ``correct_count`` says how many) and ``curve`` (JSON text of the epochs' records).
    """

    runs: pd.DataFrame
    broken: tuple[str, ...] = ()

    def of(self, identities: Iterable[str]) -> dict[str, Run]:
        """The runs with these identities that have ended, by identity; missing facts are None.

        Every call gives the same dicts: read them only.
        """
        every = self._every
        return {identity: every[identity] for identity in identities if identity in every}

    @cached_property
    def _every(self) -> dict[str, Run]:
        names = [str(name) for name in self.runs]
        return {
            identity: dict(zip(names, values, strict=True))
            for identity, values in _by_identity(self.runs, names).items()
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
    facts = _by_identity(known, _RESULT)
    fresh: list[dict[str, Any]] = []
    reader = _Reader(tier, broken)
    for identity, run in sorted(rundir.existing(results, tier).items()):
        result = reader.result(run, identity)
        if result is not None and not _same(facts.get(identity), result):
            record = reader.record(run, result)
            fresh += [record] if record else []
    runs = known
    if fresh:
        new = _frame(fresh, reader.rows)
        kept = known[~known.index.isin(new.index)]
        runs = _typed(pd.concat([kept, new])) if len(kept) else new
    settings = sorted({str(name) for name in runs} - set(COLUMNS))
    return Collected(runs[[*COLUMNS, *settings]].sort_values(ORDER), tuple(broken))


_RESULT = tuple(name for name in COLUMNS if name not in ("curve", "correct", "correct_count"))


def _by_identity(runs: pd.DataFrame, names: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    columns = [runs[name].to_numpy(object, copy=True) for name in names]
    for column in columns:
        column[pd.isna(column)] = None
    plain = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(runs["identity"].tolist(), plain, strict=True))


def _same(stored: tuple[Any, ...] | None, result: Mapping[str, Any]) -> bool:
    # A result is written once, after all else, so a run whose result is known is known whole.
    values = map(result.get, _RESULT)
    return stored is not None and stored == tuple(None if v != v else v for v in values)


def _stored(results: Path, tier: str, broken: list[str]) -> pd.DataFrame:
    path, empty = parquet_path(results, tier), _frame([], [])
    if not path.exists():
        return empty
    try:
        found = pd.read_parquet(path)
        missing = [name for name in (*COLUMNS, "settings.tier") if name not in found]
    except (OSError, ValueError) as error:
        broken.append(f"{path}: is unreadable ({_first_line(error)}); run folders alone count")
        return empty
    if missing:
        broken.append(f"{path}: lacks {', '.join(missing)}; run folders alone count")
        return empty
    fits = {"schema": found["schema"] == SCHEMA_VERSION, "tier": found["settings.tier"] == tier}
    for name, fit in fits.items():
        if not fit.all():
            broken.append(f"{path}: {(~fit).sum()} runs of another {name} are left out")
    kept = found[fits["schema"] & fits["tier"]]
    return _keyed(_typed(kept))


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
    types = {name: DTYPES.get(name) or _settings_type(frame[name]) for name in names}
    wrong = {name: kind for name, kind in types.items() if frame[name].dtype != kind}
    typed = frame.astype(wrong)
    for name, kind in types.items():
        if kind == "object" and typed[name].isna().any():
            typed[name] = typed[name].where(typed[name].notna(), None)
    return typed


def _settings_type(column: pd.Series[Any]) -> str:
    return SETTINGS_DTYPES.get(pd.api.types.infer_dtype(column), "object")


class _Reader:
    """Reads run folders; settings that differ in seed alone are parsed once."""

    # YAML takes a millisecond a file, and the runs of a row differ in these lines only.
    OWN_LINES = re.compile(r"\n(?:identity: .*|start: .*|variant: .*|  seed: \d+(?=\n))")

    def __init__(self, tier: str, broken: list[str]) -> None:
        self.tier = tier
        self.broken = broken
        self.rows: list[dict[str, Any]] = []
        self.parsed: dict[str, int] = {}

    def result(self, run: RunDir, identity: str) -> dict[str, Any] | None:
        try:
            result = run.result()
        except ConfigError as error:
            self.broken.append(str(error))
            return None
        if result is None:
            return None
        if result.get("identity") != identity:
            self.broken.append(
                f"{run.root}: its result is of run {result.get('identity')}; "
                "give the folder its own name back"
            )
            return None
        if result.get("schema") != SCHEMA_VERSION:
            self.broken.append(
                f"{run.root}: was made by schema {result.get('schema')}, this is {SCHEMA_VERSION}"
            )
            return None
        return result

    def record(self, run: RunDir, result: dict[str, Any]) -> dict[str, Any] | None:
        if wrong := _wrong(result):
            words = ", ".join(f"{name} = {result.get(name)!r}" for name in wrong)
            self.broken.append(f"{run.root}: its result holds {words}; move it away, run it again")
            return None
        try:
            row = self.row(run)
        except (ConfigError, ValueError) as error:
            self.broken.append(_first_line(error))
            return None
        if (tier := self.rows[row].get("settings.tier")) != self.tier:
            self.broken.append(
                f"{run.root}: is of tier {tier}, this is {self.tier}; move it to its own"
            )
            return None
        bits, count = self.bits(run, result)
        return {
            **result,
            "row": row,
            "curve": json.dumps(run.metrics(), separators=(",", ":")),
            "correct": bits,
            "correct_count": count,
        }

    def row(self, run: RunDir) -> int:
        """Where the run's settings, but for its seed, stand in ``rows``."""
        text = run.config_text()
        common, own = self.OWN_LINES.subn("", f"\n{text}")
        if own not in (3, 4) or common not in self.parsed:
            nested = run.config()["settings"]
            if not isinstance(nested, dict):
                raise ConfigError(f"{run.root}: is not a run's configuration; move it away")
            flat = flatten(nested, "settings.")
            self.parsed[common] = len(self.rows)
            self.rows.append({key: _cell(value) for key, value in flat.items()})
        return self.parsed[common]

    def bits(self, run: RunDir, result: dict[str, Any]) -> tuple[bytes | None, int | None]:
        if result["outcome"] != "done":
            return None, None
        images = result.get("test_images")
        try:
            content = read_whole(run.correct_bits) or b""
            return correct.unpack(content, images), images
        except OSError:
            reason = "is unreadable"
        except ValueError as error:
            reason = str(error)
        self.broken.append(f"{run.correct_bits}: {reason}; comparisons by image leave this run out")
        return None, None


KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(NUMBERS, (int, float)),
    **dict.fromkeys(COUNTS, (int,)),
    **dict.fromkeys(WORDS, (str,)),
    **dict.fromkeys(FLAGS, (bool,)),
}
"""What a result may hold, beside nothing."""


def _wrong(result: Mapping[str, Any]) -> list[str]:
    wrong = [
        name
        for name, kind in KINDS.items()
        if (value := result.get(name)) is not None and type(value) not in kind
    ]
    accuracy = result.get("acc1")
    if not wrong and result["outcome"] == "done":
        wrong = [] if accuracy is not None and 0 <= accuracy <= 100 else ["acc1"]
    return wrong


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
