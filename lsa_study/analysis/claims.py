"""What the collected runs say of claims: the article's, and those of studies of your own."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lsa_study.analysis import measured
from lsa_study.analysis.article import ArticleRow
from lsa_study.analysis.collect import Collected, collect
from lsa_study.analysis.comparability import comparability, paired
from lsa_study.analysis.contrasts import Contrast, contrast
from lsa_study.analysis.inference import ALPHA, ONE_MORE, Noise, holm, more_runs, of_values
from lsa_study.analysis.rows import Row, rows_of
from lsa_study.analysis.statistics import Estimate, t_interval
from lsa_study.analysis.verdict import DECIDED, Differing, Word
from lsa_study.analysis.verdict import GROUPS as GROUPS
from lsa_study.analysis.verdict import NEAR as NEAR
from lsa_study.analysis.verdict import ClaimVerdict as ClaimVerdict
from lsa_study.analysis.verdict import claims_json as claims_json
from lsa_study.analysis.verdict import claims_text as claims_text
from lsa_study.analysis.verdict import families as families
from lsa_study.analysis.verdict import of_study as of_study
from lsa_study.config import study as studies
from lsa_study.config.asked import shown
from lsa_study.config.contrast import beyond, differing_rows, under
from lsa_study.config.ledger import Claim, Claims
from lsa_study.config.names import short
from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

Side = tuple[Study, Row]
"""One side of a claim."""


def judge_tier(
    results: Path, tier: str, *, path: Path | None = None, collected: Collected | None = None,
    side: Study | None = None, own: bool = False,
) -> list[ClaimVerdict]:  # fmt: skip
    """Judge every claim of the article, or of a file or a study, by the finished runs of a tier.

    Studies are read as asked for under ``results``; one that has no such tier, or is not there,
    leaves its claims ``not run``. Parameters, operations and inference are judged by committed
    figures of the paper tier's networks, without a run; in claims of a study of your own the runs
    say them, but for inference.

    Args:
        path: a file of claims; None: those of the article.
        collected: the runs, if they were read.
        side: a study that stands in place of that of its name, such as a side study.
        own: the claims are those of ``side``, in ``path`` or else in its own file; its rows need
            not name it.
    """
    stem = short(side.file.study) if side else ""
    claims: Sequence[Claim] = side.claims if side and own and path is None else ()
    claims = claims or Claims.read(path, stem if own else "")
    runs = collected or collect(results, tier, update=True)
    given = {stem: side} if side else {}
    near = path.parent if path else side.document.path.parent if side else None
    files: dict[str, Path] = {}
    for name in (name for name in studies_of(claims) if name not in given):
        with contextlib.suppress(ConfigError):  # claims on it stay ``not run``
            files[name] = studies.find_study(name, results, near)
    tiers = {name: studies.tiers_of(str(file)) for name, file in files.items()}
    known = given | {
        name: studies.load_study(file, tier=tier, recall=results)
        for name, file in files.items()
        if tier in tiers[name]
    }
    first, further = _sides(known, runs)
    figures = ("inference",) if own else measured.CELLS
    by_figures = [claim for claim in claims if claim.metric in figures]
    papers = known
    if not own:
        timed = (name for name in studies_of(by_figures) if "paper" in tiers.get(name, ()))
        papers = {name: studies.load_study(files[name], tier="paper") for name in timed}
    found = [
        _by_figures(claim, papers)
        if claim in by_figures
        else _by_runs(claim, first | further.get(claim.metric, {}), tiers, tier)
        for claim in claims
    ]
    if own and side:
        found = [replace(one, family=side.name, article=None) for one in found]
    if tier == "toy":
        # A check of the pipeline is no evidence: numbers are shown, and nothing is judged.
        return [
            one if one.word == "not run" else replace(one, word="no verdict", plain="no verdict")
            for one in found
        ]
    adjusted = holm([one.p for one in found])
    tested = sum(p is not None for p in adjusted)
    return [one.after_holm(p, tested) for one, p in zip(found, adjusted, strict=True)]


def _sides(
    known: Mapping[str, Study], runs: Collected
) -> tuple[dict[str, Side], dict[str, dict[str, Side]]]:
    """The rows of studies by ``study/variant``: by their first metrics, and by each further one."""

    def rows(name: str, study: Study, metric: str | None = None) -> dict[str, Side]:
        return {f"{name}/{r.variant}": (study, r) for r in rows_of(study, runs, metric)}

    first, further = dict[str, Side](), dict[str, dict[str, Side]]()
    for name, study in known.items():
        first |= rows(name, study)
        for metric in study.metrics[1:]:
            further.setdefault(metric, {}).update(rows(name, study, metric))
    return first, further


def judge_studies(
    studies: Sequence[Study], results: Path, collected: Collected | None = None
) -> list[ClaimVerdict]:
    """Judge the claims that belong to studies of one tier, by its finished runs.

    They are the article's, all together, where one of the studies has rows in them; of a side study
    alone those that its runs can judge. And each study's own, which are a family of their own.
    """
    tier, about = studies[0].tier, {short(one.file.study) for one in studies}
    side = studies[0] if len(studies) == 1 and studies[0].alias else None
    runs = collected or collect(results, tier, update=True)
    found: list[ClaimVerdict] = []
    if about & {*studies_of(Claims.read())}:
        found = judge_tier(results, tier, collected=runs, side=side)
        found = [one for one in found if side is None or side.about in one.overrides]
    for one in studies:
        if one.file.claims:
            found += judge_tier(results, tier, collected=runs, side=one, own=True)
    return found


def studies_of(claims: Sequence[Claim]) -> list[str]:
    """The names of the studies whose rows claims are about."""
    return list(dict.fromkeys(row.split("/")[0] for claim in claims for row in claim.sides))


def _by_figures(claim: Claim, papers: Mapping[str, Study]) -> ClaimVerdict:
    """Judge a claim by what was counted or timed of the paper tier's networks."""
    rows = []
    for name in claim.rows:
        stem, variant = name.split("/")
        if stem not in papers or variant not in papers[stem].variants:
            return ClaimVerdict(claim, reason=f"{name}: no such row")
        rows.append((papers[stem], variant))
    cells = [ArticleRow.of(*row).cells.get(measured.CELLS[claim.metric]) for row in rows]
    values = [float(cell) if cell else None for cell in cells]
    article = claim.by_article(dict(zip(claim.rows, values, strict=True)))
    differs = _differing(claim.compared[0], rows[0], rows[1])
    found = ClaimVerdict(claim, article=article, differs=differs)
    try:
        if claim.metric in measured.COUNTED:
            ratio = measured.Ratio.counted(claim.metric, rows)
        else:
            ratio = measured.Ratio.timed(rows)
    except LookupError as error:
        return replace(found, reason=str(error))
    found = replace(
        found, method=ratio.method, notes=ratio.notes, comparable="; ".join(ratio.notes)
    )
    return found.decided(ratio.estimate, ratio.p, lacking="more rounds of lsa bench")


