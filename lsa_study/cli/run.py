"""Commands that plan, start and follow runs."""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lsa_study.cli import options as opt
from lsa_study.cli.options import Selection, selecting
from lsa_study.config import study as studies
from lsa_study.config.asked import options_of
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError
from lsa_study.terminal import Screen, guard_output, width_of, wrapped


def _asked_for(loaded: Sequence[studies.Study]) -> list[studies.RunSpec]:
    """The distinct runs, once what they need is installed and what is from outside works."""
    from lsa_study.launch import plan as planning
    from lsa_study.launch.track import require

    runs = studies.distinct(loaded)
    for tracker in {run.settings.runtime.tracker for run in runs}:
        require(tracker)
    planning.check_tasks(runs)
    planning.check_outside(runs)
    return runs


def _noted(chosen: Selection, loaded: Sequence[studies.Study]) -> None:
    """Remember what is asked for, and say how to read it where it is a side study."""
    remember(chosen.results, loaded)
    for one in loaded:
        if one.alias:
            for line in wrapped(f"{one.alias} is a {one.about}"):
                typer.echo(line)
            typer.echo(f"  read it: lsa table {one.alias}{options_of(chosen.results, one.tier)}")


@selecting
def plan(
    chosen: Selection,
    study: opt.MaybeStudies = None,
    allow_confound: opt.Confound = None,
    yes: opt.Many = False,
    as_json: opt.AsJson = False,
    listed: Annotated[bool, typer.Option("--list", help="name all studies and stop")] = False,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="print the fidelity sheet alone, as Markdown")
    ] = False,
) -> None:
    """Show what would run, and check everything; write nothing."""
    from lsa_study.launch import plan as planning

    if listed:
        typer.echo("\n".join(planning.known_studies(chosen.results)))
        return
    if not study:
        raise ConfigError("lsa plan: Missing argument 'STUDY...'; give one, or see --list")
    loaded = chosen.load(allow_confound, many=yes)
    planning.check_starts(loaded)
    sheets = []
    if chosen.tier == "paper":
        from lsa_study.analysis.sheet import sheet_of  # with pandas: half of this command's time

        sheets = [sheet_of(one) for one in loaded if one.file.article]
    if sheet:
        if not sheets:
            if chosen.tier == "paper":
                raise ConfigError("--sheet: only a study with an article has a sheet; drop it")
            raise ConfigError(f"--sheet: tier {chosen.tier} has no sheet; give --tier paper")
        typer.echo("\n".join(one.markdown() for one in sheets), nl=False)
        return
    planning.check_tasks(studies.distinct(loaded))
    planning.check_outside(studies.distinct(loaded))
    # Days of GPUs hang on this tier: its networks are built before anybody waits for them. Options
    # of an operator from outside are nobody's but its author's.
    own = [":" in of.model.op.kind for one in loaded for of in one.variants.values()]
    models = planning.check_models(loaded) if chosen.tier == "paper" or any(own) else None
    if not as_json:
        typer.echo(planning.plan_text(loaded, chosen.results))
        if models:
            typer.echo(f"models: {models}")
        for one in sheets:
            typer.echo(one.text())
        return
    documents = [planning.plan_json(one) for one in loaded]
    typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))


def rehearse(
    study: opt.Studies,
    tier: opt.Tier = "toy",
    only: opt.Only = None,
    overrides: opt.Overrides = None,
    results: opt.Results = opt.RESULTS,
    grid: opt.Grid = None,
    yes: opt.Many = False,
    allow_confound: opt.Confound = None,
) -> None:
    """Train a few steps of every row, kill it, resume it, compare; predict what the grid costs."""
    from lsa_study.launch.rehearse import Rehearsal

    guard_output(needed=False)
    chosen = Selection(study, tier, None, only, overrides, results, grid)
    loaded = chosen.load(allow_confound, many=yes)
    found = Rehearsal(results, tell=typer.echo).work(_asked_for(loaded))
    plan = f"lsa plan {' '.join(study)}{options_of(results, tier)}"
    typer.echo(f"{len(found)} rows, {sum(row.state == 'ok' for row in found)} ok; "
               f"what the runs will cost: {plan}")  # fmt: skip
    raise typer.Exit(int(any(row.state == "failed" for row in found)))


