"""What limits local self-attention, as far as the runs of a tier say: every number from the runs.

The page of the report and the README of a tier show the same parts. All differences are tested
together: each has the interval that Bonferroni's correction leaves it, so with 95 of 100 all of
them hold the truth, and a difference is clear if its interval leaves out 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lsa_study.analysis.collect import Collected
from lsa_study.analysis.comparability import comparability, paired
from lsa_study.analysis.contrasts import Contrast
from lsa_study.analysis.effects import Effect, effects
from lsa_study.analysis.formats import escape
from lsa_study.analysis.inference import ALPHA, ONE_MORE
from lsa_study.analysis.notes import meaning, order
from lsa_study.analysis.rows import Row, not_judged
from lsa_study.analysis.statistics import decimals, signed
from lsa_study.analysis.table import Table, build
from lsa_study.analysis.verdict import in_seeds
from lsa_study.config.contrast import differing_rows
from lsa_study.config.fidelity import shown
from lsa_study.config.find import ARTICLE, tiers_of
from lsa_study.config.names import counted
from lsa_study.config.points import titles
from lsa_study.config.settings import flatten
from lsa_study.config.study import Study, load_study
from lsa_study.files import read_whole, write_whole

GRID = "terms_by_area"
"""The study that has the terms and the area as a grid; Tables 1 and 3 where it has not the tier."""
QUESTIONS = ("fig2", "table2", "table4", "table5")
"""The studies whose rows answer the other questions."""
ALSO = {"table4": ("elsa", "elsa_noghost")}
"""A row against another than its reference: the ghost head by itself."""
TITLE = "What limits local self-attention, at this scale"
HEADER = ("Difference", "Here, in points", "Seeds", "Article", "Verdict")
NO_ORDER = "not known: fewer than three rows have a number on both sides."
MARKS = ("<!-- begin: written by lsa report -->", "<!-- end: written by lsa report -->")
"""The lines of a README between which the parts are written."""


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it."""

    title: str
    said: str = ""
    """A paragraph."""
    header: tuple[str, ...] = ()
    """Of a table; empty: ``lines`` are those of a list."""
    lines: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Difference:
    """One line: a row against its reference, or an effect of a grid."""

    name: str
    contrast: Contrast
    article: float | None
    """The article's own, points; None where it prints not all that it takes."""
    apart: str = ""
    """Why it is not judged, though there may be a number."""
    mark: str = ""
    """In what its rows were not made alike, which does not refuse a verdict."""
    words: tuple[str, str] = ("higher", "lower")

    def interval(self, tested: int) -> tuple[float, float] | None:
        """Among so many that are tested together; None where it has no ends, as of one seed."""
        mean, noise = self.contrast.difference.mean, self.contrast.noise
        low, high = noise.ends(mean, ALPHA / tested) if noise and mean is not None else (None, None)
        return None if low is None or high is None else (low, high)

    @property
    def tested(self) -> bool:
        """Whether it has an interval and is judged by it."""
        return not self.apart and self.contrast.noise is not None

    def clear(self, tested: int) -> bool:
        """Whether its interval leaves out 0."""
        ends = self.interval(tested)
        return self.tested and ends is not None and (ends[0] > 0 or ends[1] < 0)

    def verdict(self, tested: int) -> str:
        """In plain words."""
        mean, number = self.contrast.difference.mean, len(self.contrast.seeds)
        mark = f" (not made alike: {self.mark})" * bool(self.mark and self.tested)
        if self.apart:
            return self.apart
        if mean is None:
            return "not run"
        if self.clear(tested):
            agrees = ", as in the article", ", the other way than in the article"
            there = agrees[self.article * mean < 0] if self.article else ""
            return f"clear: {self.words[mean < 0]}{there}{mark}"
        if self.contrast.same:
            return f"not clear: all {number} seeds gave the same answers"
        if number < 2:
            return f"not clear: one seed has no interval; {ONE_MORE}"
        if self.contrast.noise is None:
            return "not clear: equal at all seeds, so that no noise is known"
        return f"not clear: {in_seeds(self.contrast.more_seeds(0.0, ALPHA / tested))}{mark}"

    def cells(self, tested: int, digits: int) -> tuple[str, ...]:
        """As ``HEADER`` names them."""
        found, ends = self.contrast.difference, self.interval(tested)
        digits += any(round(end, digits) == 0 for end in ends or ())  # to show on which side of 0
        here = signed(found.mean, digits)
        if ends is not None:
            here += f" [{signed(ends[0], digits)}, {signed(ends[1], digits)}]"
        elif self.contrast.noise is not None:
            here += " [−∞, +∞]"
        article = signed(self.article, 2).removesuffix("0") if self.article is not None else "–"
        return self.name, here or "–", str(found.n or "–"), article, self.verdict(tested)


