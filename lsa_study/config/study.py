"""From an experiment file to its runs: variants x seeds, and identities."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from lsa_study.config import yaml
from lsa_study.config.layers import Keys, Layers, is_setting, validate
from lsa_study.config.settings import Settings
from lsa_study.errors import ConfigError

Tier = Literal["toy", "proxy", "paper"]
TIERS: tuple[Tier, ...] = ("toy", "proxy", "paper")
ARTICLE = ("table1", "table2", "table3", "table4", "table5", "fig2")
"""What ``all`` means: the studies whose rows are trained."""


class NoVariant(ConfigError):
    """``--only`` matches no variant of a study."""


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Resources(_Written):
    """What one run asks of a cluster; never part of its identity."""

    nodes: PositiveInt = 1
    gpus: PositiveInt = 1
    """GPUs per node."""
    cpus: PositiveInt = 8
    """CPU cores per GPU."""
    memory_gb: PositiveInt = 32
    hours: PositiveFloat = 24.0


class Variant(_Written):
    """One row: what it sets, and which row of the article's table it stands beside."""

    label: str
    """The article's name of the row."""
    set: dict[str, Any] = {}
    against: str | None = None
    """The row it is compared with where that is not the study's baseline."""
    paper: dict[str, str | int | float] = {}
    """Columns and values that single out the article's row in its CSV; empty: it has none."""
    columns: dict[str, str] = {}
    """Further cells shown beside the label, such as the article's check marks."""
    note: str | None = None
    network: str | None = None
    """Its name in the study's benchmark, whose figures then stand in its row."""
    resources: dict[str, Any] = {}


class Article(_Written):
    """Where the article's numbers stand."""

    csv: str
    """Path relative to the experiment file."""
    column: str = "acc1"
    source: str


class StudyFile(_Written):
    """An experiment file as written."""

    study: str
    title: str
    question: str
    factor: list[str] = Field(min_length=1)
    """Dotted settings that may differ between the rows; nothing else may."""
    baseline: str
    tiers: list[Tier] = list(TIERS)
    set: dict[str, Any] = {}
    variants: dict[str, Variant] = Field(min_length=1)
    article: Article
    benchmark: str | None = None
    """What ``lsa bench`` wrote, as a path relative to the experiment file."""
    resources: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """One training run: a variant with a seed."""

    study: str
    variant: str
    label: str
    seed: int
    settings: Settings
    identity: str
    resources: Resources
    start: str | None = None
    """Identity of the run whose weights it begins from, if it does."""

    @property
    def name(self) -> str:
        """The name of its folder; only the identity at the end matters."""
        return f"{self.variant}-s{self.seed}-{self.identity}"


@dataclass(frozen=True)
class Study:
    """A study at one tier: its file, its variants' settings (seed left at 0) and its seeds."""

    file: StudyFile
    document: yaml.Document
    tier: str
    seeds: tuple[int, ...]
    variants: dict[str, Settings]
    resources: dict[str, Resources]
    starts: dict[str, Settings]
    """Of the variants that begin from another row: the settings of that row."""

    @property
    def name(self) -> str:
        """The study's stem, such as ``table1``."""
        return self.file.study

    def runs(self) -> list[Run]:
        """All runs, seed 0 of every row first, so that a table is balanced at any moment."""
        return [
            self._run(variant, settings, seed)
            for seed in self.seeds
            for variant, settings in self.variants.items()
        ]

    def _run(self, variant: str, settings: Settings, seed: int) -> Run:
        seeded = settings.model_copy(update={"seed": seed})
        label = self.file.variants[variant].label
        resources, start = self.resources[variant], self.starts.get(variant)
        before = None if start is None else start.identities([seed])[seed]
        return Run(self.name, variant, label, seed, seeded, seeded.identity(), resources, before)

    def reference_of(self, variant: str) -> str:
        """The row that ``variant`` is compared with; itself for a baseline."""
        return self.file.variants[variant].against or self.file.baseline


def repository_folder(name: str) -> Path:
    """Find ``experiments`` or ``results``: under the working directory, else beside the package."""
    here = Path(name)
    return here if here.exists() else Path(__file__).resolve().parents[2] / name


def find(study: str) -> Path:
    """Find an experiment file by path or stem.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    folder = repository_folder("experiments")
    known = sorted(p.stem for p in folder.glob("*.yaml") if _is_study(p))
    if study in known:
        return folder / f"{study}.yaml"
    raise ConfigError(
        f"{study}: no such study; known: all, {', '.join(known)}, or a path to a .yaml"
    )


def _is_study(path: Path) -> bool:
    return path.stem not in ("cluster", "claims")


def expand_names(names: Sequence[str]) -> list[str]:
    """Replace ``all`` by the article's studies; keep the order, drop repeats."""
    wide = [inner for name in names for inner in (ARTICLE if name == "all" else (name,))]
    return list(dict.fromkeys(wide))


def first_tier(study: str) -> str:
    """The tier to look at where none is asked for: toy, or the study's first if it has no toy."""
    tiers = yaml.read(find(study)).data.get("tiers")
    return str(tiers[0]) if isinstance(tiers, list) and tiers else TIERS[0]


