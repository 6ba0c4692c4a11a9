"""Gather the finished runs of a tier from its run folders and the committed ``runs.parquet``."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsa_study import rundir
from lsa_study.config import SCHEMA_VERSION, flatten
from lsa_study.errors import ConfigError
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
        """The runs with these identities that have ended, by identity; missing facts are None."""
        places = self.runs.index.get_indexer(pd.Index(list(identities)))
        chosen = self.runs.iloc[places[places >= 0]]
        names = [str(name) for name in chosen]
        return {
            identity: dict(zip(names, values, strict=True))
            for identity, values in _by_identity(chosen, names).items()
        }


def parquet_path(results: Path, tier: str) -> Path:
    """Where the collected runs of a tier are kept."""
    return results / tier / "runs.parquet"


def collect(results: Path, tier: str) -> Collected:
    """Read every finished run of a tier; run folders win over the committed ``runs.parquet``.

    Runs that have not ended are left out; files that cannot be read are named in ``broken``.
    """
    broken: list[str] = []
    known = _stored(results, tier, broken)
    facts = _by_identity(known, _RESULT)
    fresh: list[dict[str, Any]] = []
    reader = _Reader(tier, broken)
    for identity, run in sorted(rundir.existing(results, tier).items()):
        result = reader.result(run, identity)
        if result is not None and not _same(facts.get(identity), result):
            record = reader.record(run, result)
            fresh += [record] if record else []
    new = _frame(fresh)
    kept = known[~known.index.isin(new.index)]
    parts = [part for part in (kept, new) if len(part)]
    runs = _typed(pd.concat(parts)) if parts else known
    settings = sorted({str(name) for name in runs} - set(COLUMNS))
    return Collected(runs[[*COLUMNS, *settings]].sort_values(ORDER), tuple(broken))


def stored(results: Path, tier: str) -> Collected:
    """The runs of ``runs.parquet`` alone, as a fresh clone has them."""
    broken: list[str] = []
    return Collected(_stored(results, tier, broken).sort_values(ORDER), tuple(broken))


def refresh(results: Path, tier: str) -> Collected:
    """Collect, and bring ``runs.parquet`` up to date if anything changed."""
    collected = collect(results, tier)
    path = parquet_path(results, tier)
    if len(collected.runs) and not collected.runs.equals(_stored(results, tier, [])):
        content = io.BytesIO()
        collected.runs.to_parquet(content, compression="zstd", index=False)
        rundir.write_whole(path, content.getvalue())
    return collected


_RESULT = tuple(name for name in COLUMNS if name not in ("curve", "correct", "correct_count"))


def _by_identity(runs: pd.DataFrame, names: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    columns = [runs[name].astype(object) for name in names]
    plain = [column.where(column.notna(), None).tolist() for column in columns]
    return dict(zip(runs["identity"].tolist(), zip(*plain, strict=True), strict=True))


def _same(stored: tuple[Any, ...] | None, result: Mapping[str, Any]) -> bool:
    # A result is written once, after all else, so a run whose result is known is known whole.
    values = (result.get(name) for name in _RESULT)
    return stored == tuple(None if value != value else value for value in values)


def _stored(results: Path, tier: str, broken: list[str]) -> pd.DataFrame:
    path, empty = parquet_path(results, tier), _frame([])
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
    return _typed(kept.set_index("identity", drop=False).rename_axis("key"))


def _frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    names = dict.fromkeys([*COLUMNS, *(name for record in records for name in record)])
    columns = {name: [record.get(name) for record in records] for name in names}
    frame = pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in columns.items()})
    return _typed(frame.set_index("identity", drop=False).rename_axis("key"))


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
    if isinstance(column.dtype, pd.StringDtype):
        return "object"
    kinds = set(map(type, column.dropna()))
    if kinds and kinds <= {bool, np.bool_}:
        return "boolean"
    if kinds and kinds <= {int, np.int64}:
        return "Int64"
    if kinds and kinds <= {int, float, np.int64, np.float64}:
        return "float64"
    return "object"


class _Reader:
    """Reads run folders; settings that differ in seed alone are parsed once."""

    # YAML takes a millisecond a file, and the runs of a row differ in these lines only.
    OWN_LINES = re.compile(r"^(identity: .*|variant: .*|  seed: \d+)$", re.MULTILINE)

    def __init__(self, tier: str, broken: list[str]) -> None:
        self.tier = tier
        self.broken = broken
        self.parsed: dict[str, dict[str, Any]] = {}

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
            settings = self.settings(run, result)
        except (ConfigError, ValueError) as error:
            self.broken.append(_first_line(error))
            return None
        if settings["settings.tier"] != self.tier:
            self.broken.append(
                f"{run.root}: is of tier {settings['settings.tier']}, this is {self.tier}; "
                "move it to its own"
            )
            return None
        bits, count = self.bits(run, result)
        return {
            **{name: result.get(name) for name in _RESULT},
            **settings,
            "curve": json.dumps(run.metrics(), separators=(",", ":")),
            "correct": bits,
            "correct_count": count,
        }

    def settings(self, run: RunDir, result: dict[str, Any]) -> dict[str, Any]:
        text = run.config_text()
        common, own = self.OWN_LINES.subn("", text)
        if own != 3 or common not in self.parsed:
            nested = run.config()["settings"]
            if not isinstance(nested, dict):
                raise ConfigError(f"{run.root}: is not a run's configuration; move it away")
            flat = flatten(nested, "settings.")
            self.parsed[common] = {key: _cell(value) for key, value in flat.items()}
        return {**self.parsed[common], "settings.seed": result.get("seed")}

    def bits(self, run: RunDir, result: dict[str, Any]) -> tuple[bytes | None, int | None]:
        if result["outcome"] != "done":
            return None, None
        path = run.correct_bits
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                bits, count = arrays["bits"], int(arrays["count"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            self.broken.append(f"{path}: is unreadable; comparisons by image leave this run out")
            return None, None
        if count != result.get("test_images") or bits.size != -(-count // 8):
            self.broken.append(
                f"{path}: holds {count} images, the result says {result.get('test_images')}; "
                "comparisons by image leave this run out"
            )
            return None, None
        return bits.tobytes(), count


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