@dataclass(frozen=True)
class Answer:
    """The parts, the first one in short."""

    parts: tuple[Part, ...]

    def markdown(self) -> str:
        """As a README shows it, below a heading of its own."""
        blocks = [f"## {TITLE}"]
        for part in self.parts:
            blocks += [f"### {part.title}"] + [escape(part.said)] * bool(part.said)
            cells = [[escape(cell) for cell in line] for line in part.lines]
            if not part.header:
                blocks += ["\n".join(f"- {line}" for (line,) in cells)]
                continue
            rule = "| --- " * len(part.header) + "|"
            table = [f"| {' | '.join(line)} |" for line in (part.header, *cells)]
            blocks.append("\n".join([table[0], rule, *table[1:]]))
        return "\n\n".join(filter(None, blocks)) + "\n"


def answer(tables: Sequence[Table], collected: Collected) -> Answer | None:
    """Make the parts from the article's tables at one tier.

    None where these are not all there, and at the toy tier, whose results are never evidence.
    """
    of, tier = {table.study.name: table for table in tables}, tables[0].study.tier
    if tier == "toy" or not {*ARTICLE} <= of.keys():
        return None
    names = [GRID, *QUESTIONS] if tier in tiers_of(GRID) else ["table1", "table3", *QUESTIONS]
    if names[0] not in of:
        of[GRID] = build(load_study(GRID, tier=tier, recall=collected.results), collected)
    used = [of[name] for name in dict.fromkeys([*ARTICLE, *names])]
    printed = {
        table.study.variants[row.variant].identity(): row.article.value
        for table in used
        for row in table.rows
        if row.article.value is not None
    }
    labels: dict[str, str] = {}
    for table in used:
        for row in table.rows if table.study.file.article else ():
            labels.setdefault(table.study.variants[row.variant].identity(), row.label)
    groups = [group for name in names for group in _groups(of[name], printed, labels)]
    every = [line for _, _, lines in groups for line in lines]
    tested = max(1, sum(line.tested for line in every))
    digits = decimals(run.test_images for table in used for row in table.rows for run in row.done)
    orders = (f"{of[name].study.place}: {order(of[name].rows) or NO_ORDER}" for name in ARTICLE)
    return Answer(
        (
            _short(used, every, tested, digits),
            *(
                Part(title, said, HEADER, tuple(one.cells(tested, digits) for one in lines))
                for title, said, lines in groups
            ),
            Part("Does the article's order reappear?", lines=tuple((one,) for one in orders)),
            _differs(of[ARTICLE[0]]),
            _cautions(used, every, tested, digits),
        )
    )