def load(
    study: str | Path,
    *,
    tier: str = "toy",
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    overrides: Sequence[str] = (),
) -> Study:
    """Read an experiment file and resolve every variant at a tier.

    Raises:
        ConfigError: all mistakes of the file, its tier and the overrides at once.
    """
    if tier not in TIERS:
        raise ConfigError(f"--tier {tier}: no such tier; known: {', '.join(TIERS)}")
    path = find(str(study))
    document = yaml.read(path)
    file = validate(StudyFile, document.data, lambda keys: document.where(*keys))
    _check_names(file, document)
    if tier not in file.tiers:
        raise ConfigError(
            f"{path}: {file.study} has no tier {tier}; it has {', '.join(file.tiers)}"
        )
    base, tier_seeds, tier_resources = _tier(path, tier)
    base.add(document, file.set, ("set",))
    chosen = _choose(file, only)
    variants: dict[str, Settings] = {}
    resources: dict[str, Resources] = {}
    starts: dict[str, Settings] = {}
    mistakes: dict[str, list[str]] = {}

    def resolve(name: str, later: tuple[str, ...] = ()) -> Settings:
        """One row; where it begins from another, that one first."""
        settings = _resolve(base, document, name, file.variants[name], overrides)
        row = _start_row(file, document, name, settings, later)
        if row is None:
            return settings
        starts[name] = resolve(row, (*later, name))
        return _filled_in(settings, starts[name])

    for name in chosen:
        variant = file.variants[name]
        try:
            variants[name] = resolve(name)
            asked = {**tier_resources, **file.resources, **variant.resources}
            place = functools.partial(_at, document.where("variants", name, "resources"))
            resources[name] = validate(Resources, asked, place)
        except ConfigError as error:
            for mistake in error.mistakes:
                mistakes.setdefault(mistake, []).append(name)
    if mistakes:
        raise ConfigError(*(_in_variants(m, names, chosen) for m, names in mistakes.items()))
    loaded = Study(file, document, tier, tuple(seeds or tier_seeds), variants, resources, starts)
    _check_distinct(loaded)
    return loaded


def _resolve(
    base: Layers,
    document: yaml.Document,
    name: str,
    variant: Variant,
    overrides: Sequence[str],
) -> Settings:
    layers = base.copy()
    layers.add(document, variant.set, ("variants", name, "set"))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: not a setting; write --set key=value")
        layers.set(key.strip(), yaml.scalar(text), f"--set {override}")
    return validate(Settings, layers.data, layers.where)


def _start_row(
    file: StudyFile,
    document: yaml.Document,
    name: str,
    settings: Settings,
    later: tuple[str, ...],
) -> str | None:
    start = settings.train.start
    if start is None:
        return None
    place = document.where("variants", name)
    if start.recipe is not None:
        raise ConfigError(f"{place}: train.start.recipe is filled in by itself; drop it")
    if start.row is not None and start.row not in file.variants:
        known = ", ".join(file.variants)
        raise ConfigError(f"{place}: train.start.row {start.row!r} is no row; known: {known}")
    if start.row in (name, *later):
        circle = " from ".join([*later, name, start.row])
        raise ConfigError(f"{place}: {circle}: no row is first; let one begin with drawn weights")
    return start.row


def _filled_in(settings: Settings, before: Settings) -> Settings:
    assert settings.train.start is not None
    start = settings.train.start.model_copy(update={"recipe": before.recipe()})
    train = settings.train.model_copy(update={"start": start})
    return settings.model_copy(update={"train": train})


def _at(place: str, keys: Keys) -> str:
    return place


def _in_variants(mistake: str, names: list[str], chosen: list[str]) -> str:
    return mistake if names == chosen else f"{mistake} (in {', '.join(names)})"


def _tier(study_path: Path, tier: str) -> tuple[Layers, list[int], dict[str, Any]]:
    beside = study_path.parent / "base" / f"{tier}.yaml"
    path = beside if beside.exists() else repository_folder("experiments") / "base" / f"{tier}.yaml"
    document = yaml.read(path)
    data = dict(document.data)
    seeds, resources = data.pop("seeds", [0]), data.pop("resources", {})
    if not isinstance(seeds, list) or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ConfigError(
            f"{document.where('seeds')}: seeds = {seeds!r}; give a list like [0, 1, 2]"
        )
    layers = Layers()
    layers.set("tier", tier, str(path))
    layers.add(document, data)
    return layers, seeds, resources


def _check_names(file: StudyFile, document: yaml.Document) -> None:
    mistakes = []
    known = ", ".join(file.variants)
    if file.baseline not in file.variants:
        place = document.where("baseline")
        mistakes.append(f"{place}: baseline {file.baseline!r} is not a variant; known: {known}")
    for name, variant in file.variants.items():
        if variant.against is not None and variant.against not in file.variants:
            place = document.where("variants", name, "against")
            mistakes.append(f"{place}: {variant.against!r} is not a variant; known: {known}")
    for factor in file.factor:
        if not is_setting(factor):
            place = document.where("factor")
            mistakes.append(f"{place}: factor {factor!r} is not a setting; give a dotted path")
    if mistakes:
        raise ConfigError(*mistakes)


def _choose(file: StudyFile, only: str | None) -> list[str]:
    if only is None:
        return list(file.variants)
    globs = only.split(",")
    chosen = [v for v in file.variants if any(fnmatch.fnmatchcase(v, g) for g in globs)]
    if not chosen:
        known = ", ".join(file.variants)
        raise NoVariant(f"--only {only}: matches no variant of {file.study}; known: {known}")
    return chosen


def _check_distinct(study: Study) -> None:
    seen: dict[str, str] = {}
    for name, settings in study.variants.items():
        identity = settings.identity()
        if identity in seen:
            place = study.document.where("variants", name)
            raise ConfigError(
                f"{place}: {name} has the same settings as {seen[identity]}; "
                "change one of them, or drop it"
            )
        seen[identity] = name


def distinct(studies: Iterable[Study]) -> list[Run]:
    """The runs of several studies, each identity once, seed 0 of every row first."""
    runs: dict[str, Run] = {}
    for study in studies:
        for run in study.runs():
            runs.setdefault(run.identity, run)
    return sorted(runs.values(), key=lambda run: run.seed)
