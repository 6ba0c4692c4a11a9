"""The figures of a tier: which there are, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lsa_study.analysis.plots import costs, curves, rows, style
from lsa_study.analysis.rows import Row, rows_of, with_runs
from lsa_study.config.study import Study
from lsa_study.files import write_whole

CAPTIONS: Mapping[str, str] = {
    "accuracy": "Accuracy of every row beside the article's.",
    "differences": "Differences to the reference rows beside the article's.",
    "curves": "Test accuracy after every epoch.",
    "seeds": "Accuracy of every seed.",
    "heads": "Accuracy over the number of heads beside the article's.",
    "costs": "Accuracy of every row against the multiply-adds of one image.",
    "throughput": "Accuracy of every row against the images a second in training.",
    "layers": "Accuracy, parameters and multiply-adds of the layers of the article's Fig. 1.",
}
"""By the last word of a figure's name: what it shows, also for those who cannot see it."""


def write_plots(studies: Sequence[Study], results: Path) -> list[Path]:
    """Draw every figure of the studies; each is written as SVG and PNG.

    Rows without an accuracy stand in the figures as words. The figures of studies at one tier
    lie in ``DIR/<tier>/plots``; the figures of costs and throughput hold the rows of all of them.
    """
    paths = []
    for tier, pairs in with_runs(studies, results).items():
        folder = results / tier / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        for name, drawn in figures([(one, rows_of(one, runs)) for one, runs in pairs]).items():
            for kind, content in (("svg", style.svg(drawn)), ("png", style.png(drawn))):
                paths.append(folder / f"{name}.{kind}")
                write_whole(paths[-1], content)
    return paths


def figures(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> dict[str, Figure]:
    """The figures of studies at one tier, by file name."""
    drawn: dict[str, Figure] = {}
    with style.styled():
        for study, of_study in pairs:
            made = {"accuracy": rows.accuracy(study, of_study)}
            if any(row.reference != row.variant for row in of_study):
                made["differences"] = rows.differences(study, of_study)
            made["curves"] = curves.curves(study, of_study)
            if any(row.accuracy.n > 1 for row in of_study):
                made["seeds"] = rows.seeds(study, of_study)
            if study.file.factor == ["model.op.heads"]:
                made["heads"] = rows.heads(study, of_study)
            for kind, figure in made.items():
                style.say_about(figure, [study])
                drawn[f"{study.name}-{kind}"] = figure
        over = {} if (layers := rows.layers(pairs)) is None else {"fig1-layers": layers}
        # Of one side study alone they must not take the place of those of all studies.
        begin = f"{pairs[0][0].alias}-" if len(pairs) == 1 and pairs[0][0].alias else ""
        for kind, figure in (over | costs.costs(pairs)).items():
            style.say_about(figure, [study for study, _ in pairs])
            drawn[f"{begin}{kind}"] = figure
        return drawn
