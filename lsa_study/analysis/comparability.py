"""The environment half of the contrast contract: were the runs of two rows made alike?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.rows import Row
from lsa_study.config import contrast
from lsa_study.config.study import Study
from lsa_study.record import Result

MISMATCHES = {name: fact.mismatch for name, _, fact in Result.facts() if fact and fact.mismatch}
"""Facts of a result that must be equal in two rows for their difference to mean the factor."""


def mismatches(study: Study, rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each row that was not made as its reference, the reasons as messages."""
    found = {}
    confounds = contrast.confounds(study)
    for row in rows:
        reasons = [f"also changes {setting}" for setting in confounds.get(row.variant, ())]
        if row.base is not None:
            reasons += environment_mismatches(row.runs, row.base.runs)
        if reasons:
            found[row.variant] = reasons
    return found


def environment_mismatches(one: Sequence[RunRecord], other: Sequence[RunRecord]) -> list[str]:
    """The facts in which two sets of runs differ, as messages; none if one of them is empty."""
    if not one or not other:
        return []
    reasons = []
    for name, title in MISMATCHES.items():
        ours, theirs = _values(one, name), _values(other, name)
        if ours != theirs:
            reasons.append(f"{title} {' and '.join(ours)}, reference {' and '.join(theirs)}")
    return reasons


def _values(runs: Sequence[RunRecord], name: str) -> list[str]:
    found = {(getattr(run, name), run.dirty) for run in runs}
    return sorted({_shown(name, value, dirty) for value, dirty in found})


def _shown(name: str, value: Any, dirty: bool | None) -> str:
    if value is None:
        return "unknown"
    if name == "commit":
        return f"{value[:10]}{' with local changes' * bool(dirty)}"
    return str(value)[:10] if name == "data_fingerprint" else str(value)
