"""The stopping rule ``runtime.stop``: give up a run that is far behind its reference row's."""

from __future__ import annotations

import contextlib

from lsa_study.config.settings import Settings
from lsa_study.config.task import METRICS, OF_TASK, curve_key
from lsa_study.errors import ConfigError
from lsa_study.rundir import RunDir


class GivenUp(Exception):
    """A run is stopped early: a result. The text says at which epoch and why."""


def why_given_up(run: RunDir, settings: Settings) -> str | None:
    """Why the rule ends a run, by what it and its reference run have recorded; None if it does not.

    All epochs from ``at`` on but the last are judged of which both have a record, the first one
    first; so the same two curves give the same answer, whichever was there before the other.
    """
    rule, reference = settings.runtime.stop, run.config().get("reference")
    if rule is None or reference is None or run.reopened:
        return None
    if (other := run.sibling(reference)) is None:
        return None
    metric = OF_TASK[settings.task.kind][0]
    key, shown = curve_key(metric), METRICS[metric].shown
    epochs, theirs = settings.train.epochs, _accuracies(other, key)
    for epoch, ours in _accuracies(run, key).items():
        beside = theirs.get(epoch)
        if beside is None or not rule.at * epochs <= epoch < epochs:
            continue
        if beside - ours > rule.margin:
            return (
                f"epoch {epoch} of {epochs}: {shown(ours)} is {beside - ours:.1f} points below "
                f"{shown(beside)} of {other.root.name}; the rule allows {rule.margin:g} from "
                f"{100 * rule.at:g} % of the epochs on"
            )
    return None


def _accuracies(run: RunDir, key: str) -> dict[int, float]:
    # Another run's damaged file must not end this one.
    with contextlib.suppress(ConfigError):
        records = [(one["epoch"], one.get(key)) for one in run.metrics()]
        return {int(epoch): value for epoch, value in records if isinstance(value, int | float)}
    return {}
