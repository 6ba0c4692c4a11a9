"""Runs that ``runs.parquet`` knows and whose folders are elsewhere: they need no training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lsa_study.config.asked import stored
from lsa_study.config.study import RunSpec
from lsa_study.record import OUTCOMES

KNOWN = "known from runs.parquet"
"""What is said of such a run."""


def known_alone(
    runs: Sequence[RunSpec], results: Path, ended: Collection[str], broken: list[str] | None = None
) -> set[str]:
    """The identities of the runs that have ended by ``runs.parquet`` alone.

    Not among them is what another run that is to be trained needs the folder of: the weights it
    begins from, or the curve that ``runtime.stop`` compares it with.

    Args:
        runs: all that are asked for.
        ended: identities of those whose folder here holds a result.
        broken: and errors as of ``stored``.
    """
    alone = {
        identity
        for tier in {run.settings.tier for run in runs}
        for identity, facts in stored(results, tier, broken).items()
        if facts["outcome"] in OUTCOMES and identity not in ended
    }
    while True:
        waiting = [run for run in runs if run.identity not in alone and run.identity not in ended]
        needed = {other for run in waiting for other in (run.start, run.reference)} & alone
        if not needed:
            return alone
        alone -= needed
