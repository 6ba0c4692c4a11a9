"""Names of studies and rows: names, never paths; and the known name that a wrong one meant."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from lsa_study.errors import ConfigError

GOOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")
LONGEST = 100
"""Longer names are cut in those of files, which hold a seed and an identity too."""


def _good(name: str) -> str:
    # It becomes that of folders and files, so it may not lead out of theirs; and ``--only`` takes
    # globs and commas.
    if not GOOD.fullmatch(name):
        raise ConfigError(
            f"{name[:LONGEST]!r} cannot be a name; give letters, digits and _ . + = -, "
            "the first a letter or digit"
        )
    return name


RESERVED = frozenset({"all", "claims", "cluster"})
"""What no study can be called, since it stands for all studies, or a file beside theirs."""

Name = Annotated[str, AfterValidator(_good)]
"""What a study or a row can be called."""


def short(name: str) -> str:
    """The name in those of files: a long one is cut, and ends with a digest of the whole.

    Raises:
        ConfigError: no study and no row can be called so.
    """
    _good(name)
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 11]}+{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def counted(number: int, thing: str) -> str:
    """A number with its noun, such as ``3 rows``."""
    return f"{number} {thing}{'s' * (number != 1)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have meant, else what there is, up to 20 names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]}?"
    more = ", ..." * (len(known) > 20)
    return f"known: {', '.join(known[:20]) or 'none'}{more}"