def _by_runs(
    claim: Claim, sides: Mapping[str, Side], tiers: Mapping[str, Sequence[str]], tier: str
) -> ClaimVerdict:
    known = {n: s for n, s in sides.items() if s[1].metric == claim.metric}
    article = claim.by_article({name: row.article.value for name, (_, row) in known.items()})
    abouts = sorted({sides[name][0].about for name in claim.sides if name in sides} - {""})
    found = ClaimVerdict(claim, article=article, overrides=tuple(abouts))
    if tier not in claim.tiers:
        return replace(found, reason=f"has a meaning at tier {' and '.join(claim.tiers)} only")
    if absent := [name for name in claim.sides if name not in sides]:
        # A study without the tier is no mistake; a row that no study has may be one.
        there = all(tier not in tiers.get(name.split("/")[0], (tier,)) for name in absent)
        at = f" at tier {tier}" if there else ""
        return replace(found, reason=f"{', '.join(absent)}: no such row{at}")
    lacking = [name for name in claim.sides if not sides[name][1].runs]
    if claim.relation == "signs":
        return _signs(found, sides, lacking)
    if lacking:
        return replace(found, reason=f"{', '.join(lacking)}: not run")
    if claim.relation == "ends":
        return _ended(found, *(sides[name][1] for name in claim.sides))
    return _compared(found, sides)


def _ended(found: ClaimVerdict, row: Row, control: Row | None = None) -> ClaimVerdict:
    """Judge whether most runs of a row end so, and those of its control do not."""
    claim = found.claim
    # How a run that was stopped early would have ended is not known.
    of = sum(run.outcome != "stopped early" for run in row.runs)
    if not of:
        return found.unresolved(row.lost)
    count = sum(run.outcome == claim.outcome for run in row.runs)
    said, method = f"{claim.outcome} {count}/{of}", "Clopper-Pearson against one half"
    share = found.share(count, of, said, method, partial(more_runs, count, of))
    other = [
        f"{name} {value}, the claim is about {wanted}"
        for name, wanted in (("precision", claim.precision), ("device", claim.device))
        for value in sorted({run.shown(name) for run in row.runs} - {wanted})
        if wanted is not None and (name == "precision" or wanted not in value)
    ]
    untested = replace(share, p=None, plain=None, method="", more=None, wanted=None)
    if other:
        return replace(untested.refused(other[0]), comparable="; ".join(other))
    if control and any(run.outcome == claim.outcome for run in control.runs):
        return untested.unresolved(f"{claim.control} {control.outcome}")
    return share


