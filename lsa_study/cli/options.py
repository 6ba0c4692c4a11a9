"""What several commands share: their options, and how they read studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lsa_study.config import contrast, selection
from lsa_study.config import study as studies
from lsa_study.errors import ConfigError

StudyNames = Annotated[list[str], typer.Argument(metavar="STUDY...", help="stem, path, or all")]
MaybeStudies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY...]")]
Tier = Annotated[str, typer.Option(help="toy, proxy or paper")]
MaybeTier = Annotated[str | None, typer.Option(help="toy, proxy or paper; else all")]
FirstTier = Annotated[str | None, typer.Option(help="toy, proxy or paper; else a study's first")]
Seeds = Annotated[str | None, typer.Option(help="such as 0-2 or 0,3; else the tier's")]
Jobs = Annotated[int | None, typer.Option(min=1, help="workers; else one per GPU, or one")]
Only = Annotated[str | None, typer.Option(help="variants to keep, as globs: net6*,elsa")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=c, for every run")]
Results = Annotated[Path, typer.Option(help="folder of runs, tables and plots")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Confound = Annotated[
    list[str] | None, typer.Option(help="a setting that may differ too; the table gets a dagger")
]


def parse_seeds(text: str | None) -> list[int] | None:
    """Read ``0-2`` or ``0,3,5`` as a list of seeds."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--seeds {text}: not seeds; write 0-2 or 0,3,5")
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds:
        raise ConfigError(f"--seeds {text}: holds no seed; write the smaller one first, as 0-2")
    return list(dict.fromkeys(seeds))


def load_all(
    names: Sequence[str],
    tier: str | None,
    seeds: str | None,
    only: str | None,
    overrides: Sequence[str] | None,
    allowed: Sequence[str] = (),
    results: Path | None = None,
) -> list[studies.Study]:
    """Read studies, each held to its contrast contract; ``--only`` may spare some of several.

    Without a tier, each study is read at its first. With ``results``, seeds and overrides that are
    not given are those last asked for there.
    """
    wide = studies.expand_names(names)
    chosen, unmatched = [], []
    for name in wide:
        at = tier or studies.tiers_of(name)[0]
        before = selection.recall(results, at, Path(name).stem) if results else selection.Asked()
        try:
            loaded = studies.load(
                name,
                tier=at,
                seeds=parse_seeds(seeds) or before.seeds,
                only=only,
                overrides=before.overrides if overrides is None else overrides,
            )
        except studies.NoVariant as error:
            unmatched.append(error)
            continue
        contrast.check_contrast(loaded, allowed)
        chosen.append(loaded)
    if not chosen:
        raise ConfigError(*(mistake for error in unmatched for mistake in error.mistakes))
    return chosen
