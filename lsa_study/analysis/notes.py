"""The notes under a table: tier, data, environment, seeds, and what a reader must know of a row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lsa_study.analysis.article import rates_of
from lsa_study.analysis.collect import Collected, RunRecord
from lsa_study.analysis.rows import Row
from lsa_study.analysis.sheet import sheet_of
from lsa_study.analysis.statistics import kendall, signed
from lsa_study.config.operators import DdfOp, DwConvOp, DwNetOp
from lsa_study.config.study import Study
from lsa_study.config.task import METRICS

SEEDS_ALONE = "; they hold the noise of seeds alone, that of the test images is in none"
NOISE_OF_IMAGES: Mapping[str, str] = {
    "acc1": ", with the noise of the test images",
    "miou": ", with the noise of the test images, to first order",
    "box_ap": f"{SEEDS_ALONE}, as AP is no mean over images",
    "mask_ap": f"{SEEDS_ALONE}, as AP is no mean over images",
}
"""What the intervals of differences hold beside the seeds, by the metric."""
MEANING: Mapping[str, str] = {
    "toy": "Tier toy: a check that the pipeline works, never a reproduction of the article.",
    "proxy": "Tier proxy: small images and a small network, never a reproduction of the article; "
    "it can only show whether the order of the rows reappears.",
    "paper": "Tier paper: the article's data set and protocol.",
}
"""What the results of a tier may be taken for."""
OWN: Mapping[str, str] = {
    "toy": "Tier toy: a check that the pipeline works, never evidence.",
    "proxy": "Tier proxy: small images and a small network; what holds here need not hold for "
    "large ones.",
    "paper": "Tier paper: a whole data set, large networks, a full training.",
}
"""The same of a study without an article."""
COSTS_NOTE = (
    "Costs: parameters; 10⁹ multiply-adds of one image; seconds of training an epoch (median "
    "over seeds); peak memory in 2³⁰ bytes."
)

UNEVEN = 1.5
"""Between the seconds of a row's seeds on one device; alone they lie within a few percent."""


@dataclass(frozen=True)
class Note:
    """A line under a table; ``mark`` is the sign beside the rows it is about, or empty."""

    text: str
    mark: str = ""


def general_notes(study: Study, rows: Sequence[Row], collected: Collected) -> list[Note]:
    """Notes on the whole table: what its numbers are, and what they rest on."""
    ran = [run for row in rows for run in row.runs]
    reference = f"Δ: {_reference(rows)}"
    if not any(row.reference != row.variant for row in rows):
        reference = ""
    if study.file.article:
        reference = (
            f"Article: the values printed in {study.place}. Δ, and the article's value in "
            f"brackets: {_reference(rows)}"
        )
    lacking = [
        f"{row.variant} (seed {', '.join(map(str, absent))})"
        for row in rows
        for absent in [sorted({*study.seeds} - {run.seed for run in row.runs})]
        if row.runs and absent
    ]
    broken = ""
    if number := len(collected.broken):
        plural, verb = ("s", "are") if number > 1 else ("", "is")
        shown = "; ".join(collected.left_out[:3]) + "; ..." * (number > 3)
        broken = f"{number} file{plural} could not be read and {verb} left out: {shown}."
    texts = [
        meaning(study.tier, article=study.file.article is not None),
        f"About: {study.about}." if study.about else "",
        *map(collected.plain, study.asked.broken),
        reference,
        _reading(study, rows, bool(ran)),
        _noise(rows),
        f"Order: {found}" if (found := order(rows)) else "",
        _best(study, rows),
        *_basis(study, ran),
        f"Not finished: {'; '.join(lacking)}." if lacking else "",
        broken,
        rates_of(study)[1],
        *(
            [_shells(study), sheet_of(study).note]
            if study.tier == "paper" and study.file.article
            else []
        ),
    ]
    return [Note(text) for text in texts if text]


def _reference(rows: Sequence[Row]) -> str:
    """What differences are to; by name where that row has a difference of its own."""
    chained: dict[str, list[str]] = {}
    for row in rows:
        if row.base is not None and row.base.reference != row.base.variant:
            chained.setdefault(row.base.name, []).append(row.name)
    of = "".join(f", of {' and '.join(ours)} to {base}" for base, ours in chained.items())
    return f"difference to the reference row (–){of}, in points."


