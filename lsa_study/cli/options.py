"""What several commands share: their options, and how they read studies."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lsa_study.config import study
from lsa_study.config.asked import RESULTS as RESULTS
from lsa_study.config.asked import every_asked, latest
from lsa_study.config.contrast import check_claims, check_contrast
from lsa_study.config.find import find_asked, find_study, side_tiers
from lsa_study.config.grid import MANY
from lsa_study.config.names import nearest
from lsa_study.config.parts import check_parts
from lsa_study.config.remember import named
from lsa_study.config.study import Study
from lsa_study.config.values import MOST_SEEDS
from lsa_study.errors import ConfigError

Studies = Annotated[list[str], typer.Argument(metavar="STUDY...", help="stem, path, or all")]
MaybeStudies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY...]")]


def _tier(tier: str | None) -> str | None:
    if tier is not None and tier not in study.TIERS:
        raise ConfigError(f"--tier {tier}: no such tier; {nearest(tier, study.TIERS)}")
    return tier


Tier = Annotated[str, typer.Option(help="toy, proxy or paper", callback=_tier)]
SomeTier = Annotated[str | None, typer.Option(help="toy, proxy or paper", callback=_tier)]
MaybeTier = Annotated[
    str | None, typer.Option(help="toy, proxy or paper; else all", callback=_tier)
]
FirstTier = Annotated[
    str | None, typer.Option(help="toy, proxy or paper; else a study's first", callback=_tier)
]
Seeds = Annotated[str | None, typer.Option(help="such as 0-2 or 0,3; else the tier's")]
Only = Annotated[str | None, typer.Option(help="variants to keep, as globs: net6*,elsa")]


def _last(param: typer.CallbackParam, given: list[str] | None) -> list[str]:
    """Keep the last value of a key, as a script's own may stand before others, and say so."""
    kept, flag = latest(given or ()), param.opts[0]
    for one in given or ():
        if (last := kept[one.partition("=")[0].strip()]) != one.strip():
            typer.echo(f"lsa: {flag} {one}: {flag} {last} counts, the later one", err=True)
    return [*kept.values()]


Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="a.b=c, for every run", callback=_last)
]
Grid = Annotated[
    list[str] | None,
    typer.Option("--grid", help="a.b=c,d: a row for each value; again: products", callback=_last),
]
Many = Annotated[bool, typer.Option("--yes", help=f"more than {MANY} rows of a grid are meant")]
As = Annotated[str | None, typer.Option("--as", help="name of a side study; else derived")]


def _folder(text: str) -> Path:
    """Take no empty text, which may be a variable that is not set, for the folder one is in."""
    if not str(text):
        raise typer.BadParameter("names no folder; give one, such as --results .")
    if Path(text).is_file():
        raise typer.BadParameter(f"{text} is a file; give a folder")
    return Path(text)


def _noted(folder: Path) -> Path:
    """Name what is damaged of what the folder remembers; it counts as not asked for."""
    for tier in study.TIERS:
        for line in every_asked(folder, tier)[1]:
            typer.echo(f"lsa: {line}", err=True)
    return folder


def _meant(folder: Path) -> Path:
    """Refuse a folder that is not there beside one whose name is nearly the same."""
    _noted(folder)
    if folder.exists() or folder == RESULTS:
        return folder
    beside = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    for close in difflib.get_close_matches(folder.name, beside, n=1):
        hint = f"did you mean {folder.parent / close}?"
        raise ConfigError(f"--results {folder}: no such folder; {hint}")
    return folder


def _there(folder: Path) -> Path:
    """Refuse a folder that is not there, unless nobody asked for it."""
    if _meant(folder).is_dir() or folder == RESULTS:
        return folder
    raise ConfigError(f"--results {folder}: no such folder; give the one that lsa run has made")


