"""An experiment file as written: its schema, and the names that it may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from lsa_study.config import names, yaml
from lsa_study.config.find import TIERS
from lsa_study.config.layers import known_paths
from lsa_study.config.ledger import OwnClaims
from lsa_study.config.outside import argument_paths
from lsa_study.config.settings import Tier
from lsa_study.config.start import Stop

ELSEWHERE = "rows of another study are no rows here; copy its settings into a row of this file"
Number = Annotated[int, Field(gt=0, le=100_000)]


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Resources(_Written):
    """What one run asks of a cluster; never part of its identity."""

    nodes: Number = 1
    """Machines that train one run together."""
    gpus: Number = 1
    """GPUs per node."""
    cpus: Number = 8
    """CPU cores per GPU."""
    memory_gb: Number = 32
    """Gigabytes of each node."""
    hours: Annotated[float, Field(gt=0, le=100_000)] = 24.0
    """After which the scheduler ends the job; a run saves itself before and is queued again."""


class Variant(_Written):
    """One row: what it sets, and which row of the article's table it stands beside."""

    label: str = ""
    """The row's name in tables, such as the article's; empty: its key."""
    use: list[str] = []
    """Presets that come before ``set``."""
    set: dict[str, Any] = {}
    """Settings of this row by their dotted paths, after those of ``use``."""
    against: str | None = None
    """The row it is compared with where that is not the study's baseline."""
    paper: dict[str, str | int | float] = {}
    """Columns and values that single out the article's row in its CSV; empty: it has none."""
    paper_columns: dict[str, str] = {}
    """By metric, the columns of its numbers in the article's CSV that are not the study's."""
    columns: dict[str, str] = {}
    """Further cells shown beside the label, such as the article's check marks."""
    note: str | None = None
    """What a reader must know of the row. Holds ``{name}`` for a text of the study's ``notes`` or,
    where it has ``costs``, a count."""
    network: str | None = None
    """Its name in the study's benchmark, whose figures then stand in its row."""
    resources: dict[str, Any] = {}
    """What its runs ask of a cluster, where that is not what the study asks."""


class Article(_Written):
    """Where the article's numbers stand."""

    csv: str
    """Path relative to the experiment file."""
    column: str = "acc1"
    """The column of that file that stands beside our first metric."""
    columns: dict[str, str] = {}
    """The same of every metric by its name, where a task has several."""
    source: str
    """What readers are shown as its place, such as Table 4."""


