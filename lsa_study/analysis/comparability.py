"""Were two rows made alike? Facts of their runs, compared pair by pair of the same seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lsa_study.analysis.collect import RunRecord
from lsa_study.config.contrast import under
from lsa_study.record import Fact, unlike

Pairs = Sequence[tuple[RunRecord, RunRecord]]


@dataclass(frozen=True)
class Comparability:
    """In what the runs of two rows differ beside their settings, as messages."""

    refused: tuple[str, ...] = ()
    """What forbids a comparison: other images."""
    marked: tuple[str, ...] = ()
    """What may stand behind a difference."""

    @property
    def comparable(self) -> bool | str:
        """True, or why the rows are not to be compared."""
        return "; ".join(self.refused) or True

    @property
    def text(self) -> str:
        """All of it as one message; empty for rows that were made alike."""
        return "; ".join((*self.refused, *self.marked))


def paired(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Pairs:
    """The runs of two rows, by the seeds they share."""
    others = {run.seed: run for run in theirs}
    return [(run, others[run.seed]) for run in ours if run.seed in others]


def comparability(pairs: Pairs, *, explained: Collection[str] = ()) -> Comparability:
    """Compare the facts of two rows' runs, each pair a run and the reference's of the same seed.

    A fact that changes places between the rows from seed to seed differs in every pair, though
    both rows have the same values. ``explained`` are the settings in which these rows differ, as
    they may; facts that follow from them are not compared. Over all seeds a row must have seen the
    same images, since its accuracy is their mean.
    """
    found: dict[tuple[Fact, str], list[int]] = {}
    for run, reference in pairs:
        for fact, (ours, theirs) in unlike((run, reference)):
            if not _follows(fact, explained):
                message = f"{fact.mismatch} {ours}, reference {theirs}"
                found.setdefault((fact, message), []).append(run.seed)
    refused: list[str] = []
    marked = marks_of([run for run, _ in pairs])
    marked += [f"reference {message}" for message in marks_of([run for _, run in pairs])]
    for (fact, message), seeds in found.items():
        some = f" at seed {', '.join(map(str, seeds))}" if len(seeds) < len(pairs) else ""
        (refused if fact.refuses else marked).append(message + some)
    if not refused:
        refused = between_seeds([run for run, _ in pairs], explained)
    return Comparability(tuple(refused), tuple(marked))


def between_seeds(runs: Sequence[RunRecord], explained: Collection[str] = ()) -> list[str]:
    """Name what the seeds of one row saw of other images."""
    return [
        f"{fact.mismatch} differs between its seeds: {', '.join(dict.fromkeys(values))}"
        for fact, values in unlike(runs)
        if fact.refuses and not _follows(fact, explained)
    ]


def marks_of(runs: Sequence[RunRecord]) -> list[str]:
    """What stands behind a row's own accuracy: what went on otherwise, a peek at the test set."""
    marks = [f"seed {r.seed} went on with another {r.continued}" for r in runs if r.continued]
    # Runs from before there was the fact say it in their settings alone.
    chosen = {run.selected or run.settings.get("evaluation.epoch") for run in runs}
    return marks + ["epoch selected on the test set"] * ("best" in chosen)


def _follows(fact: Fact, settings: Collection[str]) -> bool:
    return any(under(setting, fact.follows) for setting in settings)
