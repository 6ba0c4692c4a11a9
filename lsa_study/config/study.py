"""From an experiment file to its runs: variants x seeds, and identities."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lsa_study.config import names, yaml
from lsa_study.config.asked import Asked, about, good_seeds, plain_asked, runs_there, tidy
from lsa_study.config.experiment import Resources, StudyFile
from lsa_study.config.find import ARTICLE as ARTICLE
from lsa_study.config.find import TIERS as TIERS
from lsa_study.config.find import expand_names as expand_names
from lsa_study.config.find import find_asked
from lsa_study.config.find import find_study as find_study
from lsa_study.config.find import tiers_of as tiers_of
from lsa_study.config.grid import Expanded, Grid
from lsa_study.config.ledger import OwnClaim
from lsa_study.config.rows import Rows, opened
from lsa_study.config.settings import Settings
from lsa_study.config.task import METRICS, OF_TASK
from lsa_study.errors import ConfigError


class NoVariant(ConfigError):
    """``--only`` matches no variant of a study."""


@dataclass(frozen=True)
class RunSpec:
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
    reference: str | None = None
    """Identity of the run that ``runtime.stop`` compares it with, if it does."""

    @property
    def name(self) -> str:
        """The name of its folder; only the identity at the end matters."""
        return f"{names.short(self.variant)}-s{self.seed}-{self.identity}"


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
    overrides: tuple[str, ...] = ()
    """Those of ``--set`` that can change what a run is."""
    only: str | None = None
    alias: str = ""
    """Name of the side study that this is; empty: the study itself."""
    declared: tuple[int, ...] = ()
    """The seeds of its file, or of its tier, when it was first asked for in the results folder."""
    grid: Grid | None = None
    """The product that its rows are, if they are one."""
    flags: tuple[str, ...] = ()
    """Each ``--grid``."""
    asked: Asked = field(default_factory=Asked)
    """What the results folder remembers of it."""
    references: dict[str, Settings] = field(default_factory=dict)
    """Of the variants that ``runtime.stop`` may end: the settings of their reference row."""
    unmatched: tuple[str, ...] = ()
    """The globs of ``--only`` that match none of its rows, where others do."""

    @property
    def name(self) -> str:
        """The study's stem, such as ``table1``, see ``names.short``; or the side study's name."""
        return self.alias or names.short(self.file.study)

    @property
    def place(self) -> str:
        """Where the article has it, such as ``Table 3``; of a study of your own its name."""
        return self.file.article.source if self.file.article else self.name

    @property
    def heading(self) -> str:
        """Its title, after its place in the article if it has one."""
        return f"{self.place}: {self.file.title}" if self.file.article else self.file.title

    @property
    def claims(self) -> list[OwnClaim]:
        """Its own claims, each row with its study."""
        return [one.of(names.short(self.file.study)) for one in self.file.claims]

    @property
    def about(self) -> str:
        """One line for readers that names the overrides; empty for the study itself."""
        if not (self.alias or self.overrides or self.only or self.flags):
            return ""
        own = names.short(self.file.study)
        begin = f"side study of {own}" if self.alias else f"{own} as it was asked for here"
        return about(begin, [*self.overrides, *self.flags], self.only, self.seeds)

    @property
    def apart(self) -> dict[str, Any]:
        """What data of a side study say of it; nothing of the study itself."""
        if not self.about:
            return {}
        side = {"side_study": self.alias or None, "overrides": [*self.overrides]}
        side |= {"grid": [*self.flags]} if self.flags else {}
        return side | {"only": self.only, "about": self.about}

    @property
    def metrics(self) -> tuple[str, ...]:
        """By which its rows are judged, the first one before the others; see ``config.task``."""
        return OF_TASK[next(iter(self.variants.values())).task.kind]

    def article_column(self, variant: str, metric: str) -> str:
        """The column of the article's CSV that stands beside a metric of a row."""
        article = self.file.article
        usual = {self.metrics[0]: article.column, **article.columns} if article else {}
        return (usual | self.file.variants[variant].paper_columns).get(metric, metric)

    def runs(self) -> list[RunSpec]:
        """All runs, seed 0 of every row first, so that a table is balanced at any moment."""
        rows = self.variants, self.starts, self.references
        own, first, refs = ({name: one.identify() for name, one in of.items()} for of in rows)
        return [
            RunSpec(
                names.short(self.file.study), variant, self.file.variants[variant].label, seed,
                settings.model_copy(update={"seed": seed}), own[variant](seed),
                self.resources[variant], first[variant](seed) if variant in first else None,
                refs[variant](seed) if variant in refs else None,
            )
            for seed in self.seeds for variant, settings in self.variants.items()
        ]  # fmt: skip

    def reference_of(self, variant: str) -> str:
        """The row that ``variant`` is compared with; itself for a baseline."""
        return self.file.variants[variant].against or self.file.baseline