@selecting
def run(
    chosen: Selection,
    jobs: opt.Jobs = None,
    again: opt.Again = False,
    yes: opt.Many = False,
    allow_confound: opt.Confound = None,
    alias: opt.As = None,
) -> None:
    """Train here what is missing, seed 0 of every row first; call again to go on."""
    from lsa_study.launch.known import KNOWN
    from lsa_study.launch.local import Queue

    guard_output(needed=False)
    loaded = chosen.load(allow_confound, alias=alias, many=yes)
    console = Screen()
    summary = Queue(chosen.results, jobs=jobs, console=console).work(
        _asked_for(loaded), started=lambda: _noted(chosen, loaded), again=again
    )
    counts = sorted(Counter(summary.finished.values()).items())
    counts += [("were done before", summary.already), ("held", summary.held)]
    counts += [(f"{KNOWN} (--again trains them)", summary.elsewhere)]
    done = (f"{number} {state}" for state, number in counts if number)
    typer.echo(", ".join(done) or ("interrupted" if summary.interrupted else "nothing to do"))
    if summary.interrupted:
        typer.echo(f"Continue with the same command: lsa {' '.join(sys.argv[1:])}")
    raise typer.Exit(summary.exit_code)


@selecting
def launch(
    chosen: Selection,
    cluster: Annotated[str, typer.Option(help="slurm")] = "slurm",
    site: opt.Site = None,
    partition: opt.Partition = None,
    account: Annotated[str | None, typer.Option(help="who pays, as sbatch takes it")] = None,
    qos: Annotated[str | None, typer.Option(help="quality of service, as sbatch takes it")] = None,
    constraint: Annotated[str | None, typer.Option(help="nodes' features, such as a100")] = None,
    nice: Annotated[int | None, typer.Option(min=0, help="let others go first by so much")] = None,
    nodes: Annotated[int | None, typer.Option(help="nodes of a run; else the study's")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a node; 0: a CPU cluster")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPU cores for each GPU")] = None,
    memory: Annotated[int | None, typer.Option(help="GB of a node")] = None,
    hours: Annotated[float | None, typer.Option(help="time limit of a job")] = None,
    fit: Annotated[
        bool, typer.Option(help="on fewer GPUs, steps in more parts: the same memory for each")
    ] = False,
    throttle: Annotated[int | None, typer.Option(min=1, help="runs at once")] = None,
    again: opt.Again = False,
    yes: opt.Many = False,
    allow_confound: opt.Confound = None,
    dry_run: Annotated[bool, typer.Option(help="print the batch scripts, queue nothing")] = False,
    alias: opt.As = None,
) -> None:
    """Submit to SLURM what is missing and return; call again to go on."""
    from lsa_study.launch import cluster as sites
    from lsa_study.launch import slurm

    if cluster != "slurm":
        raise ConfigError(f"--cluster {cluster}: no such cluster; known: slurm")
    loaded = chosen.load(allow_confound, alias=alias, many=yes)
    flags = {
        "partition": partition, "account": account, "qos": qos, "constraint": constraint,
        "nice": nice, "throttle": throttle, "resources.nodes": nodes, "resources.gpus": gpus,
        "resources.cpus": cpus, "resources.memory_gb": memory, "resources.hours": hours,
    }  # fmt: skip
    site_settings = sites.read_cluster(site, flags)
    launched = slurm.launch(
        _asked_for(loaded), chosen.results, site_settings, dry_run=dry_run, anew=again, fit=fit
    )
    if not dry_run:
        _noted(chosen, loaded)
    for line in (*launched.scripts, *launched.lines()):
        typer.echo(line)
    raise typer.Exit(launched.exit_code)


