"""All claims against their margins, and ours against the article, as pictures."""

from dataclasses import replace

import pytest
from synthetic import write_study

from lsa_study.analysis.claims import Claim, ClaimVerdict, judge_tier
from lsa_study.analysis.collect import collect
from lsa_study.analysis.plots import figures, forest, style
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.statistics import Estimate, kendall
from lsa_study.config import study

MADE = {"source": "Table 4", "rows": ["table4/elsa", "table4/swin"]}
ENDS = {"rows": ["table4/elsa"], "relation": "ends", "outcome": "diverged"}


def verdict(name, word="unresolved", mean=1.0, half=0.5, **claim):
    made = Claim(**MADE | {"id": name, "text": f"{name}.", "relation": "above"} | claim)
    return ClaimVerdict(made, word, Estimate((mean,) * 3, mean, mean - half, mean + half))


def drawn(*judged):
    return forest.claims(study.load_study("table4"), judged)


def spans(axes):
    """Where claims hold, from the top down."""
    paths = [shape.get_paths()[0].vertices[:, 0] for shape in axes.collections]
    return [(min(xs), max(xs)) for xs in paths]


def marks(axes):
    """Estimates from the top down: place, value, colour."""
    dots = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    return [(dot.get_ydata()[0], dot.get_xdata()[0], dot.get_color()) for dot in dots]


def bars(axes):
    return [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2.2]


def test_each_claim_stands_against_its_margin_in_the_colour_of_its_verdict():
    figure = drawn(
        verdict("far", mean=3.0),
        verdict("near", mean=0.1, relation="within", margin=0.3),
        verdict("sure", "supported", mean=2.0, margin=1.0),
        verdict("wrong", "contradicted", mean=-2.0),
    )
    (axes,) = figure.axes
    assert [one[1:] for one in marks(axes)] == [
        (2.0, style.VERDICTS["supported"][0]), (-2.0, style.VERDICTS["contradicted"][0]),
        (3.0, style.VERDICTS["unresolved"][0]), (0.1, style.VERDICTS["unresolved"][0]),
    ]  # fmt: skip
    assert bars(axes)[:2] == [(1.5, 2.5), (-2.5, -1.5)]
    end = axes.get_xlim()[1]
    assert spans(axes) == [(1.0, end), (0.0, end), (0.0, end), (-0.3, 0.3)]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Decided", "sure.", "wrong.", "Open", "far.", "near."]
    assert "2 unresolved, 1 supported, 1 contradicted" in figure.get_label()


def test_what_is_nearest_to_being_decided_stands_above_what_is_open():
    near, nearer = (replace(verdict(str(n)), wanted=n) for n in (6, 2))
    (axes,) = drawn(verdict("open"), near, nearer).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[1:3] + names[4:] == ["2.", "6.", "open."]
    assert names[0].startswith("Nearest")


def test_a_verdict_on_rows_not_made_alike_is_marked():
    figure = drawn(
        verdict("plain"), replace(verdict("other"), comparable="torch 2.1, reference 2.2")
    )
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[1:] == ["plain.", "other. †"]
    assert "†: its rows were not made alike" in figure.get_label()
    assert "†" not in drawn(verdict("plain")).get_label()


def test_units_have_a_scale_each():
    share = replace(verdict("share", **ENDS), estimate=Estimate((1.0,), 0.75, 0.2, 0.9))
    figure = drawn(verdict("points"), verdict("macs", mean=26.0, metric="macs"), share)
    points, percent = figure.axes
    assert "points" in points.get_xlabel()
    assert [value for _, value, _ in marks(points)] == [1.0]
    assert [value for _, value, _ in marks(percent)] == [26.0, 75.0]
    assert spans(percent)[1][0] == 50.0


def test_claims_without_an_estimate_are_counted_alone():
    waiting = replace(verdict("later", "not run"), estimate=Estimate())
    figure = drawn(verdict("one"), waiting)
    assert len(marks(figure.axes[0])) == 1
    assert "1 of the article's 2 claims" in figure.get_label()
    assert "1 not run" in figure.get_label()
    assert drawn(waiting) is None
    assert drawn() is None


THREE = ["table5/elsa_noghost", "table5/net6_n", "table5/dwconv"]


@pytest.mark.parametrize(
    ("claim", "held"),
    [
        ({"relation": "near", "value": 1.4, "margin": 0.3}, (1.1, 1.7)),
        ({"relation": "trend", "rows": THREE}, (0.0, 1.5)),
        ({"relation": "above", "margin": -0.3}, (-0.3, 1.5)),
    ],
)
def test_the_span_is_where_the_claim_holds(claim, held):
    (axes,) = drawn(verdict("other", **claim)).axes
    assert [value for _, value, _ in marks(axes)] == [1.0]
    ((low, high),) = spans(axes)
    assert (low, min(high, held[1])) == pytest.approx(held)


def test_a_wide_interval_does_not_hide_the_others():
    (axes,) = drawn(verdict("one"), verdict("wide", half=5000)).axes
    low, high = axes.get_xlim()
    assert high - low < 5


def test_one_seed_has_no_bar(tmp_path):
    write_study(tmp_path, "table4", tier="proxy", seeds=[0])
    judged = judge_tier(tmp_path, "proxy")
    figure = forest.claims(study.load_study("table4", tier="proxy"), judged)
    assert marks(figure.axes[0])
    assert bars(figure.axes[0]) == []
    assert "one seed: no interval" in figure.get_label()


def test_the_toy_tier_colours_nothing(tmp_path):
    loaded = write_study(tmp_path, "table4")
    figure = forest.claims(loaded, judge_tier(tmp_path, "toy"))
    assert {colour for axes in figure.axes for *_, colour in marks(axes)} == {style.QUIET}
    assert "no verdict" in figure.get_label()


@pytest.mark.parametrize("name", ["table4", "table3"])
def test_ours_stands_over_the_article_s_difference(tmp_path, name):
    loaded = write_study(tmp_path, name)
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    figure = figures([(loaded, rows)])[f"{name}-agreement"]
    (axes,) = figure.axes
    want = [
        (row.article_delta, row.contrast.difference.mean)
        for row in rows
        if row.article_delta is not None
    ]
    dots = [
        tuple(line.get_xydata()[0])
        for line in axes.lines
        if line.get_marker() not in ("None", "") and len(line.get_xdata()) == 1
    ]
    assert dots == [pytest.approx(pair) for pair in want]
    ranked = want + ([(0.0, 0.0)] if name == "table4" else [])
    tau, *_ = kendall([ours for _, ours in ranked], [theirs for theirs, _ in ranked])
    assert f"{abs(tau):.2f} over {len(ranked)} rows" in figure.get_label()
    alike = sum(ours * theirs > 0 for theirs, ours in want)
    assert f"{alike} of {len(want)} have the same sign" in figure.get_label()
    (diagonal,) = [line for line in axes.lines if line.get_label() == "equal differences"]
    assert diagonal.get_slope() == 1
    assert style.svg(figure)


def test_agreement_needs_two_rows_of_both(tmp_path):
    loaded = write_study(tmp_path, "table4", only="swin,elsa")
    assert forest.agreement(loaded, rows_of(loaded, collect(tmp_path, "toy"))) is None