_folder_option = partial(typer.Option, parser=_folder, metavar="<path>")
Results = Annotated[Path, _folder_option(help="folder of runs, tables and plots", callback=_noted)]
OldResults = Annotated[Path, _folder_option(help="folder of runs", callback=_there)]
"""Of commands that only read it."""
SomeResults = Annotated[Path, _folder_option(help="folder of runs, tables, plots", callback=_meant)]
"""Of commands that write beside what they read, be it that nothing was run yet."""
Confound = Annotated[
    list[str] | None, typer.Option(help="a setting that may differ too; the table gets a dagger")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at once on each GPU, else in all; 1")]
Again = Annotated[bool, typer.Option("--again", help="train also what runs.parquet alone knows")]
Site = Annotated[Path | None, typer.Option(help="your cluster; else experiments/cluster.yaml")]
Partition = Annotated[str | None, typer.Option(help="SLURM partition")]


def parse_seeds(text: str | None) -> list[int] | None:
    """Read ``0-2`` or ``0,3,5`` as a list of seeds."""
    if text is None:
        return None
    seeds: list[int] = []
    mistakes: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip(), re.ASCII)
        if found is None:
            raise ConfigError(f"--seeds {text}: not seeds; write 0-2 or 0,3,5")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            right = f"write the smaller one first, as {last}-{first}"
            mistakes.append(f"--seeds {part.strip()}: holds no seed; {right}")
        seeds += range(first, min(last, first + MOST_SEEDS) + 1)
    if mistakes:
        raise ConfigError(*mistakes)
    return list(dict.fromkeys(seeds))


@dataclass(frozen=True)
class Selection:
    """The runs that a command is about, as the options that most commands begin with say."""

    study: Studies
    tier: SomeTier = "toy"
    seeds: Seeds = None
    only: Only = None
    overrides: Overrides = None
    results: Results = RESULTS
    grid: Grid = None

    def load(
        self,
        allowed: Sequence[str] | None = None,
        *,
        recall: bool = False,
        alias: str | None = None,
        many: bool = False,
    ) -> list[Study]:
        """Read the studies, each held to its contract; ``--only`` may spare some of several.

        Args:
            allowed: settings that may differ beside the factor.
            recall: as asked for before in ``results``; else side studies alone are known there.
            alias: the name of the side study that this is; None: a derived one, if it is one.
            many: more rows of a grid are meant than one is likely to.
        """
        seeds, asked = parse_seeds(self.seeds), study.expand_names(self.study)
        loaded, files = list[Study](), dict[str, Path]()
        mistakes, unmatched = list[str](), list[str]()
        if alias is not None and len(asked) > 1:
            raise ConfigError(f"--as {alias}: {len(asked)} studies; ask for each with its own name")
        for name in asked:
            try:
                tier = self.tier or self._only_tier(name)
                known = self.results if recall or side_tiers(self.results, name, [tier]) else None
                one = study.load_study(
                    name if known else find_study(name, self.results), tier=tier, seeds=seeds,
                    only=self.only, overrides=self.overrides, recall=known, grid=self.grid or (),
                    many=many, results=self.results,
                )  # fmt: skip
                check_contrast(one, allowed or ())
                check_parts(one.variants, partial(one.document.where, "variants"))
                found = named(one, self.results, alias)
                check_claims(found, self.results)
                path = one.document.path
                if not (first := files.setdefault(found.name, path)).samefile(path):
                    raise ConfigError(f"{path}: is named as {first} is; give it another name")
            except study.NoVariant as error:
                unmatched += error.mistakes
                continue
            except ConfigError as error:
                mistakes += error.mistakes
                continue
            if recall and found is one:  # fewer seeds are no other study
                found = replace(one, seeds=tuple(sorted({*one.seeds, *one.asked.seeds})))
            loaded.append(found)
        if self.only and loaded:  # what matches in one of them is meant
            rows = sorted({row for one in loaded for row in one.file.variants})
            unmatched = [
                f"--only {part}: matches no variant of {', '.join(asked)}; {nearest(part, rows)}"
                for part in loaded[0].unmatched
                if all(part in one.unmatched for one in loaded)
            ]
        if mistakes := mistakes or unmatched:
            raise ConfigError(*dict.fromkeys(mistakes))
        return loaded

    def _only_tier(self, name: str) -> str:
        """The tier of a side study that is at one alone; of a study its first."""
        tiers = side_tiers(self.results, name)
        if len(tiers) > 1:
            raise ConfigError(f"{name}: is at tiers {', '.join(tiers)}; choose one with --tier")
        return tiers[0] if tiers else study.tiers_of(str(find_asked(name, "", self.results)[0]))[0]


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a ``Selection``, its first parameter, before its own.

    One that it has itself, by the same name, stands in the place of the shared one.
    """
    shared = inspect.signature(Selection, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    every = {**shared, **{one.name: one for one in own}}

    @functools.wraps(command)
    def parsed(**given: Any) -> None:
        chosen = Selection(**{name: given[name] for name in shared})
        command(chosen, **{one.name: given[one.name] for one in own})

    vars(parsed)["__signature__"] = inspect.Signature([*every.values()])
    return parsed
