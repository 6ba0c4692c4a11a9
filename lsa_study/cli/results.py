"""Commands that turn finished runs into tables, verdicts, figures and answers."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsa_study.cli import options as opt
from lsa_study.cli.doctor import doctor
from lsa_study.cli.options import Selection, selecting
from lsa_study.config.asked import options_of
from lsa_study.config.find import own_claims
from lsa_study.config.names import short
from lsa_study.errors import ConfigError
from lsa_study.terminal import show_table

if TYPE_CHECKING:
    from lsa_study.analysis.table import Table


@selecting
def table(
    chosen: Selection,
    tier: opt.FirstTier = None,
    results: opt.SomeResults = opt.RESULTS,
    allow_confound: opt.Confound = None,
    check: Annotated[
        bool, typer.Option("--check", help="rebuild from runs.parquet and compare; write nothing")
    ] = False,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="what tex and md show; else all")
    ] = None,
    pivot: Annotated[
        str | None,
        typer.Option(metavar="DOWN,ACROSS", help="two factors of a grid; else its first"),
    ] = None,
) -> None:
    """Write the tables of finished runs (csv, tex, md, json) and print them."""
    from lsa_study.analysis import formats

    loaded = chosen.load(allow_confound, recall=True)
    names = [name.strip() for name in columns.split(",")] if columns else []
    factors = [name.strip() for name in pivot.split(",")] if pivot else []
    if len(factors) not in (0, 2):
        raise ConfigError(f"--pivot {pivot}: {len(factors)} factors; give two, as down,across")
    if factors and not any(one.grid and len(one.grid.factors) > 1 for one in loaded):
        raise ConfigError(f"--pivot {pivot}: none of these is a grid of two factors; drop it")
    if check:
        differing = formats.check_tables(loaded, chosen.results, names, factors)
        for line in differing:
            typer.echo(line)
        number = "1 cell differs" if len(differing) == 1 else f"{len(differing)} cells differ"
        typer.echo(number if differing else "all cells rebuilt")
        raise typer.Exit(1 if differing else 0)
    terminal = sys.stdout.isatty()
    show = partial(_show, columns=names) if terminal else (lambda table: None)
    written = formats.write_tables(loaded, chosen.results, names, factors, seen=show)
    for path in written:
        if path.suffix == ".md" and (not terminal or path.stem.endswith("-pivot")):
            typer.echo(path.read_text("utf-8"))
    for folder in dict.fromkeys(path.parent for path in written):
        typer.echo(f"written to {folder}")


def _show(table: Table, columns: Sequence[str]) -> None:
    from lsa_study.analysis.latex import places

    typer.echo(table.caption)
    shown = places(table, columns)
    cells = [table.header(), *table.texts()]
    for line, row in zip(cells[1:], table.rows, strict=True):
        line[0] += "".join(f" {mark}" for mark in row.marks)
    show_table([[line[at] for at in shown] for line in cells])
    typer.echo()
    for note in table.notes:
        typer.echo(textwrap.fill(f"{note.mark} {note.text}".strip(), get_terminal_size().columns))
    typer.echo()


def plots(
    study: opt.MaybeStudies = None,
    tier: opt.Tier = "toy",
    seeds: opt.Seeds = None,
    overrides: opt.Overrides = None,
    results: opt.SomeResults = opt.RESULTS,
) -> None:
    """Draw the figures of finished runs, as SVG and PNG."""
    from lsa_study.analysis.plots import write_plots

    chosen = Selection(study or ["all"], tier, seeds, None, overrides, results)
    for path in write_plots(chosen.load(recall=True), results):
        typer.echo(path)


def why(
    table: Annotated[str, typer.Argument(help="a study, such as table3")],
    row: Annotated[str, typer.Argument(help="a variant, such as net6_n")],
    tier: opt.Tier = "toy",
    results: opt.OldResults = opt.RESULTS,
    as_json: opt.AsJson = False,
) -> None:
    """Name everything a table's row rests on: runs, seeds, commits, files."""
    from lsa_study.analysis import provenance
    from lsa_study.analysis.collect import collect

    (study,) = Selection([table], tier, results=results).load(recall=True)
    found = provenance.why(study, row, collected := collect(results, tier), results)
    for line in collected.broken:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(json.dumps(found, indent=2) if as_json else provenance.why_text(found))


def diff(
    one: Annotated[str, typer.Argument(metavar="RUN")],
    other: Annotated[str, typer.Argument(metavar="RUN")],
    tier: opt.MaybeTier = None,
    results: opt.OldResults = opt.RESULTS,
    as_json: opt.AsJson = False,
) -> None:
    """Compare two finished runs: settings, code, environment, metrics."""
    from lsa_study.analysis import provenance

    found = provenance.diff(results, one, other, tier)
    typer.echo(json.dumps(found, indent=2) if as_json else provenance.diff_text(found))


