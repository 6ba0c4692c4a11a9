"""Side studies: which ask is one, what it is called, and how a results folder remembers it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lsa_study.config.asked import (
    LONGEST_NAME,
    Asked,
    derived_name,
    every_asked,
    memory,
    read_asked,
    tidy,
    write_asked,
)
from lsa_study.config.find import find_study, home_of, list_studies, shipped_at
from lsa_study.config.names import GOOD, RESERVED, short
from lsa_study.config.study import TIERS, Study
from lsa_study.errors import ConfigError


def named(study: Study, results: Path, alias: str | None = None) -> Study:
    """The study under the name of the side study that it is; itself if it is none.

    A side study is what is asked for with ``--set`` of a setting that can change a run, with
    ``--only``, ``--grid`` or ``--as NAME``, or with ``--seeds`` of which the study does not declare
    all.
    Its tables are about its own rows, settings and seeds. The table of the study itself is about
    the settings of its file, with every seed that they were trained with, whoever asked for it.
    Runs are shared by identity, so nothing is trained twice. To give a study more seeds of its
    own, edit ``seeds:`` in its file.

    Args:
        study: as it is asked for now.
        results: where side studies are remembered.
        alias: the name to give it; None: a derived one, if it is a side study.

    Raises:
        ConfigError: the name is taken, or cannot be one; or that of the study is taken by a study
            of another file, or by one that is shipped and was asked for there.
    """
    stem = short(study.file.study)
    path, home = study.document.path, _home(study, results, alias)
    for one in RESERVED.intersection({stem, alias}):
        where = "--as" if one == alias else f"{path}: study:"
        raise ConfigError(f"{where} {one}: means something else to lsa; give another name")
    if home is not None and home.is_file() and not home.samefile(path):
        raise ConfigError(
            f"{path}: the study {stem} of {results} is another file, {home}; give this one another "
            "name (study:)"
        )
    before, declared = study.asked, {*study.declared}
    same = (study.overrides, study.only) == (tidy(before.overrides), before.only)
    same = same and [*study.flags] == before.grid
    if alias is None and same and declared.union(before.seeds).issuperset(study.seeds):
        return study
    seeds = () if declared.issuperset(study.seeds) else tuple(sorted(study.seeds))
    ask = stem, [*study.overrides, *study.flags], study.only, seeds
    name = derived_name(*ask) if alias is None else alias
    if len(name) > LONGEST_NAME or not GOOD.fullmatch(name):
        raise ConfigError(
            f"--as {ascii(name)[1:-1]:.80}: cannot be a name; give up to {LONGEST_NAME} letters, "
            "digits and _ . + = -, the first a letter or digit"
        )
    try:
        taken = find_study(name, results)
    except ConfigError:  # as it should be
        side = replace(study, alias=name)
    else:
        raise ConfigError(f"--as {name}: is the study {taken}; give another name")
    other, asked = read_asked(results, study.tier, name), _asked(side, results)
    parts = {"study", "of", "overrides", "only", "grid"}
    if home is not None and not home.is_file():
        parts -= {"study"}  # its file was moved
    if other is not None and other.model_dump(include=parts) != asked.model_dump(include=parts):
        raise ConfigError(f"--as {name}: is the name of something else in {results}; give another")
    return side


def _home(study: Study, results: Path, alias: str | None) -> Path | None:
    """The other file of its name here: from a path, or shipped and asked for; None if none is."""
    stem, path = short(study.file.study), study.document.path
    home, ours = home_of(results, stem), shipped_at(stem)
    if home or alias or study.alias or not ours.is_file():
        return home
    if not any(stem in every_asked(results, tier)[0] for tier in TIERS):
        return None
    # Else the shipped one, or a copy of it to edit.
    return None if ours.read_bytes() == path.read_bytes() else list_studies()[stem]


def remember(results: Path, studies: Iterable[Study]) -> None:
    """Note what is asked for now, side studies under their names; seeds add up.

    Raises:
        ConfigError: what was asked for before is not this.
        EnvironmentLacks: it cannot be read, or written.
    """
    for study in studies:
        asked, path = _asked(study, results), memory(results, study.tier, study.name)
        before = asked
        with contextlib.suppress(ConfigError):  # a damaged one was named, and is written anew
            before = read_asked(results, study.tier, study.name) or asked
        if bool(before.study) != bool(asked.study):
            raise ConfigError(f"{path}: is another study's of this name; give yours another")
        again = before.overrides == asked.overrides
        seeds = sorted({*asked.seeds, *(before.seeds if again else ())})
        declared = before.declared or asked.declared
        asked = asked.model_copy(update={"seeds": seeds, "declared": declared})
        write_asked(results, study.tier, study.name, asked)


def _asked(study: Study, results: Path) -> Asked:
    """What a study is asked for with; a side study names its study so that it is found again."""
    asked = Asked(
        overrides=[*study.overrides],
        seeds=sorted(study.seeds),
        declared=sorted(study.declared),
        of=short(study.file.study),
        only=study.only,
        grid=[*study.flags],
    )
    path, beside = study.document.path.resolve(), results.resolve().parent
    place = str(path.relative_to(beside) if path.is_relative_to(beside) else path)
    if not study.alias:
        known = shipped_at(study.name).resolve() == path
        return asked.model_copy(update={"path": "" if known else place})
    try:
        known = find_study(path.stem).resolve() == path
    except ConfigError:
        known = False
    return asked.model_copy(update={"study": path.stem if known else place})
