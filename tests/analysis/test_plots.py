"""Figures: the same numbers give the same bytes, and rows without a number stand as words."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_run, write_study

from lsa_study.analysis.collect import collect
from lsa_study.analysis.plots import figures, style, write_plots
from lsa_study.analysis.plots.attention import attention_maps, effective_areas
from lsa_study.analysis.plots.curves import spread
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.table import build
from lsa_study.config import study


def drawn(results, *names, **how):
    collected = collect(results, "toy")
    loaded = [study.load_study(name, **how) for name in names]
    return figures([(one, rows_of(one, collected)) for one in loaded])


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", style.svg(figure))


def test_every_figure_is_written_as_svg_and_png(tmp_path):
    loaded = [write_study(tmp_path, name, seeds=[0]) for name in ("table2", "fig2")]
    names = {path.name for path in write_plots(loaded, tmp_path)}
    stems = (
        "table2-accuracy", "table2-differences", "table2-curves", "fig2-accuracy",
        "fig2-differences", "fig2-curves", "fig2-heads", "fig2-agreement", "claims", "costs",
        "throughput",
    )  # fmt: skip
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    folder = tmp_path / "toy" / "plots"
    assert (folder / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(tmp_path):
    write_study(tmp_path, "table2")
    first, second = (drawn(tmp_path, "table2") for _ in range(2))
    for name in ("table2-accuracy", "table2-curves"):
        assert style.svg(first[name]) == style.svg(second[name])
        assert style.png(first[name]) == style.png(second[name])
    assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib v", style.svg(first["table2-curves"]))


def test_words_stand_where_numbers_are_missing(tmp_path):
    write_study(tmp_path, "table2", seeds=[0])
    write_study(tmp_path, "fig2", seeds=[0], only="swin,lsa_heads_c,dwconv")
    made = drawn(tmp_path, "table2", "fig2")
    assert {"diverged", "crash"} <= set(texts(made["table2-accuracy"]))
    assert "Net7 (identity): diverged" in texts(made["table2-curves"])
    assert {"not run", "out of memory"} <= set(texts(made["fig2-accuracy"]))
    assert "LSA (C): out of memory" in texts(made["fig2-curves"])
    assert "DwConv (1): not run" in texts(made["fig2-curves"])


def test_values_are_drawn_where_they_belong(tmp_path):
    write_study(tmp_path, "table4")
    collected = collect(tmp_path, "toy")
    loaded = study.load_study("table4")
    rows = rows_of(loaded, collected)
    figure = figures([(loaded, rows)])["table4-accuracy"]
    ours, article = figure.axes
    dots = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in ours.lines if line.get_marker() == "o"
    }
    assert dots == {at: row.accuracy.mean for at, row in enumerate(rows)}
    diamonds = {line.get_ydata()[0]: line.get_xdata()[0] for line in article.lines}
    assert diamonds == {0: 81.3, 1: 82.4, 2: 82.7}


def test_no_axis_of_accuracy_counts_beyond_100(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0])
    write_run(tmp_path, loaded.runs()[0], changes={"acc1": 99.0})
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    axes, _ = figures([(loaded, rows)])["table4-accuracy"].axes
    assert axes.get_xlim()[1] > 100, "room for the words"
    assert len(axes.get_xticks()) >= 3
    assert max(axes.get_xticks()) <= 100


def test_curves_are_the_metrics_of_the_folders(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0], only="swin")
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    left, _ = figures([(loaded, rows)])["table4-curves"].axes
    records = json.loads(rows[0].runs[0].curve)
    (line,) = left.lines
    assert list(line.get_xdata()) == [record["epoch"] for record in records]
    assert list(line.get_ydata()) == [record["acc1"] for record in records]


def test_differences_stand_beside_the_article_s_on_one_scale(tmp_path):
    write_study(tmp_path, "table4")
    loaded = study.load_study("table4")
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    (axes,) = figures([(loaded, rows)])["table4-differences"].axes
    marks = {
        m: [line.get_xdata()[0] for line in axes.lines if line.get_marker() == m] for m in "oD"
    }
    base = rows[0].accuracy.mean
    assert marks["o"] == pytest.approx([row.accuracy.mean - base for row in rows[1:]])
    assert marks["D"] == pytest.approx([1.1, 1.4])


def test_rows_of_a_grid_keep_names_apart_and_a_legend_that_fits(tmp_path):
    """Their names are long and differ at the end."""
    loaded = write_study(tmp_path, "terms_by_area", seeds=[0, 1])
    made = drawn(tmp_path, loaded.name)
    names = [label.get_text() for label in made["terms_by_area-seeds"].axes[0].get_yticklabels()]
    assert len({*names}) == len(loaded.variants) == 8
    assert max(map(len, names)) <= 34
    figure = made["terms_by_area-differences"]
    figure.canvas.draw()
    legends = [*figure.legends, *(one for axes in figure.axes if (one := axes.get_legend()))]
    assert len(legends) == 1
    assert legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_seed_strips_hold_every_run(tmp_path):
    write_study(tmp_path, "table4", seeds=[0, 4])
    loaded = study.load_study("table4")
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    (axes,) = figures([(loaded, rows)])["table4-seeds"].axes
    drawn = [list(line.get_xdata()) for line in axes.lines if line.get_marker() not in ("None", "")]
    want = [[run.acc1 for row in rows for run in row.runs if run.seed == s] for s in (0, 4)]
    assert drawn == want


def test_speed_stands_under_accuracy_with_intervals_of_both(tmp_path):
    loaded = write_study(tmp_path, "table4")
    write_run(tmp_path, loaded.runs()[0], changes={"device": "Other chip"})
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    (axes,) = figures([(loaded, rows)])["throughput"].axes
    assert "on Processor 9000" in axes.get_xlabel()
    lines = [line for line in axes.lines if line.get_linestyle() != "--"]  # that of the best
    dots = [line.get_xydata()[0] for line in lines if line.get_marker() not in ("None", "")]
    speeds = [
        [1437 / run.seconds_per_epoch for run in row.done if run.device == "Processor 9000"]
        for row in rows
    ]
    assert sorted(map(len, speeds)) == [2, 3, 3], "a run of another device is no speed of this one"
    want = [[sum(one) / len(one), row.accuracy.mean] for one, row in zip(speeds, rows, strict=True)]
    assert dots == [pytest.approx(pair) for pair in want]
    bars = [line.get_xydata() for line in lines if line.get_marker() in ("None", "")]
    upright = [line for line in bars if line[0, 0] == line[1, 0]]
    assert [list(line[:, 1]) for line in upright] == [
        pytest.approx([row.accuracy.low, row.accuracy.high]) for row in rows
    ]


def test_what_no_other_row_beats_in_both_is_joined(tmp_path):
    write_study(tmp_path, "table2", seeds=[0, 1])
    figure = drawn(tmp_path, "table2")["throughput"]
    (axes,) = figure.axes
    (joined,) = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "--"]
    points = [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    best = {p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] for q in {*points} - {p})}
    assert {tuple(point) for point in joined} == best
    assert re.search(
        r"beaten in both by no other \(dashed\): \w.*intervals over", figure.get_label()
    )
    assert "Net7 (filter norm)" in texts(figure), "the article's names, not the rows' ids"


def test_a_family_of_layers_has_one_colour_everywhere(tmp_path):
    write_study(tmp_path, "fig2", seeds=[0])
    made = drawn(tmp_path, "fig2")
    for name in ("costs", "throughput", "fig2-heads"):
        used = {line.get_color() for axes in made[name].axes for line in axes.lines}
        assert used - {style.QUIET} == {style.FAMILIES["LSA"], style.FAMILIES["DwConv"]}, name


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_test_images_alone_never_look_like_an_interval(tmp_path, seeds):
    write_study(tmp_path, "table4", seeds=seeds)
    figure = drawn(tmp_path, "table4")["table4-differences"]
    (axes,) = figure.axes
    bars = [line for line in axes.lines if len(set(line.get_xdata())) == 2]
    if len(seeds) == 1:
        assert bars == []
        assert "one seed: no interval" in figure.get_label()
        return
    grey = [line for line in bars if line.get_color() == style.QUIET]
    assert len(bars) == 2 * len(grey) == 4
    assert all(line.get_linewidth() < 1 for line in grey)
    assert "intervals over 3 seeds" in figure.get_label()


@pytest.mark.parametrize(("epochs", "panels"), [(1, 1), (2, 1), (12, 2)])
def test_few_epochs_are_drawn_once(tmp_path, epochs, panels):
    overrides = [f"train.epochs={epochs}", "train.warmup_epochs=0"]
    write_study(tmp_path, "table4", seeds=[0], overrides=overrides)
    figure = drawn(tmp_path, "table4", overrides=overrides)["table4-curves"]
    assert len(figure.axes) == panels
    assert figure.get_label().startswith(f"Test accuracy after each of {epochs} epoch")
    for axes in figure.axes:
        assert 0 <= axes.get_ylim()[0] < axes.get_ylim()[1] <= 100


def test_no_two_of_many_lines_look_alike():
    looks = [str(style.look(at)) for at in range(16)]
    assert len(set(looks)) == 16
    pairs = [(style.look(at)["color"], str(style.look(at)["ls"])) for at in range(16)]
    assert len(set(pairs)) == 16


def test_every_figure_says_in_a_sentence_what_it_shows(tmp_path):
    for name in ("table4", "fig2"):
        write_study(tmp_path, name, seeds=[0, 1])
    made = drawn(tmp_path, "table4", "fig2", "table5")
    assert {name.rsplit("-", 1)[-1] for name in made} >= {
        "accuracy", "differences", "curves", "seeds", "heads", "layers", "costs", "throughput",
    }  # fmt: skip
    for name, figure in made.items():
        assert re.fullmatch(r"[A-Z].{40,}\.", figure.get_label()), name
    assert len({figure.get_label() for figure in made.values()}) == len(made)


def test_a_row_not_made_like_its_reference_is_marked(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0])
    run = next(run for run in loaded.runs() if run.variant == "elsa")
    write_run(tmp_path, run, changes={"device": "Other chip"})
    made = figures([(loaded, build(loaded, collect(tmp_path, "toy")).rows)])
    for name in ("table4-accuracy", "table4-differences"):
        marked = [text for text in texts(made[name]) if "†" in text]
        assert len(marked) == 1, name
        assert "†: not made as the row it is compared with" in made[name].get_label()


def test_maps_show_the_weights_and_blank_what_is_not_given():
    maps = {
        "window": {"all": np.array([[0.0, 0.5], [0.25, 0.25]]), "no bias": np.eye(2)},
        "signed": {"all": np.array([[-2.0, 1.0], [0.0, 0.0]])},
    }
    made = attention_maps(np.zeros((8, 8)), maps, (0, 1), title="Maps of $x$")
    first, second, third, empty = made.axes
    alpha = first.images[1].get_array()[..., 3]
    np.testing.assert_allclose(alpha, [[0, 1], [0.5, 0.5]])
    assert [axes.get_xlabel() for axes in (first, second, third)] == [
        "largest 0.5", "largest 1", "largest -2",
    ]  # fmt: skip
    signed = third.images[1].get_array()
    assert tuple(signed[0, 0, :3]) != tuple(signed[0, 1, :3])
    assert not empty.images
    assert [axes.get_title() for axes in made.axes] == ["all", "no bias", "all", ""]
    assert not empty.axison
    assert style.svg(made)


def test_areas_are_a_dot_a_head():
    made = effective_areas({"net7": [3.0, 20.0, 40.0], "elsa": [10.0]}, largest=49, title="Areas")
    (axes,) = made.axes
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[3.0, 20.0, 40.0], [10.0]]
    assert axes.get_xlim()[1] > 49


def test_figure_1_is_relative_to_attention(tmp_path):
    write_study(tmp_path, "table4", seeds=[0])
    write_study(tmp_path, "table5", seeds=[0], only="dwconv")
    made = drawn(tmp_path, "table4", "table5")
    accuracy, params, _ = made["fig1-layers"].axes
    diamonds = [line.get_xdata()[0] for line in params.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx([100, 100 * 24.2 / 28.3, 100 * 46 / 28.3, 100 * 29.1 / 28.3])
    circles = [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "o"]
    assert circles[0] == 0.0
    assert len(circles) == 3
    assert "not run" in texts(made["fig1-layers"])


def test_the_head_figure_puts_the_article_on_the_second_panel(tmp_path):
    write_study(tmp_path, "fig2")
    left, right = drawn(tmp_path, "fig2")["fig2-heads"].axes
    values = [list(line.get_ydata()) for line in right.lines]
    assert values == [[78.9, 81.3, 81.2], [80.3, 81.2, 81.4, 81.6]]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "1x", "2x", "C"]


@pytest.mark.parametrize("overrides", [["train.epochs=1"], []])
def test_one_epoch_or_no_run_at_all_can_be_drawn(tmp_path, overrides):
    if overrides:
        write_study(tmp_path, "table2", seeds=[0], overrides=overrides)
    for figure in drawn(tmp_path, "table2", "fig2", overrides=overrides).values():
        assert style.svg(figure)


def test_a_seed_that_diverged_does_not_cut_the_mean_of_the_others(tmp_path):
    loaded = write_study(tmp_path, "table4", only="swin")
    write_run(tmp_path, loaded.runs()[0], changes={"outcome": "diverged", "acc1": None})
    rows = rows_of(loaded, collect(tmp_path, "toy"))
    left, _ = figures([(loaded, rows)])["table4-curves"].axes
    assert max(max(line.get_xdata()) for line in left.lines) == 12


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 5))
def test_labels_are_moved_apart_in_order(wanted, gap):
    placed = spread(wanted, gap, 1e9)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    steps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap - 1e-6 for step in steps)
    capped = spread(wanted, gap, 50)
    assert max(capped) <= 50
