"""What stands behind a table's row: identities, seeds, commits and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsa_study import rundir
from lsa_study.analysis.collect import Collected, parquet_path
from lsa_study.analysis.contrasts import Contrast
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.statistics import signed
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

FACTS = (
    "acc1", "commit", "dirty", "device", "precision", "torch", "implementation", "data_fingerprint",
    "finished", "attempts", "reason",
)  # fmt: skip
"""What is told of each run."""


def why(study: Study, row: str, collected: Collected, results: Path) -> dict[str, Any]:
    """Name everything a row of a study's table rests on.

    Args:
        study: as the table was made, overrides included.
        row: the variant, or a label that only one row has.
        collected: the finished runs of the study's tier.
        results: the folder that holds the runs.

    Raises:
        ConfigError: the study has no such row, or several with that label.
    """
    rows = rows_of(study, collected)
    found = _find(study, row, rows)
    here = rundir.existing(results, study.tier)
    ran = {run["seed"]: run for run in found.runs}
    identities = study.variants[found.variant].identities(found.seeds)
    return {
        "study": study.name,
        "tier": study.tier,
        "row": found.variant,
        "label": found.name,
        "outcome": found.outcome,
        "mean": found.accuracy.mean,
        "low": found.accuracy.low,
        "high": found.accuracy.high,
        "article": found.article.value,
        "reference": found.reference,
        "difference": _difference(found.contrast),
        "settings": str(study.document.where("variants", found.variant)),
        "begins_from": _start(study, found.variant, found.seeds),
        "runs": [
            {
                "seed": seed,
                "identity": identity,
                **{name: ran[seed][name] if seed in ran else None for name in FACTS},
                "outcome": ran[seed]["outcome"] if seed in ran else "not run",
                "files": _files(results, study.tier, identity, here, seed in ran),
            }
            for seed, identity in identities.items()
        ],
    }


def _find(study: Study, name: str, rows: Sequence[Row]) -> Row:
    exact = [row for row in rows if row.variant == name]
    named = exact or [row for row in rows if name.lower() in (row.label.lower(), row.name.lower())]
    if len(named) == 1:
        return named[0]
    known = ", ".join(row.variant for row in rows)
    many = f"is {len(named)} rows" if named else "is no row"
    raise ConfigError(f"{name}: {many} of {study.name}; known: {known}")


def _difference(compared: Contrast | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    found = compared.difference
    return {
        "seeds": list(compared.seeds),
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p": compared.p,
        "images_p": compared.by_image.p if compared.by_image else None,
    }


def _start(study: Study, variant: str, seeds: Sequence[int]) -> str | None:
    start, before = study.variants[variant].train.start, study.starts.get(variant)
    if start is None or before is None:
        return None if start is None else start.weights
    identities = before.identities(seeds)
    return f"{start.row} ({', '.join(identities[seed] for seed in seeds)})"


def _files(
    results: Path, tier: str, identity: str, here: dict[str, rundir.RunDir], ran: bool
) -> str | None:
    if identity in here:
        return str(here[identity].root)
    return str(parquet_path(results, tier)) if ran else None


def as_text(found: dict[str, Any]) -> str:
    """The answer as lines for a terminal."""
    title = f"{found['study']} {found['row']} ({found['label']}, tier {found['tier']})"
    lines = [f"{title}: {found['outcome']}", f"settings  {found['settings']}"]
    if found["begins_from"] is not None:
        lines.append(f"begins    from {found['begins_from']}")
    if found["mean"] is not None:
        values = ", ".join(f"{r['acc1']:.4f}" for r in found["runs"] if r["outcome"] == "done")
        lines.append(f"acc1      {found['mean']:.4f} = mean of {values}")
    if found["article"] is not None:
        lines.append(f"article   {found['article']}")
    if (difference := found["difference"]) is not None:
        p = "" if difference["p"] is None else f", p = {difference['p']:.3g}"
        seeds = ", ".join(map(str, difference["seeds"]))
        lines.append(
            f"against   {found['reference']}: {signed(difference['mean'], 4)} "
            f"over seed{'s' * (len(difference['seeds']) > 1)} {seeds}{p}"
        )
    for run in found["runs"]:
        lines += ["", f"seed {run['seed']}    {run['identity']}  {run['outcome']}"]
        lines += [
            f"  {name}: {_shown(run[name])}" for name in ("files", *FACTS) if _told(run, name)
        ]
    return "\n".join(lines)


def _told(run: dict[str, Any], name: str) -> bool:
    return bool(run[name]) if name == "dirty" else run[name] is not None


def _shown(value: Any) -> str:
    return "yes" if value is True else str(value)
