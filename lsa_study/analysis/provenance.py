"""Where numbers come from: the runs behind a table's row, and what differs between two runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsa_study import rundir
from lsa_study.analysis.collect import Collected, RunRecord, collect
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.statistics import signed
from lsa_study.config.asked import parquet_path
from lsa_study.config.find import find_study, side_tiers, tiers_of
from lsa_study.config.names import nearest
from lsa_study.config.study import TIERS, Study, load_study
from lsa_study.errors import ConfigError
from lsa_study.record import LATER, Result

Sections = dict[str, dict[str, tuple[Any, Any]]]

FACTS = tuple(name for _, name, fact in Result.facts() if fact and fact.why)
"""What ``why`` says of each run."""


def why(study: Study, row: str, collected: Collected, results: Path) -> dict[str, Any]:
    """Name everything a row of a study's table rests on.

    ``row`` is the variant, or a label that only one row has.

    Raises:
        ConfigError: the study has no such row, or several with that label.
    """
    found = _find(study.name, row, rows_of(study, collected))
    contrast = found.contrast
    difference = {
        "seeds": list(contrast.seeds),
        "mean": contrast.difference.mean,
        "low": contrast.difference.low,
        "high": contrast.difference.high,
        "p": contrast.p(),
        "images_p": contrast.by_image.p if contrast.by_image else None,
    }
    here = rundir.existing(results, study.tier)
    ran = {run.seed: run.as_json() for run in found.runs}
    stored = dict.fromkeys(ran, str(parquet_path(results, study.tier)))
    seeds = sorted({*study.seeds, *ran})
    return {
        "study": study.name,
        **study.apart,
        "tier": study.tier,
        "row": found.variant,
        "label": found.name,
        "outcome": found.outcome,
        "metric": found.metric,
        "mean": found.accuracy.mean,
        "low": found.accuracy.low,
        "high": found.accuracy.high,
        **({"article": found.article.value} if study.file.article else {}),
        "reference": found.reference,
        "difference": difference if contrast.seeds else None,
        "comparable": found.alike.text or True,
        "settings": str(study.document.where("variants", found.variant)),
        "begins_from": _start(study, found.variant, seeds),
        "runs": [
            {
                "seed": seed,
                "identity": identity,
                **{name: ran[seed][name] if seed in ran else None for name in FACTS},
                **{n: ran[seed][n] for n in LATER if seed in ran and n in ran[seed]},
                "outcome": ran[seed]["outcome"] if seed in ran else "not run",
                "files": str(here[identity].root) if identity in here else stored.get(seed),
            }
            for seed, identity in study.variants[found.variant].identities(seeds).items()
        ],
    }


def _find(study: str, name: str, rows: Sequence[Row]) -> Row:
    exact = [row for row in rows if row.variant == name]
    named = exact or [row for row in rows if name.lower() in (row.label.lower(), row.name.lower())]
    if len(named) == 1:
        return named[0]
    if named:
        known = ", ".join(row.variant for row in named)
        raise ConfigError(f"{name}: is {len(named)} rows of {study}; known: {known}")
    hint = nearest(name, [row.variant for row in rows])
    raise ConfigError(f"{name}: is no row of {study}; {hint}")


def _start(study: Study, variant: str, seeds: Sequence[int]) -> str | None:
    start, before = study.variants[variant].train.start, study.starts.get(variant)
    if start is None or before is None:
        return None if start is None else start.weights
    identities = before.identities(seeds)
    return f"{start.what} ({', '.join(identities[seed] for seed in seeds)})"


def why_text(found: dict[str, Any]) -> str:
    """The answer as lines for a terminal."""
    title = f"{found['study']} {found['row']} ({found['label']}, tier {found['tier']})"
    lines = [f"{title}: {found['outcome']}", f"settings  {found['settings']}"]
    if "about" in found:
        lines.append(f"about     {found['about']}")
    if found["begins_from"] is not None:
        lines.append(f"begins    from {found['begins_from']}")
    if found["mean"] is not None:
        metric, done = found["metric"], [r for r in found["runs"] if r["outcome"] == "done"]
        each = [r["acc1"] if metric == "acc1" else r["metrics"][metric] for r in done]
        values = ", ".join(f"{value:.4f}" for value in each)
        lines.append(f"{metric:<9} {found['mean']:.4f} = mean of {values}")
    if found.get("article") is not None:
        lines.append(f"article   {found['article']}")
    if (difference := found["difference"]) is not None:
        p = "" if difference["p"] is None else f", p = {difference['p']:.3g}"
        seeds = ", ".join(map(str, difference["seeds"]))
        lines.append(
            f"against   {found['reference']}: {signed(difference['mean'], 4)} "
            f"over seed{'s' * (len(difference['seeds']) > 1)} {seeds}{p}"
        )
    if found["comparable"] is not True:
        lines.append(f"not alike {found['comparable']}")
    for run in found["runs"]:
        lines += ["", f"seed {run['seed']}    {run['identity']}  {run['outcome']}"]
        facts = {name: run[name] for name in ("files", *FACTS)} | run.get("metrics", {})
        facts["metrics_missing"] = run.get("metrics_missing")
        known = {name: value for name, value in facts.items() if value not in (None, "")}
        shown = {name: "yes" if v is True else v for name, v in known.items() if v is not False}
        lines += [f"  {name}: {value}" for name, value in shown.items()]
    return "\n".join(lines)


def diff(results: Path, one: str, other: str, tier: str | None = None) -> Sections:
    """Compare two finished runs of a tier, or of any.

    Each is the start of a run's name (``net7-s0``) or of its identity, if only one run has it; or a
    row of a study, by path or name (``mine.yaml/net7``): of its first seed, or ``mine/net7-s1``.

    Returns:
        ``config``, ``code``, ``environment`` and ``metrics``: what differs, with both values;
        ``runtime`` settings are left out.

    Raises:
        ConfigError: no finished run is called so, or several are.
    """
    known: dict[str, RunRecord | None] = {}
    collected: dict[str, Collected] = {}
    for at in TIERS if tier is None else [tier]:
        known |= {run.root.name: None for run in rundir.existing(results, at).values()}
        ended = collected[at] = collect(results, at)
        found = ended.of(ended.runs.index).values()
        known |= {f"{run.variant}-s{run.seed}-{run.identity}": run for run in found}
    try:
        starts = [_of_row(results, start, collected) for start in (one, other)]
        ours, theirs = (_find_run(known, start, results) for start in starts)
    except ConfigError as error:
        broken = [f"left out: {line}" for of_tier in collected.values() for line in of_tier.broken]
        raise ConfigError(*error.mistakes, *broken) from None
    differing: Sections = {"config": {}, "code": {}, "environment": {}, "metrics": {}}
    for name in sorted({*ours.settings, *theirs.settings}):
        values = ours.settings.get(name), theirs.settings.get(name)
        if values[0] != values[1] and not name.startswith("runtime."):
            differing["config"][name] = values
    for name, shown, fact in Result.facts():
        values = getattr(ours, name), getattr(theirs, name)
        if fact is not None and values[0] != values[1]:
            differing[fact.section][shown] = values
    for name in sorted({*ours.metrics, *theirs.metrics}):
        values = ours.metrics.get(name), theirs.metrics.get(name)
        if values[0] != values[1]:
            differing["metrics"][name] = values
    return differing


def _of_row(results: Path, text: str, collected: Mapping[str, Collected]) -> str:
    """The identity of a row's run that has ended, where a study and a row are named."""
    name, slash, row = text.rpartition("/")
    parts = re.fullmatch(r"(.+?)(?:-s(\d{1,10}))?", row)
    if not slash or parts is None:
        return text
    found: dict[str, str] = {}
    tiers = side_tiers(results, name) or tiers_of(str(find_study(name, results)))
    for tier, ended in ((tier, collected[tier]) for tier in tiers if tier in collected):
        rows = rows_of(load_study(name, tier=tier, recall=results), ended)
        exact = any(one.variant == row for one in rows)
        runs = _find(name, row if exact else parts[1], rows).runs
        seeds = [run for run in runs if exact or parts[2] in (None, str(run.seed))]
        if seeds:
            found[tier] = seeds[0].identity
    if len(found) > 1:
        places = ", ".join(found)
        raise ConfigError(f"{text}: was run at tiers {places}; choose one with --tier")
    if not found:
        raise ConfigError(f"{text}: no run of it has ended under {results}; see lsa status {name}")
    return found.popitem()[1]


def _find_run(known: Mapping[str, RunRecord | None], start: str, results: Path) -> RunRecord:
    """The one finished run whose name, or identity at its end, starts so."""
    found = [n for n in known if any(s.startswith(start) for s in (n, n.rpartition("-")[2]))]
    ended = {name: run for name in found if (run := known[name]) is not None}
    if len(ended) == 1:
        return ended.popitem()[1]
    if ended:
        tiers = list(dict.fromkeys(str(run.settings["tier"]) for run in ended.values()))
        names = ", ".join(f"{n} of tier {run.settings['tier']}" for n, run in [*ended.items()][:5])
        names += ", ..." * (len(ended) > 5)
        hint = (
            "write more" if len(tiers) < 2 else f"give --tier {' or '.join(tiers)}, or write more"
        )
        raise ConfigError(f"{start}: is the start of {len(ended)} runs ({names}); {hint}")
    if found:
        raise ConfigError(f"{found[0]}: has not finished, or cannot be read; see lsa status")
    raise ConfigError(f"{start}: no run under {results} is called so; {nearest(start, known)}")


def diff_text(found: Sections) -> str:
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
