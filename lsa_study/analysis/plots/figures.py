"""The figures of a tier: which there are, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lsa_study.analysis.plots import style
from lsa_study.analysis.plots.accuracy import accuracy
from lsa_study.analysis.plots.costs import costs, throughput
from lsa_study.analysis.plots.curves import curves
from lsa_study.analysis.plots.forest import forest
from lsa_study.analysis.plots.heads import heads
from lsa_study.analysis.plots.layers import has_layers, layers
from lsa_study.analysis.plots.strips import strips
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.tables import with_runs
from lsa_study.config.study import Study


def plots_folder(results: Path, tier: str) -> Path:
    """Where the figures of a tier lie under a results folder."""
    return results / tier / "plots"


def write_plots(studies: Sequence[Study], results: Path) -> list[Path]:
    """Draw every figure of the studies; each is written as SVG and PNG.

    Rows without an accuracy stand in the figures as words. The figures of studies at one tier
    lie in ``DIR/<tier>/plots``; the figures of costs and throughput
    hold the rows of all of them.
    """
    by_tier: dict[str, list[tuple[Study, list[Row]]]] = {}
    for study, collected in with_runs(studies, results):
        by_tier.setdefault(study.tier, []).append((study, rows_of(study, collected)))
    return [
        path
        for tier, pairs in by_tier.items()
        for name, drawn in figures(pairs).items()
        for path in style.save(drawn, plots_folder(results, tier) / name)
    ]


def figures(pairs: Sequence[tuple[Study, Sequence[Row]]]) -> dict[str, Figure]:
    """The figures of studies at one tier, by file name."""
    drawn: dict[str, Figure] = {}
    with style.styled():
        for study, rows in pairs:
            drawn[f"{study.name}-accuracy"] = accuracy(study, rows)
            if any(row.reference != row.variant for row in rows):
                drawn[f"{study.name}-differences"] = forest(study, rows)
            drawn[f"{study.name}-curves"] = curves(study, rows)
            if any(row.accuracy.n > 1 for row in rows):
                drawn[f"{study.name}-seeds"] = strips(study, rows)
            if study.file.factor == ["model.op.heads"]:
                drawn[f"{study.name}-heads"] = heads(study, rows)
        if has_layers(pairs):
            drawn["fig1-layers"] = layers(pairs)
        drawn["costs"] = costs(pairs)
        drawn["throughput"] = throughput(pairs)
    return drawn
