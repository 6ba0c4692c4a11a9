"""Take the finished runs of another results folder, such as another machine's, into this one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lsa_study.analysis.collect import Collected, collect, store
from lsa_study.config.asked import every_asked, write_asked
from lsa_study.errors import ConfigError, Refused

RESULT_OF_A_RUN = ["outcome", "acc1", "acc5", "loss", "finished", "code"]
"""What two results of one identity are told apart by."""


def merge(results: Path, source: Path, tier: str) -> list[str]:
    """Add the runs that ``source`` holds beside those here to ``runs.parquet``.

    What its studies were asked for with is added too, so that their tables have its seeds. Run
    folders stay where they are: weights and logs are not copied.

    Returns:
        What was done and what was left out, a line each.

    Raises:
        ConfigError: there is nothing to take.
        Refused: both hold a run and its results differ, or what ``runs.parquet`` holds here cannot
            be read; nothing is written.
    """
    if results.resolve() == source.resolve():
        raise ConfigError(f"--from {source}: is the results folder itself; give another")
    theirs, ours = collect(source, tier), collect(results, tier, update=True)
    if not len(theirs.runs):
        damaged = "".join(f"\nleft out: {line}" for line in theirs.broken)
        raise ConfigError(f"--from {source}: has no finished run of tier {tier}{damaged}")
    if ours.lost:
        raise Refused("\n".join(ours.lost))
    _same_where_both_are(ours, theirs, source)
    new = theirs.runs[~theirs.runs.index.isin(ours.runs.index)]
    if len(new):
        store(results, tier, ours.runs, new)
    codes = pd.concat([ours.runs, new])["code"].nunique(dropna=False)
    lines = [f"left out: {line}" for line in (*theirs.broken, *ours.broken)]
    lines += _merge_asked(results, source, tier)
    known = len(theirs.runs) - len(new)
    lines.append(
        f"{len(new)} run{'s' * (len(new) != 1)} added, {known} known before; "
        f"{len(ours.runs) + len(new)} in all"
        + (f", of {codes} versions of the code" if codes > 1 else "")
    )
    return lines


def _same_where_both_are(ours: Collected, theirs: Collected, source: Path) -> None:
    both = ours.runs.index.intersection(theirs.runs.index)
    mine, other = (one.runs.loc[both, RESULT_OF_A_RUN].astype(str) for one in (ours, theirs))
    differing = [str(i) for i in both if not mine.loc[i].equals(other.loc[i])]
    if differing:
        raise Refused(
            f"--from {source}: it trained again what is here: {', '.join(differing[:5])}"
            f"{f' and {len(differing) - 5} more' if len(differing) > 5 else ''}, with other "
            "results; a run counts once: move those run folders there away, or keep the two apart"
        )


def _merge_asked(results: Path, source: Path, tier: str) -> list[str]:
    """Add what was asked for there; returns a line for each study that is another here."""
    known, lines = every_asked(results, tier)[0], []
    found, broken = every_asked(source, tier)
    for name, there in found.items():
        here = known.get(name, there)
        same = ("overrides", "study", "of", "only", "grid")
        if any(getattr(here, one) != getattr(there, one) for one in same):
            lines.append(f"left out: study {name} was asked for otherwise there: {there.overrides}")
            continue
        seeds = sorted({*here.seeds, *there.seeds})
        merged = here.model_copy(update={"seeds": seeds})
        if name not in known or merged != here:
            write_asked(results, tier, name, merged)
    return lines + [f"left out: {line}" for line in broken]
