"""What a results folder remembers: how its studies were asked for, and its side studies."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lsa_study.config import names
from lsa_study.config.settings import SCHEMA_VERSION
from lsa_study.config.task import METRICS, curve_key
from lsa_study.config.values import MOST_SEED, MOST_SEEDS
from lsa_study.errors import ConfigError, LsaError, unreadable
from lsa_study.files import read_whole, write_json

LONGEST_NAME = 60
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=MOST_SEED)]], Field(max_length=MOST_SEEDS)]


class Asked(BaseModel):
    """One file of ``studies``; that of a side study names the study that it is of."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    overrides: list[str] = []
    seeds: Seeds = []
    declared: Seeds = []
    """Seeds that the study's file declared when it was first asked for here."""
    study: str = ""
    """Of a side study: the stem or the file of its study, a relative path from the folder that
    holds the results folder. Empty: this is the study itself."""
    of: str = ""
    """Of a side study: its study's own name."""
    only: str | None = None
    grid: list[str] = []
    """Each ``--grid``."""
    path: str = ""
    """Of a study itself: its file, as in ``study``; empty: it came with the package."""
    broken: tuple[str, ...] = Field((), exclude=True)
    """Of what was put together from several files: those that could not be read."""


RESULTS = Path("results")
"""The results folder where none is given."""
WHOLE = "put back one that is whole, or move it away"
"""What to do with a ``runs.parquet`` that is damaged."""


def options_of(results: Path, *tiers: str) -> str:
    """The options by which a command that is suggested finds this folder, at this tier if one."""
    usual = results.absolute() == RESULTS.absolute()
    folder = "" if usual else f" --results {shlex.quote(str(results))}"
    return (f" --tier {tiers[0]}" if len(tiers) == 1 else "") + folder


def parquet_path(results: Path, tier: str) -> Path:
    """Where the collected runs of a tier are kept."""
    return results / tier / "runs.parquet"


def memory(results: Path, tier: str, name: str) -> Path:
    """Where is written what was asked for."""
    return results / tier / "studies" / f"{name}.json"


def read_asked(results: Path | None, tier: str, name: str) -> Asked | None:
    """What was asked for under this name; None if nothing was.

    Raises:
        ConfigError: the file is damaged.
        EnvironmentLacks: it is there, and this user cannot read it.
    """
    if results is None or len(name) > names.LONGEST or not names.GOOD.fullmatch(name):
        return None
    path = memory(results, tier, name)
    try:
        content = read_whole(path)
        return None if content is None else Asked.model_validate_json(content)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValidationError as error:
        problem = "is damaged, what was asked for is not known; delete it and ask again"
        raise ConfigError(f"{path}: {problem}") from error


def write_asked(results: Path, tier: str, name: str, asked: Asked) -> None:
    """Keep what was asked for under a name; what says nothing of it is left out."""
    apart = {"path"} if asked.study else {"study", "of", "only"}
    apart |= {one for one in ("path", "grid") if not getattr(asked, one)}
    path = memory(results, tier, name)
    write_json(path, asked.model_dump(exclude=apart), make_folder=True)


def every_asked(results: Path, tier: str) -> tuple[dict[str, Asked], list[str]]:
    """All that was asked for at a tier by name, and a line for each file that is damaged."""
    found, broken, folder = dict[str, Asked](), list[str](), memory(results, tier, "x").parent
    try:
        listed = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return found, broken
    except OSError as error:
        return found, [str(unreadable(folder, error))]
    for path in listed:
        try:
            if (one := read_asked(results, tier, path.stem)) is not None:
                found[path.stem] = one
        except LsaError as error:
            broken.append(str(error))
    return found, broken


def plain_asked(
    results: Path | None, tier: str, stem: str, ran: Callable[[], bool] = lambda: False
) -> Asked:
    """What a study's own table is about: its own settings, with all seeds that they had here.

    Where it was never asked for itself, and all its side studies have the same overrides, its table
    is about these, unless it ``ran`` nonetheless.
    """
    if results is None:
        return Asked()
    found, broken = every_asked(results, tier)
    own = found.get(stem)
    sides = [one for one in found.values() if one.of == stem and not one.grid]
    if own is not None and (own.study or own.overrides):
        # Older versions kept the last overrides as the study's own.
        sides += [] if own.study else [own]
        own = None
    differing = {tuple(one.overrides) for one in sides}
    overrides: tuple[str, ...] = ()
    if own is None and len(differing) == 1:
        overrides = differing.pop()
        overrides = () if overrides and ran() else overrides
    same = [one for one in (own, *sides) if one is not None and tuple(one.overrides) == overrides]
    seeds = {seed for one in same if overrides or not one.only for seed in one.seeds}
    # What was declared at the first ask of these settings stands, whichever name it had.
    asked = [one.declared for one in (own, *sides) if one is not None and not one.overrides]
    declared = next((one for one in asked if one), [])
    return Asked(
        overrides=[*overrides], seeds=sorted(seeds), declared=declared, broken=tuple(broken)
    )


