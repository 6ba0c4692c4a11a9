"""The environment half of the contrast contract: were the runs of two rows made alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsa_study.analysis.collect import Run
from lsa_study.analysis.rows import Row
from lsa_study.config import contrast
from lsa_study.config.study import Study

FACTS: Mapping[str, str] = {
    "device_kind": "device kind",
    "precision": "precision",
    "torch": "torch",
    "commit": "commit",
    "effective_batch": "effective batch",
    "weights": "reported weights",
    "selected": "reported epoch",
    "data_fingerprint": "data",
    "test_images": "test images",
}
"""Facts of a result that must be equal in two rows for their difference to mean the factor."""


def differences(study: Study, rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each row that was not made as its reference, the reasons in words."""
    by_variant = {row.variant: row for row in rows}
    found = {}
    confounds = contrast.confounds(study)
    for row in rows:
        reference = by_variant.get(row.reference)
        reasons = [f"also changes {words}" for words in confounds.get(row.variant, ())]
        if reference is not None and reference is not row:
            reasons += unlike(row.runs, reference.runs)
        if reasons:
            found[row.variant] = reasons
    return found


def unlike(one: Sequence[Run], other: Sequence[Run]) -> list[str]:
    """The facts in which two sets of runs differ, in words; none if one of them is empty."""
    if not one or not other:
        return []
    reasons = []
    for name, words in FACTS.items():
        ours, theirs = _values(one, name), _values(other, name)
        if ours != theirs:
            reasons.append(f"{words} {_list(ours)}, reference {_list(theirs)}")
    return reasons


def _values(runs: Sequence[Run], name: str) -> tuple[str, ...]:
    found = {(run[name], run["dirty"]) for run in runs}
    return tuple(sorted({_shown(name, value, dirty) for value, dirty in found}))


def _shown(name: str, value: Any, dirty: bool | None) -> str:
    if value is None:
        return "unknown"
    if name == "commit":
        return f"{value[:10]}{' with local changes' * bool(dirty)}"
    return str(value)[:10] if name == "data_fingerprint" else str(value)


def _list(values: Sequence[str]) -> str:
    return " and ".join(values)