def _compared(found: ClaimVerdict, sides: Mapping[str, Side]) -> ClaimVerdict:
    """Judge inequalities between rows, over the seeds they share."""
    claim = found.claim
    rows = [sides[name][1] for name in claim.sides]
    if claim.metric in measured.COUNTED:
        return _of_counts(found, sides)
    found = _held_together(found, sides, claim.compared)
    lost = [f"{name}: {sides[name][1].lost}" for name in claim.sides if sides[name][1].ends]
    if found.word == "not comparable":
        return found
    declared = set.intersection(*({*row.declared} for row in rows))
    if claim.metric in measured.RECORDED:
        return _of_runs(found, rows, declared)
    if lost:
        return found.unresolved(", ".join(lost))
    if any(row.metric != claim.metric for row in rows):
        return replace(found, reason=f"no {claim.metric} recorded")
    pool = [peer for row in rows for peer in row.peers]
    if claim.relation == "trend":
        steps = [
            contrast([(1.0, b.done), (-1.0, a.done)], pool, declared)
            for a, b in itertools.pairwise(rows)
        ]
        return _trend(found, steps, declared)
    weights = (1.0, -1.0, -1.0, 1.0)
    terms = [(w, sides[n][1].done) for w, n in zip(weights, claim.rows + claim.minus, strict=False)]
    return _over_seeds(found, contrast(terms, pool, declared), declared)


def _held_together(
    found: ClaimVerdict, sides: Mapping[str, Side], pairs: Sequence[tuple[str, str]]
) -> ClaimVerdict:
    """Name what rows differ in; refuse those that differ in more than may, or saw other images.

    Beside one factor of their studies, the settings of ``besides`` may differ; these stand in the
    notes.
    """
    besides, notes = found.claim.besides, list[str]()
    differs, marked, refused = list[Differing](), list[str](), list[str]()
    for pair in pairs:
        (study, ours), (other, theirs) = (sides[name] for name in pair)
        rows = (study, ours.variant), (other, theirs.variant)
        differs += _differing(pair, *rows)
        more = beyond(*rows)
        if confounds := [key for key in more if not under(key, besides)]:
            refused.append(f"the rows also differ in {', '.join(confounds)}")
        layers = "model.op.kind" in more
        notes += [
            f"{key} {one}, the other {two}"
            for key, (one, two) in more.items()
            if not layers or key == "model.op.kind" or not under(key, ["model.op"])
        ]
        alike = comparability(paired(ours.runs, theirs.runs), explained=differing_rows(*rows))
        marked += alike.marked
        refused += alike.refused
    for (one, _), (two, _) in itertools.pairwise(pairs):
        runs = paired(sides[one][1].runs, sides[two][1].runs)
        # Differences of differences, and steps of a trend, are of one test set.
        refused += comparability(runs).refused if found.claim.relation != "signs" else ()
    found = replace(found, differs=tuple(differs), notes=tuple(dict.fromkeys([*notes, *marked])))
    if refused:
        return found.refused("; ".join(dict.fromkeys(refused)))
    return replace(found, comparable="; ".join(dict.fromkeys(marked)))


def _differing(
    names: tuple[str, str], one: tuple[Study, str], other: tuple[Study, str]
) -> tuple[Differing, ...]:
    found = differing_rows(one, other).items()
    return tuple(Differing(names, key, both) for key, both in found if key != "seed")


def _of_counts(found: ClaimVerdict, sides: Mapping[str, Side]) -> ClaimVerdict:
    """Judge what the runs counted of their networks, in percent of the second row's."""
    cost = {"params": "params_m", "macs": "gmacs"}[found.claim.metric]
    (study, ours), (other, theirs) = (sides[name] for name in found.claim.rows)
    rows = (study, ours.variant), (other, theirs.variant)
    found = replace(found, differs=_differing(found.claim.compared[0], *rows))
    one, two = ours.costs[cost], theirs.costs[cost]
    if one is None or not two:
        return replace(found, reason=f"no {found.claim.metric} recorded of both rows")
    ratio = measured.Ratio(100 * (one / two - 1)).estimate
    return replace(found, method="as the runs counted it").decided(ratio)


