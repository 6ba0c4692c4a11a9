"""The contrast contract: two rows that are compared differ in one declared factor and no more.

The settings of a grid are factors; a row of it is compared with the one that has the baseline's
value of one of them and else the same values. What a sample draws is one factor together. See
:mod:`lsa_study.config.grid`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsa_study.config.find import find_study, tiers_of
from lsa_study.config.layers import known_paths
from lsa_study.config.ledger import Claim
from lsa_study.config.names import nearest, short
from lsa_study.config.settings import flatten
from lsa_study.config.study import Study, load_study
from lsa_study.config.task import METRICS
from lsa_study.errors import ConfigError, Refused

START = "train.start: "
"""Stands before a setting in which not two rows differ but the rows that they begin from."""


def under(path: str, factors: Iterable[str]) -> bool:
    """Whether a dotted setting is one of these or inside one of them."""
    plain = path.removeprefix(START)
    return any(plain == f or plain.startswith(f"{f}.") for f in factors)


def differing_rows(one: tuple[Study, str], other: tuple[Study, str]) -> dict[str, tuple[Any, Any]]:
    """The science settings in which two rows differ, each a study and a variant; both values.

    Where both begin from rows, it counts in what these differ: ``train.start: train.epochs``.
    """
    first, second = (study.variants[variant] for study, variant in (one, other))
    starts = [study.starts.get(variant) for study, variant in (one, other)]
    found = first.differing(second)
    if starts[0] is None or starts[1] is None:
        return found
    plain = {k: v for k, v in found.items() if k not in ("train.start.row", "train.start.recipe")}
    before = starts[0].differing(starts[1])
    return plain | {f"{START}{k}": v for k, v in before.items() if k not in plain}


def beyond(
    one: tuple[Study, str], other: tuple[Study, str], allowed: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """What two rows differ in beside ``allowed`` and one factor of their studies, both values.

    Of several factors it is the one that explains most: a row that changes two of them at once
    differs beside the one in the other.
    """
    found = differing_rows(one, other)
    factors = [of for study, _ in (one, other) for of in study.file.factors.values()]
    left = ({k for k in found if not under(k, ("seed", *of, *allowed))} for of in factors)
    least = min(left, key=len)
    return {key: pair for key, pair in found.items() if key in least}


def confounds(study: Study, allowed: Sequence[str] = ()) -> dict[str, list[str]]:
    """Per variant, the settings that differ from its reference beside the factor, as text."""
    found: dict[str, list[str]] = {}
    for name in study.variants:
        reference = study.reference_of(name)
        if reference != name and reference in study.variants:
            more = beyond((study, reference), (study, name), allowed)
            found[name] = [f"{key} ({old} -> {new})" for key, (old, new) in more.items()]
    return {name: changes for name, changes in found.items() if changes}


def check_contrast(study: Study, allowed: Sequence[str] = ()) -> None:
    """Hold the contract: a row differs from its reference in one declared factor only.

    Raises:
        Refused: a row changes something else too; all such rows are named.
        ConfigError: what is allowed is no setting.
    """
    known = [*known_paths(), "model.op.shell"] if allowed else []
    for row in study.variants.values() if allowed else ():
        known += flatten(row.science())
    if unknown := [key for key in allowed if key not in known]:
        raise ConfigError(
            *(f"--allow-confound {k}: is not a setting; {nearest(k, known)}" for k in unknown)
        )
    factors = study.file.factors
    one = "The declared factor is" if len(factors) == 1 else "A row may change one factor of"
    lines = [
        f"{study.document.where('variants', name)}: {name} also changes {'; '.join(changes)}. "
        f"{one} {', '.join(factors)}. Fix it, or declare it with --allow-confound KEY"
        for name, changes in confounds(study, allowed).items()
    ]
    if lines:
        raise Refused("\n".join(lines))


def check_claims(study: Study, results: Path) -> None:
    """Check that a study's own claims can be judged: their rows are there, and are comparable.

    Raises:
        ConfigError: rows of other studies that there are not, and rows that differ in more than one
            factor and what the claim names in ``besides``.
    """
    known: dict[str, Study | None] = {short(study.file.study): study}
    mistakes: list[str] = []
    for at, claim in enumerate(study.claims):
        where = f"{study.document.where('claims', str(at))}: claim {claim.id}:"
        for stem in (row.split("/")[0] for row in claim.sides):
            if stem in known:
                continue
            try:
                path = str(find_study(stem, results, study.document.path.parent))
                here = study.tier in tiers_of(path)
                known[stem] = load_study(path, tier=study.tier, results=results) if here else None
            except ConfigError as error:
                known[stem] = None
                mistakes += [f"{where} {line}" for line in error.mistakes]
        found = {row: (known[row.split("/")[0]], row.split("/")[1]) for row in claim.sides}
        for other, row in found.values():
            if other is not None and other is not study and row not in other.file.variants:
                hint = nearest(row, other.file.variants)
                mistakes.append(f"{where} {row!r} is not a variant of {other.name}; {hint}")
        mistakes += [f"{where} {line}" for line in _apart(claim, found)]
    if mistakes:
        raise ConfigError(*mistakes)


def _apart(claim: Claim, rows: dict[str, tuple[Study | None, str]]) -> list[str]:
    """Pairs of a claim's rows that would never be compared."""
    found = []
    for pair in claim.compared if claim.metric in (*METRICS, "speed", "memory") else ():
        sides = [(s, row) for s, row in map(rows.__getitem__, pair) if s and row in s.variants]
        if len(sides) == 2 and (more := beyond(sides[0], sides[1], claim.besides)):
            found.append(
                f"{' and '.join(pair)} also differ in {', '.join(more)}, so they are never "
                "compared; name other rows, or what may differ in besides"
            )
    return found