def load_study(
    study: str | Path,
    *,
    tier: str = "toy",
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    overrides: Sequence[str] | None = None,
    recall: Path | None = None,
    grid: Sequence[str] = (),
    many: bool = False,
    results: Path | None = None,
) -> Study:
    """Read an experiment file and resolve every variant at a tier.

    Args:
        study: a path or a stem.
        tier: one that the study has.
        seeds: None: the tier's.
        only: globs of variants to keep, separated by commas; None: all.
        overrides: ``key=value`` for every variant, over all that is written.
        recall: a results folder: seeds and overrides that are None are those that the study was
            asked for with there, if it was; names of its side studies are known too, to whose
            overrides and grids those given are added.
        grid: ``key=value,value`` whose product makes rows; see :mod:`lsa_study.config.grid`.
        many: more rows of a grid are meant than one is likely to; always with ``recall``.
        results: a results folder from whose studies rows may begin; None: ``recall``.

    Raises:
        ConfigError: all mistakes of the file, its tier, its presets and the overrides at once.
    """
    if tier not in TIERS:
        raise ConfigError(f"--tier {tier}: no such tier; {names.nearest(tier, TIERS)}")
    path, side = find_asked(str(study), tier, recall)
    only = side.only if side and only is None else only
    only = only and ",".join(glob.strip() for glob in only.split(","))
    flags = [*(side.grid if side else ()), *grid]
    with opened(path, tier, flags, many=many or recall is not None) as (file, expanded):
        document = expanded.document
        chosen, unmatched = _chosen(file, only, expanded.origin)
        stem, ran = names.short(file.study), partial(_ran, file, document, tier, recall)
        asked = side or plain_asked(recall, tier, stem, ran)
        if overrides is None and asked.overrides and not side:
            rows = Rows(file, document, tier, asked.overrides, results or recall)
            asked = _if_apart(asked, rows, chosen, document)
        given = asked.overrides if overrides is None else overrides
        given = [*side.overrides, *given] if side and overrides else given
        rows = Rows(file, document, tier, given, results or recall)
        variants, resources = rows.resolve(chosen)
        repeated = _fixed(overrides or (), expanded) or _repeated(variants, document)
        if mistakes := [*repeated, *_not_judged(file, variants, document)]:
            raise ConfigError(*mistakes)
        if any(one.partition("=")[0].strip() in ("task", "task.kind") for one in given):
            plain, _ = Rows(file, document, tier, (), results or recall).resolve(chosen)
            file = _without_article(file, plain, variants)
    return Study(
        file, document, tier, good_seeds(seeds or asked.seeds or rows.seeds, "--seeds"), variants,
        resources, rows.starts, tidy(rows.overrides), only if chosen != [*file.variants] else None,
        str(study) if side else "", tuple(asked.declared) or rows.seeds, expanded.grid,
        tuple(dict.fromkeys(flags)), asked, rows.references(variants), unmatched,
    )  # fmt: skip


