"""The command line ``lsa``: each command parses, calls one function, prints one answer."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lsa_study import asked
from lsa_study import plan as planning
from lsa_study import study as studies
from lsa_study.errors import ConfigError, LsaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What limits local self-attention? From experiment files to tables with intervals. "
    "Exit codes: 0 good, 1 some run failed, 2 bad config or usage, 3 the machine lacks something, "
    "4 refused for safety, 130 interrupted.",
)

StudyNames = Annotated[list[str], typer.Argument(metavar="STUDY...", help="stem, path, or all")]
Tier = Annotated[str, typer.Option(help="toy, proxy or paper")]
Seeds = Annotated[str | None, typer.Option(help="such as 0-2 or 0,3; else the tier's")]
Only = Annotated[str | None, typer.Option(help="variants to keep, as globs: net6*,elsa")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=c, for every run")]
Results = Annotated[Path, typer.Option(help="folder of runs, tables and plots")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Confound = Annotated[
    list[str] | None, typer.Option(help="a setting that may differ too; the table gets a dagger")
]


class Interrupted(LsaError):
    """Ctrl-C outside the queue."""

    exit_code = 130


def main() -> None:
    """Run a command; errors of users are told in words, with the exit code of their kind."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except LsaError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"lsa: {line}\n")
        sys.exit(error.exit_code)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("interrupted")


def parse_seeds(text: str | None) -> list[int] | None:
    """Read ``0-2`` or ``0,3,5`` as a list of seeds."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--seeds {text}: not seeds; write 0-2 or 0,3,5")
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds:
        raise ConfigError(f"--seeds {text}: holds no seed; write the smaller one first, as 0-2")
    return list(dict.fromkeys(seeds))


def load_all(
    names: Sequence[str],
    tier: str,
    seeds: str | None,
    only: str | None,
    overrides: Sequence[str] | None,
    allowed: Sequence[str] = (),
    results: Path | None = None,
) -> list[studies.Study]:
    """Read studies, each held to its contrast contract; ``--only`` may spare some of several.

    With ``results``, seeds and overrides that are not given are those last asked for there.
    """
    wide = studies.expand_names(names)
    chosen, unmatched = [], []
    for name in wide:
        before = asked.recall(results, tier, Path(name).stem) if results else asked.Asked()
        try:
            loaded = studies.load(
                name,
                tier=tier,
                seeds=parse_seeds(seeds) or before.seeds,
                only=only,
                overrides=before.overrides if overrides is None else overrides,
            )
        except studies.NoVariant as error:
            unmatched.append(error)
            continue
        studies.check_contrast(loaded, allowed)
        chosen.append(loaded)
    if not chosen:
        raise ConfigError(*(mistake for error in unmatched for mistake in error.mistakes))
    return chosen


@app.command()
def plan(
    study: StudyNames,
    tier: Tier = "toy",
    seeds: Seeds = None,
    only: Only = None,
    overrides: Overrides = None,
    results: Results = Path("results"),
    allow_confound: Confound = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run, and check everything; write nothing."""
    loaded = load_all(study, tier, seeds, only, overrides, allow_confound or ())
    if not as_json:
        typer.echo(planning.as_text(loaded, results))
        return
    documents: Any = [planning.as_json(one) for one in loaded]
    typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))


@app.command()
def run(
    study: StudyNames,
    tier: Tier = "toy",
    seeds: Seeds = None,
    only: Only = None,
    overrides: Overrides = None,
    results: Results = Path("results"),
    jobs: Annotated[int | None, typer.Option(min=1, help="workers; else one per GPU")] = None,
    allow_confound: Confound = None,
) -> None:
    """Train here what is missing, seed 0 of every row first; call again to go on."""
    from lsa_study.launch.local import Queue

    loaded = load_all(study, tier, seeds, only, overrides, allow_confound or ())
    console = Console(soft_wrap=True)
    summary = Queue(results, jobs=jobs, console=console).work(
        studies.distinct(loaded),
        started=lambda: asked.remember(results, loaded, overrides or ()),
    )
    counts: dict[str, int] = {}
    for state in summary.finished.values():
        counts[state] = counts.get(state, 0) + 1
    words = [f"{number} {state}" for state, number in sorted(counts.items())]
    if summary.already:
        words.append(f"{summary.already} were done before")
    if summary.held:
        words.append(f"{summary.held} held")
    typer.echo(", ".join(words) or "nothing to do")
    if summary.interrupted:
        typer.echo(f"Continue with the same command: lsa {' '.join(sys.argv[1:])}")
    raise typer.Exit(summary.exit_code)


@app.command()
def table(
    study: StudyNames,
    tier: Tier = "toy",
    seeds: Seeds = None,
    only: Only = None,
    overrides: Overrides = None,
    results: Results = Path("results"),
    allow_confound: Confound = None,
) -> None:
    """Write the tables of finished runs (csv, tex, md, json) and print them."""
    from lsa_study.report import tables

    loaded = load_all(study, tier, seeds, only, overrides, allow_confound or (), results)
    for path in tables.write_tables(loaded, results):
        if path.suffix == ".md":
            typer.echo(path.read_text("utf-8"))
    typer.echo(f"written to {tables.tables_folder(results, tier)}")


@app.command()
def plots(
    study: Annotated[list[str] | None, typer.Argument(metavar="[STUDY...]")] = None,
    tier: Tier = "toy",
    seeds: Seeds = None,
    overrides: Overrides = None,
    results: Results = Path("results"),
) -> None:
    """Draw the figures of finished runs, as SVG and PNG."""
    from lsa_study.report.plots import write_plots

    loaded = load_all(study or ["all"], tier, seeds, None, overrides, (), results)
    for path in write_plots(loaded, results):
        typer.echo(path)


@app.command()
def doctor(results: Results = Path("results")) -> None:
    """Show what this machine has: GPUs, kernels, SLURM, data, disk."""
    from lsa_study.doctor import report

    for topic, words in report(results):
        typer.echo(f"{topic:<9} {words}")


if __name__ == "__main__":
    main()
