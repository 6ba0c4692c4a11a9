"""Note in a results folder what is asked for now."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lsa_study.config.asked import Asked, derived_name, memory, read_asked, remember_side
from lsa_study.config.names import short
from lsa_study.config.study import ARTICLE, Study, find_study
from lsa_study.errors import ConfigError
from lsa_study.files import write_json


def remember(results: Path, studies: Iterable[Study], alias: str | None = None) -> list[str]:
    """Note what is asked now; seeds add up. Returns the names of the side studies among them.

    ``lsa run table1 --set train.epochs=1`` trains other runs than ``lsa run table1``: it is a side
    study with a name of its own, ``alias`` or a derived one, and the study's own table stands.

    Raises:
        ConfigError: a side study's name is taken.
    """
    if alias and (re.fullmatch(r"\w[\w.+=-]{0,59}", alias, re.ASCII) is None or alias in ARTICLE):
        raise ConfigError(f"--as {alias}: no name for a side study; give letters, digits and -")
    sides = []
    for study in studies:
        stem = short(study.file.study)
        asked = Asked(overrides=sorted(study.overrides), seeds=sorted(study.seeds))
        if alias or study.overrides or study.only:
            name = alias or derived_name(stem, study.overrides, study.only)
            shipped_as = find_study(stem) if stem in ARTICLE else None
            own = shipped_as is not None and shipped_as.resolve() == study.document.path.resolve()
            place = stem if own else str(study.document.path.resolve())
            asked = asked.model_copy(update={"study": place, "only": study.only})
            remember_side(results, study.tier, name, asked)
            sides.append(name)
            continue
        before = read_asked(results, study.tier, stem)
        last = before.seeds if before and not before.overrides else ()
        plain = {"overrides": [], "seeds": sorted({*study.seeds, *last})}
        write_json(memory(results, study.tier, stem), plain, make_folder=True)
    return sides