def status(
    study: opt.MaybeStudies = None,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    watch: Annotated[bool, typer.Option(help="show it anew until nothing is under way")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Tell where runs stand; without a study, all that are there."""
    from lsa_study.launch import status as states
    from lsa_study.launch.records import asked_studies

    asked = [one for one in asked_studies(results, study or [], tier) if one.about]
    about = [f"{one.alias}: {one.about}" if one.alias else one.about for one in asked]
    look = functools.partial(states.status, results, study or [], tier=tier)
    if as_json:
        told = {"about": about} if about else {}
        typer.echo(json.dumps(states.status_json(look()) | told, indent=2))
    elif watch:
        states.watch(look, results, Screen())
    else:
        for line in (line for one in about for line in wrapped(one)):
            typer.echo(line)
        screen = Screen()
        screen.print(states.page(look(), results, width_of(screen)), soft_wrap=True)


def logs(
    run: Annotated[str, typer.Argument(help="the beginning of a run's name or identity")],
    results: opt.OldResults = opt.RESULTS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until the run ends")] = False,
    rank: Annotated[int, typer.Option(min=0, help="which process")] = 0,
    attempt: Annotated[int | None, typer.Option(min=1, help="which attempt")] = None,
) -> None:
    """Print what a run printed."""
    from lsa_study.launch.status import logs as show

    show(results, run, sys.stdout.write, follow=follow, rank=rank, attempt=attempt)


def track(
    run: Annotated[list[str], typer.Argument(metavar="RUN|STUDY...", help="or run folders")],
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until the runs end")] = False,
    tracker: Annotated[
        str | None, typer.Option(help="tensorboard, wandb or trackio; else runtime.tracker")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="of wandb: offline or online")] = None,
    project: Annotated[str | None, typer.Option(help="of wandb, as the next three")] = None,
    entity: Annotated[str | None, typer.Option()] = None,
    group: Annotated[str | None, typer.Option()] = None,
    tag: Annotated[list[str] | None, typer.Option()] = None,
) -> None:
    """Mirror runs in TensorBoard, Weights & Biases or trackio."""
    from lsa_study.launch.track import track as mirror

    if mode not in (None, "offline", "online"):
        raise ConfigError(f"--mode {mode}: no such mode; known: offline, online")
    given = {"mode": mode, "project": project, "entity": entity, "group": group, "tags": tag}
    flags = {name: value for name, value in given.items() if value}
    good = mirror(results, run, typer.echo, tier=tier, follow=follow, tracker=tracker, flags=flags)
    raise typer.Exit(int(not good))


def retry(
    study: opt.MaybeStudies = None,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    cause: Annotated[str | None, typer.Option(help="causes, such as oom-host,node")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=2, help="for oom: parts of a step; same effective batch")
    ] = None,
    site: opt.Site = None,
    partition: opt.Partition = None,
    jobs: opt.Jobs = None,
) -> None:
    """Run again what failed, and nothing else."""
    from lsa_study.launch import cluster as sites
    from lsa_study.launch.local import Queue
    from lsa_study.launch.retry import retry as again

    guard_output(needed=False)
    cluster = sites.read_cluster(site, {"partition": partition})
    causes = cause.split(",") if cause else []
    done = again(results, study or [], cluster, causes=causes, tier=tier, accumulate=accumulate)
    for line in done.lines():
        typer.echo(line)
    code = done.exit_code
    if done.local:
        console = Screen()
        code = max(code, Queue(results, jobs=jobs, console=console).work(done.local).exit_code)
    raise typer.Exit(code)


def cancel(
    study: opt.Studies,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    now: Annotated[bool, typer.Option("--now", help="do not wait for a checkpoint")] = False,
    yes: opt.Yes = False,
) -> None:
    """Stop runs: what runs saves first."""
    from lsa_study.launch.cancel import cancel as stop

    done = stop(results, study, now=now, confirm=lambda q: yes or typer.confirm(q), tier=tier)
    for what, runs in done.items():
        typer.echo(f"{len(runs)} {what}")


def gc(
    study: opt.MaybeStudies = None,
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False,
    yes: opt.Yes = False,
) -> None:
    """Move old job files, and failed runs of the named studies, to .trash."""
    from lsa_study.launch.cancel import gc as clear

    moved = clear(
        results, study or [], confirm=lambda q: not dry_run and (yes or typer.confirm(q)), tier=tier
    )
    for path in moved:
        typer.echo(path)


def init(folder: Annotated[Path, typer.Argument(help="where to; else here")] = Path()) -> None:
    """Copy the experiment files and the article's numbers, to edit."""
    from lsa_study.config.shipped import copy_to

    written = copy_to(folder)
    typer.echo(f"{len(written)} files written to {folder.absolute()}")


COMMANDS = (init, plan, rehearse, run, launch, status, logs, track, retry, cancel, gc)