def renew(readme: Path, pairs: Sequence[tuple[Study, Collected]]) -> None:
    """Write the parts between the marks of a README, if it is there and has them."""
    text = (read_whole(readme) or b"").decode()
    begin, end = (text.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        return
    found = answer([build(study, collected) for study, collected in pairs], pairs[0][1])
    if found is not None:
        before = text[: begin + len(MARKS[0])]
        write_whole(readme, f"{before}\n\n{found.markdown()}\n{text[end:]}")


Group = tuple[str, str, list[Difference]]
"""A heading, a sentence below it, and the differences that belong there."""


def _groups(
    table: Table, printed: Mapping[str, float], labels: Mapping[str, str]
) -> Iterator[Group]:
    """Those of a study, by the article's values and labels of runs, by identity."""
    study, file = table.study, table.study.file
    if study.grid is None:
        lines = [_of_row(row, row.base) for row in _compared(table) if row.base]
        yield study.heading, file.question, lines
        return
    values = {name: printed.get(one.identity()) for name, one in study.variants.items()}
    called: dict[str, set[str | None]] = {}
    for name, at in study.grid.rows.items():
        label = labels.get(study.variants[name].identity()) if name in study.variants else None
        for place, of in zip(at, study.grid.factors.values(), strict=True):
            called.setdefault(of[place], set()).add(label)
    nets = {value: of.pop() for value, of in called.items() if len(of) == 1}
    found = effects(study, table.rows, lacking=True)
    for number, kind, said in (
        (1, "main effects", "Each value against the first, as the mean over the other factor."),
        (2, "interactions", "How much more a value of one gives with that value of the other."),
    ):
        lines = [_of_effect(e, values, nets) for e in found if len(e.factors) == number]
        if lines:
            yield f"{file.title}: {kind}", f"{file.question} {said}", lines


def _compared(table: Table) -> Iterator[Row]:
    """The rows with their references, and those of ``ALSO`` with others."""
    yield from table.rows
    of = {row.variant: row for row in table.rows}
    names = ALSO.get(table.study.name, ())
    if names and {*names} <= of.keys():
        row, base = (of[name] for name in names)
        differing = differing_rows(*((table.study, one.variant) for one in (base, row)))
        alike = comparability(paired(row.runs, base.runs), explained=differing)
        yield replace(row, base=base, alike=alike)


def _of_row(row: Row, base: Row) -> Difference:
    """A row against another."""
    apart = not_judged([row, base], row.alike.refused, row.contrast.seeds)
    apart += f"; in the article: {row.article.word}" * bool(apart and row.article.word)
    name, mark = f"{row.name} against {base.name}", "; ".join(row.alike.marked)
    return Difference(name, row.contrast, row.article_delta, apart, mark)


def _of_effect(
    one: Effect, values: Mapping[str, float | None], nets: Mapping[str, str | None]
) -> Difference:
    """An effect, and the article's where it prints all rows that this one takes.

    ``nets``: what the article calls all rows with a value.
    """
    parts = [(weight, values.get(row)) for row, weight in one.weights.items() if weight]
    printed = [weight * value for weight, value in parts if value is not None]
    article = round(sum(printed), 6) if len(printed) == len(parts) else None
    over = f" (over {one.cells} of {one.of})" if 0 < one.cells < one.of else ""
    title = titles(one.factors)
    sides = [
        [f"{value} ({net})" if (net := nets.get(value)) else value for value in of]
        for of in (one.values, one.against)
    ]
    pairs = zip(one.factors, *sides, strict=True)
    name = " × ".join(f"{title[key]} {value} against {base}" for key, value, base in pairs) + over
    words = ("more", "less") if len(one.factors) > 1 else ("higher", "lower")
    return Difference(name, one.contrast, article, one.apart, one.mark, words)


def _short(tables: Sequence[Table], lines: Sequence[Difference], tested: int, digits: int) -> Part:
    """What is clear, and how much is not; what it rests on."""
    runs = {run.identity: run for table in tables for row in table.rows for run in row.runs}
    seeds = sorted({len(row.runs) for table in tables for row in table.rows if row.runs})
    each = (
        f"{seeds[0]} to {seeds[-1]} seeds"
        if len(seeds) > 1
        else counted(max(seeds, default=0), "seed")
    )
    said = [
        f"{counted(len(runs), 'run')} at tier {tables[0].study.tier}, {each} of each row.",
        "All differences below are tested together: their intervals, by Bonferroni's correction, "
        "all hold the truth in 95 of 100 cases, and one is clear if its interval leaves out 0."
        if any(line.tested for line in lines)
        else "No difference has an interval yet, as that takes two seeds of both rows.",
    ]
    said += [f"About: {about}." for about in dict.fromkeys(t.study.about for t in tables) if about]
    if not runs:
        said = ["Nothing was run yet, so nothing is known; below stands what would be asked."]
    clear = [line for line in lines if line.clear(tested)]
    listed = [
        f"Clear: {line.name}, {line.cells(tested, digits)[1]} points, {line.verdict(tested)[7:]}."
        for line in clear
    ]
    waiting = sum(line.contrast.difference.mean is None for line in lines)
    left = len(lines) - len(clear) - waiting
    rest = f"Of {counted(len(lines), 'difference')}: {len(clear)} clear, {left} not clear"
    rest += f", {waiting} without a number" if waiting else ""
    rest += f"; {tested} tested together." if any(one.tested for one in lines) else "."
    return Part("In short", " ".join(said), (), tuple((one,) for one in (*listed, rest)))


def _differs(table: Table) -> Part:
    """The settings in which the baseline is not the article's, whose are those of tier paper."""
    study = table.study
    name, path = study.file.baseline, study.document.path
    paper = load_study(path, tier="paper", overrides=[]) if "paper" in study.file.tiers else study
    theirs, ours = (flatten(one.variants[name].science()) for one in (paper, study))
    keys = [key for key in sorted({*theirs, *ours} - {"tier"}) if theirs.get(key) != ours.get(key)]
    lines = [(key, *(shown(of.get(key)) for of in (theirs, ours))) for key in keys]
    lines += [("seeds", "not said", ", ".join(map(str, study.seeds)))]
    said = (
        f"The settings in which {study.place}'s baseline is not by the article's recipe, that of "
        "tier paper; the other rows differ in the same."
    )
    known = next((run for row in table.rows if row.variant == name for run in row.runs), None)
    if known is not None and known.params and known.train_images and known.test_images:
        said += (
            f" Here it has {known.params / 1e6:.2f} M parameters and sees {known.train_images:,} "
            f"training images; {known.test_images:,} test images judge it."
        )
    return Part("What differs from the article", said, ("Setting", "Article", "Here"), tuple(lines))


def _cautions(
    tables: Sequence[Table], lines: Sequence[Difference], tested: int, digits: int
) -> Part:
    """What follows from none of this."""
    said = []
    halves = [
        (ends[1] - ends[0]) / 2 if (ends := line.interval(tested)) else math.inf
        for line in lines
        if line.tested
    ]
    sizes = [abs(line.article) for line in lines if line.article is not None]
    if halves:
        half = statistics.median_low(halves)
        reach = f"{half:.{digits}f} points" if math.isfinite(half) else "without end"
        said.append(
            f"That what is not clear is not there: the intervals reach {reach} to either side "
            f"(median), the article's own differences are "
            f"{statistics.median(sizes or [0.0]):.1f} points (median)."
        )
    else:
        said.append("Any difference: without two seeds nothing is known of their noise.")
    params = [cost for table in tables for row in table.rows if (cost := row.costs["params_m"])]
    if params:
        said.append(
            "That a difference is due to the form of an operator alone: the networks have "
            f"{min(params):.2f} to {max(params):.2f} M parameters."
        )
    said += [
        "That one thing matters more than another since the one is clear and the other is not: "
        "only a difference of both says so, as an interaction does.",
        "Anything about other data, larger networks or longer schedules: the intervals hold the "
        "noise of seeds and of these test images, and no other.",
        "Anything about speed or memory: those claims are judged by themselves.",
    ]
    means = meaning(tables[0].study.tier, article=True)
    return Part("What a reader may not conclude", means, lines=tuple((one,) for one in said))