def _reading(study: Study, rows: Sequence[Row], ran: bool) -> str:
    """How the numbers and their intervals are to be read; where there are none, that."""
    named = METRICS[study.metrics[0]].title.removesuffix(" (%)")
    seeds = max((row.accuracy.n for row in rows), default=0)
    unbound = any(row.contrast.noise and row.contrast.difference.low is None for row in rows)
    reading = (
        f"{named}: no row has been run yet." if not ran else f"{named}: no run has given a number."
    )
    if seeds == 1:
        reading = (
            f"{named}: one seed, so no interval: differences within seed noise cannot be told "
            "apart."
        )
    elif seeds:
        reading = (
            f"{named}: mean over n seeds ± half of the 95 % t interval, its deviation pooled over "
            f"the rows where these vary alike; Δ: the same of the differences over shared seeds"
            f"{_of_images(study.metrics[0], rows)}. One seed has no interval"
            f"{', nor has a difference that too few seeds and rows bound' * unbound}."
        )
    if any(noise.looks is not None for row in rows if (noise := row.contrast.noise)):
        reading += (
            " Not all are over the seeds that the experiment file declared (seeds:) when the study "
            "was first asked for here; intervals of such differences are always valid: wider, and "
            "held at every look."
        )
    return reading


def meaning(tier: str, *, article: bool) -> str:
    """What the results of a tier may be taken for, of studies with an article or without one."""
    return (MEANING if article else OWN)[tier]


def _of_images(metric: str, rows: Sequence[Row]) -> str:
    """What the intervals of differences hold beside the seeds, and which of them do not."""
    noises = {row.name: noise for row in rows if (noise := row.contrast.noise) is not None}
    lacking = [name for name, noise in noises.items() if noise.image is None]
    if not lacking or metric not in ("acc1", "miou"):
        return NOISE_OF_IMAGES[metric]
    why = "as their runs, or those of the reference row, lack numbers by image"
    if len(lacking) == len(noises):
        return f"{SEEDS_ALONE}, {why}"
    return (
        f"{NOISE_OF_IMAGES[metric]}, but for {', '.join(lacking)}: theirs hold the noise of seeds "
        f"alone, {why}"
    )