def claims(
    tier: opt.Tier = "toy",
    results: opt.OldResults = opt.RESULTS,
    file: Annotated[Path | None, typer.Option(help="claims; else experiments/claims.yaml")] = None,
    study: Annotated[
        str | None, typer.Option(help="show those about it alone; a side study's by its own runs")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Judge claims by the finished runs of a tier: the article's, or those of a study or a file."""
    from lsa_study.analysis import claims as ledger
    from lsa_study.analysis.collect import collect
    from lsa_study.config.ledger import Claims

    one = None
    if study:
        try:
            (one,) = Selection([study], tier, results=results).load(recall=True)
        except ConfigError:
            # The article's claims are also about studies that are not here, or not at this tier.
            if study not in ledger.studies_of(Claims.read()):
                raise
        study = short(one.file.study) if one else study
    collected = collect(results, tier, update=True)
    for line in collected.broken:
        typer.echo(f"left out: {line}", err=True)
    if one is not None and file is None:
        found = ledger.judge_studies([one], results, collected)
        if not found:
            raise ConfigError(f"--study {study}: has no claims; write claims: into its file")
    else:
        own = one if one and not one.file.article else None
        found = ledger.judge_tier(
            results, tier, path=file, collected=collected, side=own, own=own is not None
        )
    for name in own_claims(results) if not study and not file else ():
        hint = f"lsa claims --study {name}{options_of(results, tier)}"
        typer.echo(f"{name} has claims of its own: {hint}", err=True)
    found = ledger.of_study(found, study) if study else found
    shown = json.dumps(ledger.claims_json(found, tier), indent=2) if as_json else None
    typer.echo(shown or ledger.claims_text(found, tier))


def collect_from(
    source: Annotated[Path, typer.Option("--from", help="another results folder")],
    tier: opt.Tier = "toy",
    results: opt.Results = opt.RESULTS,
) -> None:
    """Take the finished runs of another results folder into runs.parquet here."""
    from lsa_study.analysis.merge import merge

    for line in merge(results, source, tier):
        typer.echo(line, err=line.startswith("left out"))


def report(
    study: opt.MaybeStudies = None,
    tier: opt.Tier = "toy",
    results: opt.SomeResults = opt.RESULTS,
    serve: Annotated[
        bool, typer.Option("--serve", help="show it here, built anew while runs go on")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of --serve; 0: a free one")] = 8765,
) -> None:
    """Write one self-contained HTML page: claims, tables, figures."""
    from lsa_study.analysis.html import write_report

    def build() -> Path:
        chosen = Selection(study or ["all"], tier, results=results)
        return write_report(chosen.load(recall=True), results)[0]

    if not serve:
        typer.echo(build())
        return
    from lsa_study.cli.serve import serve as show

    show(build, results, tier, port=port, say=typer.echo)


def evaluate(
    model: Annotated[str, typer.Argument(help="a network's name, such as elsa_swin_tiny")],
    weights: Annotated[Path, typer.Option(help="the released checkpoint")],
    source: Annotated[str, typer.Option(help="timm, swin, elsa, dwnet, ddf, involution or volo")],
    data: Annotated[str | None, typer.Option(help="holds imagenet/; else LSA_DATA")] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="pixels of the crop; else its own")
    ] = None,
    crop: Annotated[
        float | None, typer.Option(help="the crop's share of the shorter side; else its own")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="pixels of a window, such as 12 at 384; else its own")
    ] = None,
    results: opt.Results = opt.RESULTS,
) -> None:
    """Measure top-1 and top-5 of released weights."""
    from lsa_study.training.evaluate_released import evaluate_weights

    found = evaluate_weights(
        model, weights, source=source, root=data, image_size=size, crop_share=crop, window=window,
        results=results,
    )  # fmt: skip
    scores = f"top-1 {found['acc1']:.2f} %  top-5 {found['acc5']:.2f} %  {found['images']} images"
    typer.echo(f"{model}: {scores}")


def bench(
    layer: Annotated[
        list[str] | None, typer.Argument(metavar="[LAYER...]", help="networks; else Table 7's")
    ] = None,
    size: Annotated[int, typer.Option(min=32, help="pixels of an image's side")] = 224,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images at once; else 128 on a GPU, 8 on a CPU")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; else a GPU if there is")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="of timing, for each mode")] = 60.0,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose",
            help="measure which way computes the operators of these networks fastest on this "
            "device, for --seconds at most, and keep it for runs here",
        ),
    ] = False,
    results: opt.Results = opt.RESULTS,
    as_json: opt.AsJson = False,
) -> None:
    """Time networks in turns with window attention: params, MACs, images/s, peak memory."""
    from lsa_study.models import choose as choosing
    from lsa_study.models import throughput as benchmark

    asked: dict[str, Any] = {
        "size": size, "batch": batch, "device": device, "seconds": seconds, "results": results
    }  # fmt: skip
    if choose:
        found = choosing.choose(layer or (), **asked)
        text = choosing.choose_text(found)
    else:
        found = benchmark.bench(layer or (), **asked)
        text = benchmark.bench_text(found)
    typer.echo(json.dumps(found, indent=2) if as_json else text)


COMMANDS = (table, why, diff, claims, plots, report, doctor, bench)
