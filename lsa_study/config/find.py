"""Where the file of a study is: by its path, its stem, or a name that a results folder knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from lsa_study.config import names, shipped, yaml
from lsa_study.config.asked import Asked, every_asked, memory, read_asked
from lsa_study.config.settings import Tier
from lsa_study.errors import ConfigError

TIERS: tuple[Tier, ...] = get_args(Tier)
ARTICLE = ("table1", "table2", "table3", "table4", "table5", "fig2")
"""What ``all`` means: the studies whose rows are trained."""


def find_study(study: str, recall: Path | None = None, beside: Path | None = None) -> Path:
    """Find an experiment file by its path, its stem, or its name in a results folder.

    Args:
        study: any of these.
        recall: a results folder: names of studies that were run there from a path are known.
        beside: a folder whose files are known by their stems too.

    Raises:
        ConfigError: there is none; the message names the nearest, or those that exist. Or the file
            that was run is gone, or holds another study now.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    home = home_of(recall, study)
    if home is not None and home.is_file():
        if (held := yaml.read(home).data.get("study")) != study and names.short(str(held)) != study:
            raise ConfigError(f"{study}: its file {home} is of study {held} now; give a path")
        return home
    known = list_studies()
    if study in known:
        return known[study]
    if beside is not None and (near := beside / f"{study}.yaml").is_file():
        return near
    if home is not None:
        raise ConfigError(f"{study}: its file {home} is gone; put it back, or give its new path")
    if path.suffix in (".yaml", ".yml"):
        beside_it = sorted(map(str, path.parent.glob("*.y*ml")))
        raise ConfigError(f"{study}: no such file; {names.nearest(study, beside_it)}")
    hint = names.nearest(study, ["all", *known, *(remembered(recall) if recall else ())])
    raise ConfigError(f"{study}: no such study; {hint} Or give a path to a .yaml")


def home_of(results: Path | None, name: str) -> Path | None:
    """The file of a study that was run from a path in a results folder, be it gone; else None."""
    return None if results is None else remembered(results).get(name)


def own_claims(results: Path) -> list[str]:
    """The studies that were run from a path in a results folder and have claims of their own."""
    found = []
    for name, path in remembered(results).items():
        with contextlib.suppress(ConfigError):  # what reads it says what is wrong
            found += [name] if yaml.read(path).data.get("claims") else []
    return found


def remembered(results: Path) -> dict[str, Path]:
    """The files of the studies that were run from a path in a results folder, by their names."""
    asked = [item for tier in TIERS for item in every_asked(results, tier)[0].items()]
    plain = [(name, one.path) for name, one in asked if not one.study]
    sides = [(one.of, one.study) for _, one in asked if one.study]
    beside, here, found = results.resolve().parent, Path.cwd(), dict[str, Path]()
    for name, text in [*plain, *sides]:
        if not text.endswith((".yaml", ".yml")):
            continue
        if (name, "") in plain and name in list_studies():  # run by its stem
            continue
        if (name, text) not in plain and shipped_at(name).is_file():  # of a side study alone
            continue
        path = beside / text
        path = path.relative_to(here) if path.is_relative_to(here) else path
        if name not in found or (path.is_file() and not found[name].is_file()):
            found[name] = path
    return found


def shipped_at(name: str) -> Path:
    """Where a study of this name comes with the package, if one does."""
    return shipped.ROOT / "experiments" / f"{name}.yaml"


def list_studies() -> dict[str, Path]:
    """The experiment files that can be named by their stems, those here before those shipped."""
    folders = [shipped.ROOT / "experiments", Path("experiments")]
    files = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    return {stem: files[stem] for stem in sorted(files.keys() - {"cluster", "claims"})}


def expand_names(names: Sequence[str]) -> list[str]:
    """Replace ``all`` by the article's studies; keep the order, drop repeats."""
    wide = [inner for name in names for inner in (ARTICLE if name == "all" else (name,))]
    return list(dict.fromkeys(wide))


def tiers_of(study: str) -> list[str]:
    """The tiers a study can be run at; the first is shown where none is asked for."""
    tiers = yaml.read(find_study(study)).data.get("tiers")
    return [str(tier) for tier in tiers] if isinstance(tiers, list) and tiers else [*TIERS]


def side_tiers(results: Path | None, name: str, tiers: Iterable[str] = TIERS) -> list[Tier]:
    """The tiers among these at which there is a side study of this name.

    Raises:
        ConfigError: what is remembered of it is damaged.
    """
    try:
        find_study(name)
        return []
    except ConfigError:
        asked = {tier: read_asked(results, tier, name) for tier in TIERS if tier in tiers}
    return [tier for tier, one in asked.items() if one is not None and one.study]


def find_asked(
    study: str, tier: str, recall: Path | None, beside: Path | None = None
) -> tuple[Path, Asked | None]:
    """The file of a study, or that of a side study's with what this was asked for with."""
    try:
        return find_study(study, recall, beside), None
    except ConfigError:
        if home_of(recall, study) is not None:
            raise
        side = read_asked(recall, tier, study)
        if recall is None or side is None or not side.study:
            if others := side_tiers(recall, study):
                raise ConfigError(
                    f"{study}: is a side study of tier {', '.join(others)}; give --tier {others[0]}"
                ) from None
            asked = [every_asked(recall, one)[0] for one in TIERS] if recall else []
            sides = [name for at in asked for name, one in at.items() if one.study]
            if (hint := names.nearest(study, sides)).startswith("did"):
                raise ConfigError(f"{study}: no such study or side study; {hint}") from None
            raise
    if not side.study.endswith((".yaml", ".yml")):
        return find_study(side.study), side
    if not (path := recall.resolve().parent / side.study).is_file():
        raise ConfigError(
            f"{memory(recall, tier, study)}: its study's file {path} is gone; put it back there"
        )
    return path, side