def runs_there(results: Path | None, tier: str) -> tuple[set[str], set[int]]:
    """The identities and seeds of the runs of a tier, from their folders and ``runs.parquet``."""
    if results is None:
        return set(), set()
    ends = (
        re.fullmatch(r".+-s(\d{1,10})-([0-9a-f]{10})", path.name)
        for path in (results / tier / "runs").glob("*")
    )
    found = {end[2]: int(end[1]) for end in ends if end}
    found |= {identity: int(one["seed"]) for identity, one in stored(results, tier, []).items()}
    return {*found}, {*found.values()}


STORED = ("seed", "outcome", "epoch", "epochs", "attempts", *map(curve_key, METRICS))
"""What ``stored`` reads of each run."""


def stored(results: Path, tier: str, broken: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """What ``runs.parquet`` says of the runs of a tier, by identity.

    Args:
        broken: is given a message if the file cannot be read; nothing is known then.

    Raises:
        ConfigError: it cannot be read, and ``broken`` is None.
    """
    path = parquet_path(results, tier)
    if not path.exists():
        return {}
    from pyarrow import parquet

    own = {"schema": SCHEMA_VERSION, "settings.tier": tier}
    try:
        # Not read_table, which imports pandas. Columns that older files lack are left out.
        rows = parquet.ParquetFile(path).read(columns=["identity", *own, *STORED]).to_pylist()
        return {
            str(row["identity"]): {name: row.get(name) for name in STORED} | {"seed": row["seed"]}
            for row in rows
            if {name: row[name] for name in own} == own
        }
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        line = f"{path}: is unreadable ({reason}), so which runs are done is not known; {WHOLE}"
        if broken is None:
            raise ConfigError(line) from None
        broken.append(line)
        return {}


def good_seeds(found: Any, place: str) -> tuple[int, ...]:
    """Seeds as written at a place, each once.

    Raises:
        ConfigError: they are none, or too many.
    """
    if not isinstance(found, list | tuple | range) or not 0 < len(found) <= MOST_SEEDS:
        raise ConfigError(f"{place}: not up to {MOST_SEEDS} seeds; give a list like [0, 1, 2]")
    mistakes = [
        f"{place}: {seed!r:.40} is no seed; give whole numbers from 0 to {MOST_SEED}"
        for seed in found
        if type(seed) is not int or not 0 <= seed <= MOST_SEED
    ]
    times = Counter(map(repr, found))
    mistakes += [f"{place}: {one} stands {n} times; keep one" for one, n in times.items() if n > 1]
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(found)


def shown(seeds: Sequence[int]) -> str:
    """Seeds as ``--seeds`` takes them, such as ``0-4, 7``; of many, the first."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and runs[-1][-1] == seed - 1:
            runs[-1][1:] = [seed]
        else:
            runs.append([seed])
    texts = ["-".join(map(str, run)) for run in runs[:9]]
    return ", ".join(texts) + f", ... ({len(seeds)} seeds)" * (len(runs) > 9)


def about(of: str, overrides: Sequence[str], only: str | None, seeds: Sequence[int]) -> str:
    """What was asked for, in a line for readers that begins with ``of`` what."""
    parts = (", ".join(overrides), f"only {only}" if only else "", f"seeds {shown(seeds)}")
    return f"{of}: {'; '.join(filter(None, parts))}"


def latest(given: Iterable[str]) -> dict[str, str]:
    """Of each key the last ``key=value``, at the place where it was given, by key."""
    last = dict[str, str]()
    for one in given:
        key = one.partition("=")[0].strip()
        last.pop(key, None)
        last[key] = one.strip()
    return last


def tidy(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those of the overrides that can change what a run is, in an order that says the same."""
    kept = {
        key: one
        for key, one in latest(overrides).items()
        if key.partition(".")[0] != "runtime" and key != "data.root"
    }
    # A setting inside another that is overridden too must stay on its side of it.
    nested = any(key.startswith(f"{outer}.") for key in kept for outer in kept)
    return tuple(kept.values() if nested else sorted(kept.values()))


def derived_name(
    stem: str, overrides: Sequence[str], only: str | None, seeds: Sequence[int]
) -> str:
    """A name for a side study: readable, and another for every other ask."""
    parts = [one.split("=")[0].split(".")[-1] + "-" + one.partition("=")[2] for one in overrides]
    parts += [f"only-{only}"] if only else []
    parts += [f"seeds-{shown(seeds)}"] if seeds else []
    digest = hashlib.sha256(repr((stem, overrides, only, seeds)).encode()).hexdigest()[:8]
    plain = re.sub("[^a-zA-Z0-9]+", "-", "-".join([stem, *parts])).strip("-")
    return f"{plain[: LONGEST_NAME - 9].strip('-')}-{digest}"
