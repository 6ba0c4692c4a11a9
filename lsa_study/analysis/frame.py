"""Finished runs as one tidy table: every setting, metric and cost a column, a run a row."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_study import rundir
from lsa_study.analysis.tags import NONE, Remarks, read_remarks
from lsa_study.config.asked import every_asked, parquet_path
from lsa_study.config.names import nearest, short
from lsa_study.config.settings import SCHEMA_VERSION
from lsa_study.config.study import TIERS, Study, load_study
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.record import Result

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FIRST = ("name", "study", "tier", "variant", "seed", "identity", "outcome", "acc1")
LAST = ("tags", "note")
LEFT_OUT = {"correct", "correct_count", "curve", "image_scores", "seen", "settings.seed"}
"""Answers by image, pictures and curves, which are most of the file, and what is there twice."""
COLUMNS = tuple(alias for _, alias, _ in Result.facts())
"""Everything that a result records, in its order."""


def load_results(results: str | Path = "results", tier: str | None = None) -> pd.DataFrame:
    """The finished runs of a results folder, one row a run.

    Columns: ``name``, ``study`` (those that asked for it here, separated by commas), ``tier``,
    ``variant``, ``seed``, ``identity``, ``outcome``, ``acc1``; everything else that a result
    records, under its name there, such as ``params`` or ``seconds_per_epoch``; every setting by
    its dotted name, such as ``model.op.norm`` (lists as JSON text); ``tags`` and ``note``.

    Args:
        tier: toy, proxy or paper; None: all that have runs.

    Raises:
        ConfigError: there is no such folder or tier.
    """
    found = Finished(Path(results), tier)
    for line in found.broken:
        warnings.warn(f"left out: {line}", stacklevel=2)
    return found.frame()


def curves(results: str | Path = "results", tier: str | None = None) -> pd.DataFrame:
    """What the finished runs recorded after every epoch, one row an epoch.

    Columns: ``identity``, ``name``, ``tier``, ``variant``, ``seed``, ``epoch``, and what training
    wrote, such as ``train_loss``, ``loss``, ``acc1``, ``lr`` and ``seconds``.

    Args and errors: as of ``load_results``.
    """
    import pandas as pd

    first = ["identity", "name", "tier", "variant", "seed"]
    found = Finished(Path(results), tier).rows([*first, "curve"])
    lines = [
        {**{name: run[name] for name in first}, **epoch}
        for run in found
        for epoch in json.loads(run["curve"] or "[]")
    ]
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=[*first, "epoch", "acc1"])


class Finished:
    """The finished runs of a results folder, of which only those columns are read that are asked.

    ``runs.parquet`` is read where it holds all runs whose folders are there, and brought up to date
    first where it does not. A result that is older than the file counts as known to it.

    Attributes:
        columns: the names of all columns, in order.
        broken: a line for each file that could not be read.
    """

    def __init__(self, results: Path, tier: str | None = None) -> None:
        if tier is not None and tier not in TIERS:
            raise ConfigError(f"tier {tier}: no such tier; {nearest(tier, TIERS)}")
        if not results.is_dir():
            raise ConfigError(f"{results}: no such folder; give the one that lsa run has made")
        self.results, self.broken = results, list[str]()
        there = [
            one
            for one in TIERS
            if tier in (None, one)
            if rundir.runs_folder(results, one).is_dir() or parquet_path(results, one).is_file()
        ]
        self._sources = {one: self._source(one) for one in there}
        names = {name for names, _ in self._sources.values() for name in names} - LEFT_OUT
        own = [_short(name) for name in (*COLUMNS, *sorted(names - {*COLUMNS})) if name in names]
        self.columns = [*dict.fromkeys([*FIRST, *own]), *LAST]

    def rows(self, needed: Iterable[str], only: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The runs with these columns, ``identity`` besides; None where a run has no such value.

        ``only``: studies whose runs these are; none: all runs.

        Raises:
            ConfigError: there is no such study.
        """
        rows, asked = [], {*needed, "identity"}
        for tier, (names, read) in self._sources.items():
            own = [name for name in names if _short(name) in {*asked, "variant", "seed"}]
            found = read([name for name in own if name != "settings.seed"])
            columns = {_short(name): found[name].to_pylist() for name in found.column_names}
            columns |= self._added(tier, found, asked)
            wanted = None
            if only:
                studies = [load_study(name, tier=tier, recall=self.results) for name in only]
                wanted = {one for study in studies for one in _identities(study, columns["seed"])}
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                if wanted is None or row["identity"] in wanted:
                    rows.append({name: row.get(name) for name in asked})
        return rows

    def frame(self) -> pd.DataFrame:
        """All of them with all columns."""
        import pandas as pd

        frames = []
        for tier, (names, read) in self._sources.items():
            found = read([name for name in names if name not in LEFT_OUT])
            frame = found.to_pandas().rename(columns=_short)
            frames.append(frame.assign(**self._added(tier, found, self.columns)))
        every = pd.concat([one for one in frames if len(one)] or frames or [pd.DataFrame()])
        tidy: pd.DataFrame = every.reset_index(drop=True).reindex(columns=self.columns)
        return tidy

    def _source(self, tier: str) -> tuple[list[str], Callable[[list[str]], pa.Table]]:
        """The columns of a tier's runs, and what reads some of them."""
        import pyarrow as pa
        from pyarrow import parquet

        with contextlib.suppress(OSError, pa.ArrowInvalid, KeyError):
            file = parquet.ParquetFile(parquet_path(self.results, tier))
            if self._holds_all(tier, file.read(columns=["identity", "schema", "settings.tier"])):
                return file.schema_arrow.names, lambda names: file.read(columns=names)
        from lsa_study.analysis.collect import collect

        try:
            collected = collect(self.results, tier, update=True)
        except EnvironmentLacks:  # a folder that one may only read
            collected = collect(self.results, tier)
        self.broken += collected.broken
        table = pa.Table.from_pandas(collected.runs, preserve_index=False)
        return table.column_names, table.select

    def _holds_all(self, tier: str, known: pa.Table) -> bool:
        """Whether a tier's file holds runs of it alone, and all whose folders are here."""
        written = parquet_path(self.results, tier).stat().st_mtime_ns
        if {*known["schema"].to_pylist()} != {SCHEMA_VERSION} or {
            *known["settings.tier"].to_pylist()
        } != {tier}:
            return False
        identities = {*known["identity"].to_pylist()}
        for run in rundir.run_folders(self.results, tier):
            with contextlib.suppress(FileNotFoundError):
                result = (run.root / "result.json").stat()
                if result.st_mtime_ns >= written or run.identity not in identities:
                    return False
        return True

    def _added(self, tier: str, found: pa.Table, needed: Iterable[str]) -> dict[str, list[Any]]:
        """Those of these columns that no file of runs holds."""
        identities, seeds = found["identity"].to_pylist(), found["seed"].to_pylist()
        added: dict[str, list[Any]] = {}
        if "name" in needed:
            runs = zip(found["variant"].to_pylist(), seeds, identities, strict=True)
            added["name"] = [f"{short(variant)}-s{seed}-{end}" for variant, seed, end in runs]
        if "study" in needed:
            owners = self._owners(tier, seeds)
            added["study"] = [", ".join(owners.get(one, ())) or None for one in identities]
        if {*LAST} & {*needed}:
            remarks: dict[str, Remarks] = {}
            try:
                remarks = read_remarks(self.results, tier)
            except ConfigError as error:
                self.broken.append(str(error))
            said = [remarks.get(one, NONE) for one in identities]
            added["tags"] = [" ".join(one.tags) for one in said]
            added["note"] = [one.note for one in said]
        return added

    def _owners(self, tier: str, seeds: Iterable[int]) -> dict[str, list[str]]:
        """The studies that were asked for at a tier, by the identities of their runs."""
        owners: dict[str, list[str]] = {}
        for name in every_asked(self.results, tier)[0]:
            with contextlib.suppress(ConfigError):  # its file may be gone, or changed since
                study = load_study(name, tier=tier, recall=self.results)
                for identity in _identities(study, seeds):
                    owners.setdefault(identity, []).append(name)
        return owners


def _identities(study: Study, seeds: Iterable[int]) -> Iterator[str]:
    """Of a study's runs: of all seeds that there are, or a side study's own."""
    seeds = study.seeds if study.alias else {*study.seeds, *seeds}
    for settings in study.variants.values():
        yield from settings.identities(seeds).values()


def _short(name: str) -> str:
    return name.removeprefix("settings.")