def _chosen(
    file: StudyFile, only: str | None, origin: Mapping[str, str]
) -> tuple[list[str], tuple[str, ...]]:
    """The rows that ``--only`` keeps, by their names or those that ``--grid`` repeats.

    Also those of its globs that keep none.
    """
    globs = ("*" if only is None else only).split(",")
    if not all(globs):
        raise ConfigError(f"--only {only}: names nothing at a comma; write it like net6*,elsa")
    known = {row: [row, origin.get(row, row)] for row in file.variants}
    chosen = [row for row, own in known.items() if any(fnmatch.filter(own, glob) for glob in globs)]
    every = {name for own in known.values() for name in own}
    unmatched = tuple(glob for glob in globs if not fnmatch.filter(every, glob))
    if not chosen:
        hints = [f"{file.study}; {names.nearest(one, file.variants)}" for one in unmatched]
        wrong = zip(unmatched, hints, strict=True)
        raise NoVariant(*(f"--only {one}: matches no variant of {hint}" for one, hint in wrong))
    return chosen, unmatched


def _fixed(given: Sequence[str], expanded: Expanded) -> list[str]:
    """The overrides that give all rows of a grid one value of what makes them rows."""
    keys = {one: one.partition("=")[0].strip() for one in given}
    factors = expanded.grid.factors if expanded.grid else ()
    hint = "makes the rows of the grid; drop it, or give its values by"
    return [f"--set {one}: {k} {hint} --grid {k}=a,b" for one, k in keys.items() if k in factors]


def _repeated(variants: Mapping[str, Settings], document: yaml.Document) -> list[str]:
    """The rows that have the settings of an earlier one."""
    seen: dict[str, str] = {}
    first = {name: seen.setdefault(one.identity(), name) for name, one in variants.items()}
    return [
        f"{document.where('variants', name)}: {name} has the same settings as {other}; "
        "change one of them, or drop it"
        for name, other in first.items()
        if other != name
    ]


def _not_judged(
    file: StudyFile, variants: Mapping[str, Settings], document: yaml.Document
) -> list[str]:
    """Rows of another task than the first, and claims on what no run of the study records."""
    tasks = {name: settings.task.kind for name, settings in variants.items()}
    first, kind = next(iter(tasks.items()))
    mistakes = [
        f"{document.where('variants', name)}: task.kind={task!r}, that of {first} is {kind!r}: "
        "rows of one table have one task; make a study of each"
        for name, task in tasks.items()
        if task != kind
    ]
    known = OF_TASK[kind]
    return mistakes + [
        f"{document.where('claims', str(at))}: metric='{claim.metric}': no run records it, so "
        f"nothing could judge the claim; give {', '.join(known)}, params, macs, speed, inference "
        "or memory"
        for at, claim in enumerate(file.claims)
        if claim.metric in METRICS and claim.metric not in known
    ]


def _without_article(
    file: StudyFile, plain: Mapping[str, Settings], variants: Mapping[str, Settings]
) -> StudyFile:
    """The study, without the article's numbers where overrides gave its rows another task."""
    own, other = ({one.task.kind for one in rows.values()} for rows in (plain, variants))
    return file if own == other else file.model_copy(update={"article": None})


def _if_apart(asked: Asked, rows: Rows, chosen: Sequence[str], document: yaml.Document) -> Asked:
    """What was asked for, without overrides for some rows that make others equal to them."""
    with contextlib.suppress(ConfigError):
        if not _repeated(rows.resolve(chosen)[0], document):
            return asked
    return asked.model_copy(update={"overrides": []})


def _ran(file: StudyFile, document: yaml.Document, tier: str, results: Path | None) -> bool:
    """Whether a results folder holds a run of the study itself."""
    found, seeds = runs_there(results, tier)
    with contextlib.suppress(ConfigError):
        plain, _ = Rows(file, document, tier, (), results).resolve([*file.variants])
        return not all(found.isdisjoint(r.identities(seeds).values()) for r in plain.values())
    return False


def distinct(studies: Iterable[Study]) -> list[RunSpec]:
    """The runs of several studies, each identity once, seed 0 of every row first.

    Of a seed those first that a stopping rule measures others by.
    """
    runs: dict[str, RunSpec] = {}
    for study in studies:
        for run in study.runs():
            runs.setdefault(run.identity, run)
    return sorted(runs.values(), key=lambda run: (run.seed, run.reference is not None))
