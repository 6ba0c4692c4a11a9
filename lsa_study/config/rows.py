"""The rows of an experiment file at a tier: their settings, and the rows that they begin from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lsa_study.config import names, shipped, yaml
from lsa_study.config.asked import good_seeds
from lsa_study.config.experiment import Resources, StudyFile, wrong_names
from lsa_study.config.find import find_asked
from lsa_study.config.grid import Expanded, expand
from lsa_study.config.layers import Layers, validate
from lsa_study.config.networks import science_of_stem
from lsa_study.config.operators import science_of
from lsa_study.config.outside import bound
from lsa_study.config.settings import Model, Settings
from lsa_study.errors import ConfigError, all_at_once, noting

_Network = tuple[str, dict[str, Any] | None, dict[str, Any]]
NOT_SET = {
    "tier": "comes from --tier", "seed": "comes from seeds: or --seeds",
    "outside": "is filled in by itself",
}  # fmt: skip
"""Settings that no layer may hold, and why."""


@contextmanager
def opened(
    path: Path, tier: str, flags: Sequence[str], *, many: bool
) -> Iterator[tuple[StudyFile, Expanded]]:
    """Read an experiment file, its grids written out, and name its mistakes before any inside.

    Raises:
        ConfigError: all mistakes of the file; or it has no such tier.
    """
    expanded = expand(yaml.read(path), flags, many=many)
    document = expanded.document
    with all_at_once(expanded.mistakes) as mistakes:
        file = validate(StudyFile, document.data, document.where)
        mistakes += wrong_names(file, document)
        if tier not in file.tiers:
            has = ", ".join(file.tiers)
            raise ConfigError(f"{path}: {file.study} has no tier {tier}; it has {has}")
        yield file, expanded


class Rows:
    """Resolves the rows of an experiment file at a tier.

    Args:
        overrides: ``key=value`` for every row, over all that is written.
        recall: a results folder, whose side studies rows may begin from.
        prefix: what stands before the names of rows where they are another study's.
    """

    def __init__(
        self, file: StudyFile, document: yaml.Document, tier: str, overrides: Sequence[str],
        recall: Path | None = None, prefix: str = "",
    ) -> None:  # fmt: skip
        self.file, self.document, self.overrides = file, document, overrides
        self.tier, self.recall, self.prefix = tier, recall, prefix
        self.starts: dict[str, Settings] = {}
        self._others: dict[str, Rows] = {}
        base = self._base(tier)
        data = dict(base.data)
        usual = data.pop("seeds", [0])
        source = document if file.seeds else base
        self.seeds, self._mistakes = tuple[int, ...](), list[str]()
        with noting(self._mistakes):
            self.seeds = good_seeds(file.seeds or usual, source.where("seeds"))
        self._resources, self._settings = Layers(), Layers()
        self._resources.add(base, data.pop("resources", {}), ("resources",))
        with noting(self._mistakes):
            self._resources.add(document, file.resources, ("resources",))
        self._settings.add(base, data)
        if file.use:
            with noting(self._mistakes):
                self._settings.use(self._presets, file.use, document.where("use"), tier=tier)
        with noting(self._mistakes):
            self._settings.add(document, file.set, ("set",))
        if file.stop:
            self._settings.set("runtime.stop", file.stop.model_dump(), document.where("stop"))

    def resolve(self, names: Sequence[str]) -> tuple[dict[str, Settings], dict[str, Resources]]:
        """Settings and resources of these rows, by name."""
        settings: dict[str, Settings] = {}
        resources: dict[str, Resources] = {}
        mistakes: dict[str, list[str]] = {}
        for name in names:
            wrong: list[str] = []
            with noting(wrong):
                settings[name] = self.settings(name)
            with noting(wrong):
                resources[name] = self.resources(name)
            for mistake in wrong:
                mistakes.setdefault(mistake, []).append(name)
        if mistakes:
            raise ConfigError(
                *(m if of == names else f"{m} (in {_some(of)})" for m, of in mistakes.items())
            )
        return settings, resources

    def references(self, variants: Mapping[str, Settings]) -> dict[str, Settings]:
        """The rows that a stopping rule measures these by; a baseline has none."""
        written = self.file.variants
        others = {name: written[name].against or self.file.baseline for name in variants}
        return {
            name: self.settings(other)
            for name, other in others.items()
            if variants[name].runtime.stop is not None and other != name
        }

    def resources(self, name: str) -> Resources:
        """What a run of this row asks of a cluster."""
        layers = self._resources.copy()
        asked = self.file.variants[name].resources
        layers.add(self.document, asked, ("variants", name, "resources"))
        return validate(Resources, layers.data, layers.where)

    def settings(self, name: str, later: tuple[str, ...] = ()) -> Settings:
        """One row; where it begins from another, that one first, and so on to ``later``."""
        settings, where = self._alone(name)
        start, place = settings.train.start, where("train", "start")
        if start is not None and start.recipe is not None:
            raise ConfigError(f"{place}: train.start.recipe is filled in by itself; drop it")
        if start is None or start.weights is not None:
            return settings
        rows = self if start.study is None else self._other(start.study, place)
        row = start.row or rows._of_network(settings.model, place)
        if row not in rows.file.variants:
            hint = names.nearest(row, rows.file.variants)
            raise ConfigError(f"{place}: train.start.row {row!r} is no row; {hint}")
        here, there = f"{self.prefix}{name}", f"{rows.prefix}{row}"
        if there in (here, *later):
            circle = " from ".join([*later, here, there])
            raise ConfigError(
                f"{place}: {circle}: no row is first; let one be initialised at random"
            )
        before = self.starts[name] = rows.settings(row, (*later, here))
        if reason := _why_not(settings, before):
            raise ConfigError(f"{place}: train.start: {there}: {reason}")
        update = {"row": row, "recipe": before.recipe()}
        if settings.task.kind != "classify":
            update["head"] = "drawn"  # whatever is written: the classifier is not read
        train = settings.train.model_copy(update={"start": start.model_copy(update=update)})
        return settings.model_copy(update={"train": train})

    def _alone(self, name: str) -> tuple[Settings, Callable[..., str]]:
        """One row as it is written, and the place of each of its settings."""
        layers, variant = self._settings.copy(), self.file.variants[name]
        mistakes = [*self._mistakes]
        if variant.use:
            place = self.document.where("variants", name, "use")
            with noting(mistakes):
                layers.use(self._presets, variant.use, place, tier=self.tier)
        with noting(mistakes):
            layers.add(self.document, variant.set, ("variants", name, "set"))
        for override in self.overrides:
            key, equals, text = override.partition("=")
            place = f"--set {override}"
            with noting(mistakes):
                if not equals or not key:
                    raise ConfigError(f"{place}: not a setting; write --set key=value")
                layers.set(key.strip(), yaml.parse(text, place), place)
        for key in [one for one in NOT_SET if one in layers.data]:
            mistakes.append(f"{layers.where(key)}: {key} {NOT_SET[key]}; drop it")
            del layers.data[key]
        layers.set("tier", self.tier, f"--tier {self.tier}")
        with noting(mistakes):
            settings = validate(Settings, layers.data, layers.where)
        if mistakes:
            raise ConfigError(*mistakes)
        return bound(settings, layers.where), layers.where

    def _other(self, name: str, place: str) -> Rows:
        """The rows of another study, or side study, at this tier."""
        if name == self.file.study:
            raise ConfigError(f"{place}: train.start.study={name!r} is this study; drop study")
        if name not in self._others:
            try:
                path, side = find_asked(name, self.tier, self.recall, self.document.path.parent)
                grids, overrides = (side.grid, side.overrides) if side else ((), ())
                with opened(path, self.tier, grids, many=True) as (file, expanded):
                    self._others[name] = Rows(
                        file, expanded.document, self.tier, overrides, self.recall, f"{name}/"
                    )
            except ConfigError as error:
                # A path would mean another file in every folder.
                said = (one.removesuffix(" Or give a path to a .yaml") for one in error.mistakes)
                raise ConfigError(*(f"{place}: train.start.study: {one}" for one in said)) from None
        return self._others[name]

    def _of_network(self, model: Model, place: str) -> str:
        """The one row that has this network."""
        found = [row for row, own in self._networks.items() if own == _network(model)]
        if len(found) == 1:
            return found[0]
        study = self.prefix.removesuffix("/")
        said = f"{_some(found)} of {study} have" if found else f"no row of {study} has"
        rows = found or [*self.file.variants]
        raise ConfigError(
            f"{place}: train.start: {said} this network ({model.backbone}, {model.op.kind}); name "
            f"the row, {{study: {study}, row: ...}}, of {', '.join(rows)}"
        )

    @cached_property
    def _networks(self) -> dict[str, _Network]:
        return {row: _network(self._alone(row)[0].model) for row in self.file.variants}

    @cached_property
    def _presets(self) -> yaml.Document:
        return self._base("presets")

    def _base(self, name: str) -> yaml.Document:
        file = Path("base") / f"{name}.yaml"
        beside = self.document.path.parent / file
        return yaml.read(beside if beside.exists() else shipped.find(f"experiments/{file}"))


def _network(model: Model) -> _Network:
    """What a network computes, whatever its rate of stochastic depth: backbone, stem, operator."""
    op = science_of(model.op)
    op.pop("implementation", None)
    return model.backbone, science_of_stem(model.backbone, model.stem), op


def _why_not(later: Settings, first: Settings) -> str | None:
    """Why the weights of one row cannot be those that another begins from."""
    if first.task.kind != "classify":
        return (
            f"that row is trained to {first.task.kind}, and what a run begins from is a "
            "classifier's; give a row that classifies"
        )
    here, there = (_network(one.model) for one in (later, first))
    kinds = here[2]["kind"], there[2]["kind"]
    outside = any(":" in kind for kind in kinds)  # may well have the weights of another
    for what, own, other in (
        ("model.backbone", here[0], there[0]), ("model.stem", here[1], there[1]),
        ("model.op.kind", *(("", "") if outside else kinds)),
    ):  # fmt: skip
        if own != other:
            return (
                f"{what} is {own!r} here and {other!r} there; give a row of the same network, or "
                "of another study leave out row"
            )
    return None


def _some(rows: Sequence[str]) -> str:
    return ", ".join(rows[:5]) + f" and {len(rows) - 5} more" * (len(rows) > 5)