def _of_runs(found: ClaimVerdict, rows: Sequence[Row], declared: set[int]) -> ClaimVerdict:
    """Judge a cost that runs record, in percent of the second row's at every seed."""
    metric, done = found.claim.metric, [run for row in rows for run in row.done]
    ours, theirs = ({run.seed: measured.recorded(metric, run) for run in row.done} for row in rows)
    both = {seed: (one, two) for seed, one in ours.items() if one and (two := theirs.get(seed))}
    what = measured.named(metric, done)
    if not both:
        return replace(found, reason=f"no {what} recorded of both rows at one seed")
    if len({run.device for run in done}) > 1:
        return found.unresolved("the rows ran on different devices")
    ratios = t_interval([100 * (one / two - 1) for one, two in both.values()])
    ways = {
        f"{row.variant} by {run.shown('implementation') or 'torch alone'} (fused kernels: "
        f"{run.shown('fused')})"
        for row in rows
        for run in row.done
    }
    what = f"{'peak ' * (metric == 'memory')}{what} in training on {done[0].device}"
    found = replace(found, method=f"{what}, {', '.join(sorted(ways))}")
    if metric == "speed" and ratios.n > 1 and not ratios.deviation:
        return replace(found, estimate=ratios).unresolved("equal at all seeds: no noise known")
    noise = of_values(ratios, both, declared)
    if noise is None or ratios.mean is None:
        return found.decided(ratios, lacking=ONE_MORE)
    ratios = Estimate(ratios.values, ratios.mean, *noise.ends(ratios.mean))
    return _by_noise(found, Contrast((*both,), ratios, (), noise), noise)


def _over_seeds(found: ClaimVerdict, between: Contrast, declared: set[int]) -> ClaimVerdict:
    """Judge a contrast of accuracies, or say which of the ``declared`` seeds it lacks."""
    if between.same:
        seeds = f"all {len(between.seeds)} seeds gave the same answers"
        return replace(found, estimate=between.difference).unresolved(f"{seeds}: no noise known")
    if (noise := between.noise) is None:
        lacking = ONE_MORE if len(between.seeds) < 2 else "more seeds"
        if absent := declared - {*between.seeds}:
            lacking += f"; seeds {shown(sorted(absent))} of those declared are not there"
        return found.decided(between.difference, between.p, lacking=lacking)
    return _by_noise(found, between, noise)


def _by_noise(found: ClaimVerdict, between: Contrast, noise: Noise) -> ClaimVerdict:
    method = f"{found.method}; {noise.shown}".lstrip("; ")
    found = replace(found, method=method, sequential=noise.looks is not None)
    return found.decided(between.difference, between.p, between.more_seeds)


def _trend(found: ClaimVerdict, steps: Sequence[Contrast], declared: set[int]) -> ClaimVerdict:
    """Judge rows in rising order by the step that is least sure.

    Supported if every step is above the margin: the largest of the one-sided p (an intersection-
    union test). Contradicted if one lies below: the smallest, times the number of steps.
    """
    margin, pairs = float(found.claim.margin), found.claim.compared
    rising, untested = list[float](), list[tuple[float, int]]()
    for at, step in enumerate(steps):
        p, mean = step.p(margin), step.difference.mean
        if p is None or mean is None or step.same:
            untested.append((-math.inf if mean is None else mean, at))
        else:
            rising.append(p / 2 if mean > margin else 1 - p / 2)
    if untested:
        return _over_seeds(found, steps[min(untested)[1]], declared)
    at = rising.index(max(rising))
    against = min(1.0, len(steps) * (1 - rising[at]))
    # Twice the smaller, as every p here is two-sided: so it agrees with the step's interval.
    word: Word = "supported" if rising[at] < against else "contradicted"
    p = min(1.0, 2 * min(rising[at], against))
    weakest = _over_seeds(found, steps[at], declared)
    method = f"least sure of {len(steps)} steps, {' less '.join(pairs[at])}; {weakest.method}"
    weakest = replace(weakest, p=p, method=method)
    if p <= ALPHA:
        return replace(weakest, word=word, plain=word, needs="", wanted=None)
    if weakest.word in DECIDED:
        weakest = replace(weakest.unresolved("more seeds"), more=None)
    return replace(weakest, plain="unresolved")


def _signs(found: ClaimVerdict, sides: Mapping[str, Side], lacking: Sequence[str]) -> ClaimVerdict:
    """Judge whether differences are positive in more pairs than a coin would give.

    A pair counts by the sign of its mean, however sure that is.
    """
    run = [pair for pair in found.claim.compared if not {*pair} & {*lacking}]
    if (found := _held_together(found, sides, run)).word == "not comparable":
        return found
    lost = [f"{name}: {row.lost}" for pair in run for name in pair if (row := sides[name][1]).ends]
    if lost:
        return found.unresolved(", ".join(dict.fromkeys(lost)))
    means = []
    for pair in run:
        ours, theirs = (sides[name][1].done for name in pair)
        means.append(contrast([(1.0, ours), (-1.0, theirs)]).difference.mean)
    if not (signs := [mean > 0 for mean in means if mean]):
        return replace(found, reason="no pair was run at a common seed")
    reason = f"positive in {sum(signs)} of {len(signs)} pairs"
    if left := len(found.claim.pairs) - len(signs):
        reason += f"; {left} without a difference or not run"
    return found.share(sum(signs), len(signs), reason, "exact binomial test against one half")
