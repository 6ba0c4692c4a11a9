"""Tags and notes that people put on runs. They stand beside ``runs.parquet`` and change no run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lsa_study.config.names import GOOD
from lsa_study.errors import ConfigError
from lsa_study.files import CONTROL, locked, read_whole, writable, write_json

LONGEST_NOTE = 500


class Remarks(BaseModel):
    """What people put on one run."""

    model_config = ConfigDict(frozen=True, strict=True)

    tags: tuple[Annotated[str, Field(pattern=f"^{GOOD.pattern}$", max_length=40)], ...] = ()
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] = ""


NONE = Remarks()
EVERY = TypeAdapter(dict[str, Remarks])


def read_remarks(results: Path, tier: str) -> dict[str, Remarks]:
    """The remarks on the runs of a tier, by identity.

    Raises:
        ConfigError: the file is damaged.
    """
    path = _path(results, tier)
    try:
        content = read_whole(path)
        return {} if content is None else EVERY.validate_json(content)
    except (OSError, ValidationError):
        raise ConfigError(f"{path}: is damaged; mend it, or move it away") from None


def remark(
    results: Path,
    tier: str,
    identities: Iterable[str],
    *,
    tags: Sequence[str] = (),
    untag: Sequence[str] = (),
    note: str | None = None,
) -> dict[str, Remarks]:
    """Put tags on runs, take some off, replace their note; what is not given stays.

    Returns:
        What now stands on each of them.

    Raises:
        ConfigError: no tag can be called so, or the note holds control characters or is too long.
        EnvironmentLacks: the results folder cannot be written.
    """
    text = None if note is None else " ".join(note.split())
    if text is not None and (CONTROL.search(text) or len(text) > LONGEST_NOTE):
        wanted = f"give up to {LONGEST_NOTE} signs of plain text"
        raise ConfigError(f"--note {text[:40]!a}: cannot be a note; {wanted}")
    for tag in (*tags, *untag):
        if not GOOD.fullmatch(tag) or len(tag) > 40:
            wanted = "give up to 40 letters, digits and _ . + = -, the first a letter or digit"
            raise ConfigError(f"--tag {tag[:60]!a}: cannot be a tag; {wanted}")
    path = _path(results, tier)
    with writable(path), locked(path.with_name(".notes.lock")):
        every = read_remarks(results, tier)
        changed = {}
        for identity in identities:
            old = every.get(identity, NONE)
            kept = sorted({*old.tags, *tags} - {*untag})
            changed[identity] = Remarks(tags=tuple(kept), note=old.note if text is None else text)
        every = {name: one for name, one in (every | changed).items() if one != NONE}
        write_json(path, EVERY.dump_python(every, mode="json"))
    return changed


def _path(results: Path, tier: str) -> Path:
    return results / tier / "notes.json"
