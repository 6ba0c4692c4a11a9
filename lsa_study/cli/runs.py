"""`lsa runs` and `lsa note`: finished runs filtered, grouped, sorted; what people say of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from lsa_study.analysis.frame import Finished
from lsa_study.analysis.tags import remark
from lsa_study.analysis.where import Condition, column
from lsa_study.cli import options as opt
from lsa_study.config.names import nearest
from lsa_study.config.task import OF_TASK, curve_key
from lsa_study.errors import ConfigError
from lsa_study.terminal import show_table

Row = dict[str, Any]
JUDGED = tuple(curve_key(name) for of_task in OF_TASK.values() for name in of_task)
"""The metrics of all tasks; those that no listed run has are left out."""
USUAL = ("name", "outcome", *JUDGED, "seconds_per_epoch", "tags", "note")
METRICS = (*JUDGED, "loss", "seconds_per_epoch")
"""Of a group, where no columns are asked for."""


def runs(
    study: opt.MaybeStudies = None,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="such as 'acc1 > 45 and norm == \"softmax\"'")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="KEY,KEY", help="count, mean and sd of runs alike in it")
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="KEY,KEY", help="what is shown")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="KEY", help="by this; -KEY: highest first")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Filter, group and sort finished runs; the end of a setting's name will do, such as norm."""
    found = Finished(results, tier)
    condition = Condition(where, found.columns) if where else None
    groups, chosen = (_keys(found, *one) for one in (("by", by), ("columns", columns)))
    usual = METRICS if groups else found.columns if as_json else USUAL
    shown = chosen or [name for name in usual if name in found.columns]
    key = (sort or "").removeprefix("-")
    keys = [key] if groups and key == "count" else _keys(found, "sort", key)
    read = {*shown, *groups, *keys, "name", *(condition.needed if condition else ())} - {"count"}
    rows = found.rows(read, study or ())
    for line in dict.fromkeys(found.broken):
        typer.echo(f"left out: {line}", err=True)
    rows = [row for row in rows if condition is None or condition(row)]
    if not (chosen or as_json):
        shown = _of_their_tasks(shown, rows)
    if groups:
        rows = _grouped(rows, groups, [*dict.fromkeys([*shown, *keys])])
        shown = [*groups, "count", *(name for name in shown if name not in groups)]
    rows.sort(key=lambda row: [_order(row[name]) for name in keys or groups or ["name"]])
    if (sort or "").startswith("-"):
        rows.reverse()
    if as_json:
        answer = [{name: row[name] for name in shown} for row in rows]
        typer.echo(json.dumps({"groups" if groups else "runs": answer}, indent=2))
        return
    show_table([shown, *([_cell(row[name]) for name in shown] for row in rows)])
    typer.echo(f"{len(rows)} {'group' if groups else 'run'}{'s' * (len(rows) != 1)}")


def _keys(found: Finished, option: str, given: str | None) -> list[str]:
    names = [part.strip() for part in given.split(",")] if given else []
    return [column(name, found.columns, f"--{option} {given}") for name in names]


def _of_their_tasks(shown: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns without those metrics that no listed run has, if any has one."""
    known = {name for name in shown for row in rows if row[name] is not None}
    if not known & {*JUDGED}:
        return list(shown)
    return [name for name in shown if name in known or name not in (*JUDGED, "loss")]


def _grouped(rows: Iterable[Row], groups: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """A row for each combination of values: how many runs, and mean, sd and n of what is numeric.

    What holds text shows its value where all runs of the group agree.
    """
    members: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(row[name] for name in groups), []).append(row)
    return [
        {
            "count": len(inside),
            **{
                name: _summary([row[name] for row in inside]) for name in metrics if name != "count"
            },
            **dict(zip(groups, values, strict=True)),
        }
        for values, inside in members.items()
    ]


def _summary(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not all(type(value) in (int, float) for value in known):
        return values[0] if len({*values}) == 1 else None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known) if known else None, "sd": sd, "n": len(known)}


def _order(value: Any) -> tuple[bool, bool, Any]:
    """What a value is sorted by: numbers, then text, then nothing."""
    value = value["mean"] if isinstance(value, Mapping) else value
    return value is None, isinstance(value, str), 0 if value is None else value


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        sd = "" if value["sd"] is None else f" ± {_cell(value['sd'])}"
        return f"{_cell(value['mean'])}{sd}"
    if isinstance(value, float):
        return f"{value:.2f}" if 0.1 <= abs(value) < 1e6 else f"{value:.4g}"
    return "" if value is None else str(value)


def note(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="beginnings of names")],
    tag: Annotated[list[str] | None, typer.Option(help="put it on")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="take it off")] = None,
    note: Annotated[str | None, typer.Option(help="in place of the old one; empty: none")] = None,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
) -> None:
    """Put tags and a note on finished runs, which change nothing else; say what stands there."""
    found = Finished(results, tier)
    known = found.rows(["name", "tier"])
    for line in found.broken:
        typer.echo(f"left out: {line}", err=True)
    chosen: dict[str, dict[str, str]] = {}
    for text in run:
        named = {
            one["name"]: one
            for one in known
            if one["name"].startswith(text) or one["identity"].startswith(text)
        }
        if not named:
            hint = nearest(text, [one["name"] for one in known])
            raise ConfigError(f"{text}: no finished run under {results} begins so; {hint}")
        if len(named) > 1 and text not in named:
            listed = ", ".join([*named][:5])
            raise ConfigError(f"{text}: {len(named)} runs begin so; write more: {listed}")
        one = named.get(text) or named.popitem()[1]
        chosen.setdefault(one["tier"], {})[one["identity"]] = one["name"]
    for at, names in chosen.items():
        said = remark(results, at, names, tags=tag or (), untag=untag or (), note=note)
        for identity, name in names.items():
            typer.echo(f"{name}  {' '.join(said[identity].tags)}  {said[identity].note}".rstrip())


COMMANDS = (runs, note)
