"""Two runs side by side: settings, code, environment, metrics; only what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsa_study import rundir
from lsa_study.analysis.collect import Run, collect
from lsa_study.config import study as studies
from lsa_study.errors import ConfigError

CODE = ("commit", "dirty", "torch", "implementation", "schema")
ENVIRONMENT = ("device", "device_kind", "precision", "effective_batch", "data_fingerprint")
METRICS = (
    "outcome", "reason", "acc1", "acc5", "loss", "best_acc1", "ema_acc1", "epoch", "epochs",
    "weights", "selected", "params", "macs", "train_images", "test_images", "seconds",
    "seconds_per_epoch", "peak_memory_bytes", "attempts", "finished",
)  # fmt: skip
Sections = dict[str, dict[str, tuple[Any, Any]]]


def diff(results: Path, one: str, other: str) -> Sections:
    """Compare two finished runs of any tiers.

    Args:
        results: the folder that holds the tiers.
        one: the start of a run's name (``net7-s0``) or of its identity, if only one run has it.
        other: the same for the second run.

    Returns:
        ``config``, ``code``, ``environment`` and ``metrics``: what differs, with both values.

    Raises:
        ConfigError: no finished run is called so, or several are.
    """
    known = {
        identity: (f"{run['variant']}-s{run['seed']}-{identity}", run)
        for tier in studies.TIERS
        for collected in [collect(results, tier)]
        for identity, run in collected.of(collected.runs.index).items()
    }
    return compare(find(known, one, results), find(known, other, results))


def find(known: Mapping[str, tuple[str, Run]], start: str, results: Path) -> Run:
    """The one run whose name or identity starts so."""
    if start in known:
        return known[start][1]
    found = {
        identity: run
        for identity, (name, run) in known.items()
        if name.startswith(start) or identity.startswith(start)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join(sorted(known[identity][0] for identity in found)[:5])
        raise ConfigError(f"{start}: is the start of {len(found)} runs ({names}, ...); write more")
    started = [
        run.root.name
        for tier in studies.TIERS
        for identity, run in rundir.existing(results, tier).items()
        if run.root.name.startswith(start) or identity.startswith(start)
    ]
    if started:
        raise ConfigError(f"{started[0]}: has not finished, or cannot be read; see lsa status")
    raise ConfigError(f"{start}: no run under {results} is called so; lsa status lists them")


def compare(one: Run, other: Run) -> Sections:
    """What differs between two runs, by section."""
    settings = sorted({name for run in (one, other) for name in run if _is_setting(name)})
    names = {"config": settings, "code": CODE, "environment": ENVIRONMENT, "metrics": METRICS}
    return {
        section: {
            name.removeprefix("settings."): (one.get(name), other.get(name))
            for name in listed
            if one.get(name) != other.get(name)
        }
        for section, listed in names.items()
    }


def _is_setting(name: str) -> bool:
    return name.startswith("settings.") and not name.startswith("settings.runtime.")


def as_text(found: Sections) -> str:
    """The differences as lines for a terminal."""
    lines = []
    for section, values in found.items():
        lines.append(f"{section}: {'equal' if not values else ''}".rstrip())
        width = max(map(len, values), default=0)
        lines += [f"  {name:<{width}}  {_cell(a)} -> {_cell(b)}" for name, (a, b) in values.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