def _noise(rows: Sequence[Row]) -> str:
    """The two noises of a difference, apart, and what the seeds can tell; of the median row."""
    found = [row.contrast for row in rows if row.contrast.seeds]
    noises = [contrast.noise for contrast in found if contrast.noise]
    parts = []
    if noises:
        spread = statistics.median(
            max(noise.seed, noise.least) * math.sqrt(noise.seeds) for noise in noises
        )
        parts.append(f"from seed to seed {spread:.2f} (standard deviation)")
    errors = [noise.image for noise in noises if noise.image is not None]
    if not noises:
        errors = [contrast.by_image.noise for contrast in found if contrast.by_image]
    if errors:
        parts.append(f"from the finite test set {statistics.median(errors):.2f} (standard error)")
    if not parts:
        return ""
    text = f"Noise of a difference, in points: {', '.join(parts)}."
    median = sorted(noises, key=lambda noise: noise.resolvable)[len(noises) // 2 :][:1]
    if median and math.isfinite(smallest := median[0].resolvable):
        text += (
            f" {median[0].seeds} seeds find a difference of {smallest:.2f} points in about 4 of 5 "
            "cases; smaller ones mostly stay unresolved."
        )
    return text


def order(rows: Sequence[Row]) -> str:
    """Whether the rows stand in the article's order, of those with a number on both sides."""
    pairs = [
        (row.accuracy.mean, row.article.value)
        for row in rows
        if row.accuracy.mean is not None and row.article.value is not None and not row.alike.refused
    ]
    found = kendall([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    if found is None:
        return ""
    tau, p, method = found
    chance = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    return (
        f"Kendall's tau with the article's is {signed(tau, 2).lstrip('+')} over {len(pairs)} rows "
        f"({chance}, one-sided, {method})."
    )


def _shells(study: Study) -> str:
    """What stands around the rows of filters, which the article prints as one layer."""
    inside: dict[str, list[str]] = {"dwnet": [], "linear": []}
    for name, row in study.variants.items():
        if isinstance(row.model.op, DwConvOp | DwNetOp | DdfOp) and row.model.op.shell in inside:
            inside[row.model.op.shell].append(name)
    dwnet, linear = map(", ".join, inside.values())
    parts = []
    if dwnet:
        parts.append(
            f"{dwnet} in DWNet's: 1 x 1 convolutions with batch norms and ReLUs, and batch norm "
            "before the perceptron too, where the other rows have layer norms and linear maps"
        )
    if linear:
        parts.append(f"{linear} in that of Eq. 4: layer norm and linear maps, not DWNet's")
    return f"Shell: {'; '.join(parts)}." if parts else ""


def _best(study: Study, rows: Sequence[Row]) -> str:
    """What the best epochs by the test set would give in place of the last ones."""
    higher, known = [], False
    for row in rows:
        # Of another choice, or judged by images that were held out, it is no such number.
        last = all((r.selected or r.settings.get("evaluation.epoch")) != "best" for r in row.done)
        tested = all(run.settings.get("data.validation") is None for run in row.done)
        best = [run.best_acc1 for run in row.done if run.best_acc1 is not None]
        if not (best and last and tested and len(best) == len(row.done)):
            continue
        known, mean = True, statistics.mean(best)
        if (gained := mean - statistics.mean(run.accuracy for run in row.done)) > 0:
            higher.append(f"{row.name} {mean:.2f} (+{gained:.2f})")
    if not known:
        return ""
    found = f"would give {', '.join(higher)}" if higher else "is the same one in every run"
    article = " The article does not say which it reports, its released code tracks the best."
    named = METRICS[study.metrics[0]].title.removesuffix(" (%)")
    said = f"{named} is the last epoch's; the best by the test set {found}."
    return said + article * (study.file.article is not None)


def _basis(study: Study, ran: Sequence[RunRecord]) -> list[str]:
    """What the numbers rest on: data and network, then machine and code of those that ran."""
    rows = list(study.variants.values())

    def every(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    def known(name: str) -> str:
        return every(sorted({getattr(run, name) for run in ran} - {None}))

    both = {(run.train_images, run.test_images) for run in ran}
    sizes = sorted((a, b) for a, b in both if a is not None and b is not None)
    images = "; ".join(f"{a:,} training and {b:,} test images" for a, b in sizes)
    data = (
        f"Data: {rows[0].data.name} at {every(one.data.image_size for one in rows)} px"
        + (f", {images}" if images else "")
        + f"; fingerprint {known('data_fingerprint') or 'none yet'}. "
        f"Network: {every(one.model.backbone for one in rows)}, "
        f"{every(one.train.epochs for one in rows)} epochs, "
        f"batch {every(one.train.batch_size for one in rows)}, "
        f"peak lr {every(f'{one.train.lr:g}' for one in rows)}."
    )
    machine = (
        f"Device: {known('device')}; precision: {known('precision')}; torch: {known('torch')}; "
        f"commit: {every(sorted({run.shown('commit') for run in ran}))}; seeds: {known('seed')}."
    )
    return [data, machine, COSTS_NOTE + _uneven(ran)] if ran else [data]


def _uneven(ran: Iterable[RunRecord]) -> str:
    """That seconds say little: those of one row's seeds lie far apart, or devices differ."""
    seconds: dict[tuple[str, str | None], list[float]] = {}
    for run in ran:
        if run.seconds_per_epoch:
            seconds.setdefault((run.variant, run.device), []).append(run.seconds_per_epoch)
    most = max((max(one) / min(one) for one in seconds.values()), default=1.0)
    several = len({device for _, device in seconds}) > 1
    said = several * " Several devices: compare seconds of rows that ran on the same."
    if most >= UNEVEN:
        said += (
            f" Seeds of one row differ up to {most:.1f}-fold in seconds: other work ran beside "
            "these runs, so that their seconds say little."
        )
    return said
