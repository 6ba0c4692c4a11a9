"""The figures of a tier: which there are, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lsa_study.analysis.claims import ClaimVerdict, families, judge_studies
from lsa_study.analysis.plots import costs, curves, forest, heat, rows, seen, style
from lsa_study.analysis.rows import Row, with_runs
from lsa_study.analysis.table import build
from lsa_study.config.study import Study
from lsa_study.files import write_whole


def write_plots(studies: Sequence[Study], results: Path) -> list[Path]:
    """Draw every figure of the studies; each is written as SVG and PNG.

    Rows without an accuracy stand in the figures as words. The figures of studies at one tier
    lie in ``DIR/<tier>/plots``; the figures of costs and throughput hold the rows of all of them,
    those of claims all claims of the article, and those of each study of your own.
    """
    paths = []
    for tier, pairs in with_runs(studies, results).items():
        folder = results / tier / "plots"
        judged = judge_studies([one for one, _ in pairs], results, pairs[0][1])
        tables = [(one, build(one, runs).rows) for one, runs in pairs]
        for name, drawn in figures(tables, judged).items():
            for kind, content in (("svg", style.svg(drawn)), ("png", style.png(drawn))):
                paths.append(folder / f"{name}.{kind}")
                write_whole(paths[-1], content, make_folder=True)
    return paths


def figures(
    pairs: Sequence[tuple[Study, Sequence[Row]]], judged: Sequence[ClaimVerdict] = ()
) -> dict[str, Figure]:
    """The figures of studies and of the claims judged at one tier, by file name.

    The label of each is a sentence that says what it shows, also for those who cannot see it.
    """
    drawn: dict[str, Figure] = {}
    figure: Figure | None
    with style.styled():
        for study, of_study in pairs:
            made = {"accuracy": rows.accuracy(study, of_study)}
            if any(row.reference != row.variant for row in of_study):
                made["differences"] = rows.differences(study, of_study)
            of_some = {
                "agreement": forest.agreement(study, of_study),
                "heat": heat.heat(study, of_study),
                "seen": seen.seen(study, of_study),
            }
            made |= {kind: figure for kind, figure in of_some.items() if figure is not None}
            made["curves"] = curves.curves(study, of_study)
            if any(row.accuracy.n > 1 for row in of_study):
                made["seeds"] = rows.seeds(study, of_study)
            if study.file.factor == ["model.op.heads"] and study.file.article:
                made["heads"] = rows.heads(study, of_study)
            for kind, figure in made.items():
                style.say_about(figure, [study])
                drawn[f"{study.name}-{kind}"] = figure
        studies = [one for one, _ in pairs]
        for family, of in families(judged).items():
            owner = next((one for one in studies if one.name == family), studies[0])
            if (figure := forest.claims(owner, of)) is not None:
                drawn[claims_name(family, studies)] = figure
        over = {} if (layers := rows.layers(pairs)) is None else {"fig1-layers": layers}
        for metric in dict.fromkeys(study.metrics[0] for study in studies):
            of_metric = [pair for pair in pairs if pair[0].metrics[0] == metric]
            more = "" if metric == "acc1" else f"-{metric}"
            over |= {f"{kind}{more}": made for kind, made in costs.costs(of_metric).items()}
        # Of one side study alone they must not take the place of those of all studies.
        begin = f"{pairs[0][0].alias}-" if len(pairs) == 1 and pairs[0][0].alias else ""
        for kind, figure in over.items():
            style.say_about(figure, [study for study, _ in pairs])
            drawn[f"{begin}{kind}"] = figure
        return drawn


def claims_name(family: str, studies: Sequence[Study]) -> str:
    """The name of the figure of the article's claims, or of those of a study of your own."""
    # Of one side study alone it must not take the place of that of all studies.
    alone = studies[0].alias if len(studies) == 1 else ""
    return f"{family or alone}-claims".removeprefix("-")