def _with_grids(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema what need not be given beside a grid or a sample."""
    schema["required"] = sorted({*schema["required"]} - {"factor", "baseline", "variants"})


class StudyFile(_Written):
    """An experiment file as written.

    A row's settings are layered: the tier, then ``use`` and ``set`` of the study, then those of the
    row, then ``--set``. ``use`` names presets: mappings of dotted settings that several rows share,
    in ``base/presets.yaml`` beside the file, else in ``experiments``. Two presets of one ``use``
    may not set the same setting, or one inside the other, to different values.

    ``grid`` and ``sample`` make rows beside ``variants``, or in their place; then ``factor`` and
    ``baseline`` may be left out too: see :mod:`lsa_study.config.grid`.
    """

    model_config = ConfigDict(json_schema_extra=_with_grids)

    study: names.Name
    """Its name, by which commands and files know it."""
    work: str = ""
    """The work whose tables it re-runs, by which studies are listed; empty: ELSA's."""
    title: str = Field("", validate_default=True)
    """Above its tables and figures; empty: the study's name."""
    question: str = ""
    """What the study is to answer, in one sentence."""
    factor: list[str] = Field(min_length=1)
    """What may differ between the rows: settings, ``model.op`` (the whole layer), or ``groups``. A
    row may differ from the one that it is compared with in one of them, and in nothing else."""
    groups: dict[names.Name, list[str]] = {}
    """Settings that have no meaning one without the other, by the name of their factor."""
    baseline: str
    """The row that the others are compared with."""
    tiers: list[Tier] = list(TIERS)
    """At which it can be run; the first is shown where none is asked for."""
    seeds: list[int] = Field([], min_length=1)
    """Declared before anything runs: these seeds are run, in place of the tier's, and an interval
    over them all is one of a single look. Over others it holds at every look, and is wider."""
    use: list[str] = []
    """Presets that every row begins with."""
    set: dict[str, Any] = {}
    """Settings of every row by their dotted paths, such as ``train.epochs: 5``."""
    variants: dict[names.Name, Variant] = Field(min_length=1)
    """The rows, by name; a table shows them in this order."""
    grid: dict[str, list[Any]] = {}
    """Settings and the values that each takes: a row for every point of their product."""
    sample: dict[str, Any] = {}
    """``n`` rows drawn at random with ``seed``: of each setting a list of values to choose from, or
    ``{low, high}``, evenly or with ``log: true`` on a logarithmic scale."""
    article: Article | None = None
    """The numbers that stand beside ours; null: a study of your own, whose outputs name none."""
    claims: OwnClaims = []
    """What the study is to show, as in ``claims.yaml``; rows of this study go by their key."""
    benchmark: str | None = None
    """What ``lsa bench`` wrote, as a path relative to the experiment file."""
    costs: str | None = None
    """What ``benchmarks/costs.py`` counted, as such a path; shown beside the article's counts."""
    notes: dict[str, str] = {}
    """Texts that the notes of several rows hold, by name."""
    resources: dict[str, Any] = {}
    """What its runs ask of a cluster, over what the tier asks."""
    stop: Stop | None = None
    """The same as ``runtime.stop`` in ``set``."""

    @field_validator("title")
    @classmethod
    def _titled(cls, title: str, info: ValidationInfo) -> str:
        return title or str(info.data.get("study", ""))

    @field_validator("variants")
    @classmethod
    def _labelled(cls, rows: dict[str, Variant]) -> dict[str, Variant]:
        return {n: r if r.label else r.model_copy(update={"label": n}) for n, r in rows.items()}

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """The settings of each factor."""
        return {one: tuple(self.groups.get(one, [one])) for one in self.factor}


ONE_CHOICE = ("model.op", "model.stem", "train.optimizer")
"""Groups of settings that are one thing, such as a whole layer."""


def why_no_factor(setting: str, paths: Sequence[str] = (), also: Iterable[str] = ()) -> str | None:
    """Why rows cannot differ in a setting by itself, and what would be right; None if they can.

    ``paths``: all settings; else those of :class:`Settings`. ``also``: other names that could have
    been meant.
    """
    paths = paths or known_paths()
    if setting not in paths:
        return f"is not a setting; {names.nearest(setting, [*paths, *also])}"
    inside = {path.rpartition(".")[0] for path in paths} - {"", *ONE_CHOICE}
    if any(path == setting or path.startswith(f"{setting}.") for path in inside):
        return (
            "is many settings at once; give one of them, or name those that belong together in "
            "groups"
        )
    return None


def wrong_names(file: StudyFile, document: yaml.Document) -> list[str]:
    """The mistakes of an experiment file that names rows or settings that there are not."""
    named: dict[tuple[str, ...], str | None] = {("baseline",): file.baseline}
    named |= {("variants", name, "against"): v.against for name, v in file.variants.items()}
    mistakes = [
        f"{document.where(*keys)}: {'baseline ' if len(keys) == 1 else ''}{row!r} is not a "
        f"variant; {ELSEWHERE if '/' in row else names.nearest(row, file.variants)}"
        for keys, row in named.items()
        if row is not None and row not in file.variants
    ]
    checked = {*file.grid, *file.sample}
    written: dict[tuple[str, ...], dict[str, Any]] = {("set",): file.set}
    written |= {("variants", name, "set"): v.set for name, v in file.variants.items()}
    paths = [*known_paths(), *argument_paths(written, document.where)]
    for place, settings in [("factor", file.factor), *file.groups.items()]:
        where = document.where(*(("factor",) if settings is file.factor else ("groups", place)))
        for one in settings:
            if (settings is file.factor and one in file.groups) or one in checked:
                continue
            if wrong := why_no_factor(one, paths, file.groups):
                mistakes.append(f"{where}: {place} {one!r} {wrong}")
    mistakes += [
        f"{document.where('groups', one)}: {one!r} is a setting; give the group another name"
        for one in file.groups
        if one in paths
    ]
    if file.article is None:
        mistakes += [
            f"{document.where('variants', name, 'paper')}: paper names a row of the article, and "
            "the study has none; drop it, or give article: {csv: ..., source: ...}"
            for name, row in file.variants.items()
            if row.paper
        ]
    return mistakes + _of_claims(file, document)


def _of_claims(file: StudyFile, document: yaml.Document) -> list[str]:
    """What is wrong with the study's own claims; rows of other studies are not looked for."""
    mistakes = []
    for at, claim in enumerate(file.claims):
        where = f"{document.where('claims', str(at))}: claim {claim.id}:"
        own = [row.rpartition("/") for row in claim.sides]
        rows = {row for study, _, row in own if study in ("", names.short(file.study))}
        mistakes += [
            f"{where} {row!r} is not a variant; {names.nearest(row, file.variants)}"
            for row in rows
            if row not in file.variants
        ]
        untimed = [row for row in rows & {*file.variants} if not file.variants[row].network]
        if claim.metric == "inference" and (file.benchmark is None or untimed):
            mistakes.append(
                f"{where} nothing could judge it: inference is timed by lsa bench; give benchmark: "
                "its file, and network: to each of the rows"
            )
        if not {*claim.tiers} & {*file.tiers}:
            mistakes.append(
                f"{where} nothing could judge it: it has a meaning at tier "
                f"{' and '.join(claim.tiers)}, the study has {', '.join(file.tiers)}"
            )
    return mistakes
