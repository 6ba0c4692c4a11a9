"""Grids in reports: main effects and interactions against loops, pivots, maps, LaTeX."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import synthetic
import yaml
from in_process import answer
from synthetic import write_study
from test_latex import can_compile, compile_latex

from lsa_study.analysis import contrasts, formats
from lsa_study.analysis.collect import collect
from lsa_study.analysis.html import page
from lsa_study.analysis.pivot import pivot_of
from lsa_study.analysis.plots import figures, style
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.errors import ConfigError

SIZES, NORMS = ("3", "5", "7"), ("softmax", "filter_norm")
LEVEL = {f"size-{s}_norm-{n}": 80 + int(s) / 2 + 2 * (n == "softmax" and s == "7")
         for s in SIZES for n in NORMS}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An experiment file outside the repository, with finished runs of three seeds."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "none.csv").write_text("model,acc1\n")
    document = {
        "study": "own", "title": "Own_1", "question": "Which?", "seeds": [0, 1, 2],
        "article": {"csv": "none.csv", "source": "none"},
        "set": {"model.op": {"kind": "unified", "terms": ["qk"], "application": "neighboring",
                             "norm": "softmax"}},
        "grid": {"model.op.size": [3, 5, 7], "model.op.norm": [*NORMS]},
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "LEVEL", LEVEL)
        write_study(folder / "results", str(folder / "own.yaml"))
        write_study(folder / "results", str(folder / "own.yaml"), grid=["model.op.heads=2x,C"])
    return folder


def table_of(place, **how):
    loaded = study.load_study(place / "own.yaml", **how)
    return build(loaded, collect(place / "results", "toy"))


def accuracies(table):
    """By size, norm and seed."""
    found = np.zeros((3, 2, 3))
    for row in table.rows:
        size, norm = re.fullmatch("size-(.)_norm-(.*)", row.variant).groups()
        for run in row.done:
            found[SIZES.index(size), NORMS.index(norm), run.seed] = run.accuracy
    return found


def weights_of(effect):
    """The weight of each row in an effect, by the definition."""
    weights = np.zeros((3, 2))
    for s, size in enumerate(SIZES):
        for n, norm in enumerate(NORMS):
            at = {"model.op.size": size, "model.op.norm": norm}
            sign = 1.0
            for key, value, base in zip(effect.factors, effect.values, effect.against, strict=True):
                sign *= (at[key] == value) - (at[key] == base)
            others = [len(o) for k, o in zip(at, (SIZES, NORMS), strict=True)
                      if k not in effect.factors]  # fmt: skip
            weights[s, n] = sign / (others[0] if others else 1)
    return weights


def image_error(table, weights):
    """The error that all seeds share, image by image."""
    seeds, images = 3, table.rows[0].done[0].correct_count
    each = np.zeros((seeds, images))
    for row in table.rows:
        size, norm = re.fullmatch("size-(.)_norm-(.*)", row.variant).groups()
        for run in row.done:
            right = np.unpackbits(np.frombuffer(run.correct, np.uint8))[:images]
            for image in range(images):
                weight = weights[SIZES.index(size), NORMS.index(norm)]
                each[run.seed, image] += 100 * weight * float(right[image])
    one = np.mean([np.var(row, ddof=1) for row in each])
    mean = np.var(each.mean(0), ddof=1)
    return np.sqrt(max(0.0, (seeds * mean - one) / (seeds - 1)) / images)


def test_effects_are_those_of_loops(place):
    table = table_of(place)
    values = accuracies(table)
    rest = np.zeros_like(values)
    for at in np.ndindex(values.shape):
        rest[at] = values[at] - values[at[:2]].mean() - values[..., at[2]].mean() + values.mean()
    variance = (rest**2).sum() / ((6 - 1) * (3 - 1))
    called = [(one.values, one.against) for one in table.effects]
    assert called == [
        (("5",), ("3",)), (("7",), ("3",)), (("filter_norm",), ("softmax",)),
        (("5", "filter_norm"), ("3", "softmax")), (("7", "filter_norm"), ("3", "softmax")),
    ]  # fmt: skip
    for one in table.effects:
        weights = weights_of(one)
        by_seed = [sum(weights[at] * values[(*at, seed)] for at in np.ndindex(3, 2))
                   for seed in range(3)]  # fmt: skip
        found = one.contrast
        np.testing.assert_allclose(found.difference.values, by_seed, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.difference.mean, np.mean(by_seed), atol=1e-9)
        assert found.noise.method == "pooled over 6 rows"
        error = np.sqrt((weights**2).sum() * variance / 3)
        np.testing.assert_allclose(found.noise.seed, error, rtol=1e-9)
        np.testing.assert_allclose(found.noise.image, image_error(table, weights), rtol=1e-9)
    p = [one.contrast.p() for one in table.effects]
    order, most = np.argsort(p, kind="stable"), 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[at]))
        assert table.effects[at].adjusted == pytest.approx(most, abs=1e-12)
    found = [round(one.contrast.difference.mean, 1) for one in table.effects]
    np.testing.assert_allclose(found, [1.0, 3.0, -0.7, 0.0, -2.0], atol=0.7)


def test_many_rows_are_counted_as_few_are(place, monkeypatch):
    few = table_of(place).effects
    monkeypatch.setattr(contrasts, "FEW", 0)
    for one, other in zip(few, table_of(place).effects, strict=True):
        np.testing.assert_allclose(one.contrast.noise.image, other.contrast.noise.image, rtol=1e-9)
        np.testing.assert_allclose(one.contrast.noise.least, other.contrast.noise.least, rtol=1e-9)


def test_rows_without_runs_are_left_out_of_effects(place, tmp_path):
    shutil.copytree(place / "results", tmp_path / "results")
    shutil.copy(place / "own.yaml", tmp_path)
    for folder in (tmp_path / "results/toy/runs").glob("size-5_norm-filter_norm-s*"):
        shutil.rmtree(folder)
    table = build(study.load_study(tmp_path / "own.yaml"), collect(tmp_path / "results", "toy"))
    assert [(one.values, one.cells, one.of) for one in table.effects] == [
        (("5",), 1, 2), (("7",), 2, 2), (("filter_norm",), 2, 3), (("7", "filter_norm"), 1, 1),
    ]  # fmt: skip
    assert any("size 5 − 3" in n.text and "over 1 of 2" in n.text for n in table.notes)
    texts = formats.contents(table)
    assert "| 5 | " in texts["own-pivot.md"]
    assert "not run" in texts["own-pivot.tex"]


def test_effects_are_in_the_notes_and_the_data(place):
    table = table_of(place)
    (main,) = [note.text for note in table.notes if note.text.startswith("Main effects")]
    assert re.search(r"size 7 − 3: \+[\d.]+ ± [\d.]+ \(p = ", main)
    assert any("size 7 − 3 × norm filter_norm − softmax: −" in note.text for note in table.notes)
    found = json.loads(formats.contents(table)["own.json"])["effects"][1]
    assert found["factors"] == ["model.op.size"]
    assert (found["values"], found["against"], found["n"]) == (["7"], ["3"], 3)
    assert found["low"] < found["mean"] < found["high"]
    assert 0 <= found["p"] <= found["adjusted"] <= 1


def test_a_pivot_in_every_format(place):
    table = table_of(place)
    texts = formats.contents(table)
    assert {name for name in texts if "-pivot" in name} == {
        f"own-pivot.{kind}" for kind in ("csv", "tex", "md", "json")
    }
    data = json.loads(texts["own-pivot.json"])
    assert (data["down"], data["across"], data["columns"]) == ("size", "norm", [*NORMS])
    records = {line["row"]: line for line in csv.DictReader(io.StringIO(texts["own-pivot.csv"]))}
    for row, line in zip(table.rows, table.texts(), strict=True):
        size, norm = re.fullmatch("size-(.)_norm-(.*)", row.variant).groups()
        (record,) = [one for one in data["rows"] if one["size"] == size]
        assert record["cells"][norm]["variant"] == row.variant
        assert record["cells"][norm]["mean"] == pytest.approx(row.accuracy.mean, abs=1e-4)
        assert float(records[f"size {size}"][f"cells.{norm}.low"]) == pytest.approx(
            row.accuracy.low, abs=1e-4
        )
        (shown,) = [
            one for one in texts["own-pivot.md"].splitlines() if one.startswith(f"| {size}")
        ]
        assert line[table.header().index("Acc@1 (%)")] in shown


def test_further_factors_make_blocks(place):
    table = table_of(place, grid=["model.op.heads=2x,C"])
    pivot = pivot_of(table.study, table.rows)
    assert [*pivot.blocks] == ["heads 2x", "heads C"]
    row = pivot.blocks["heads 2x"]["5"][1]
    assert row.variant == "size-5_norm-filter_norm_heads-2x"
    turned = pivot_of(table.study, table.rows, ["heads", "model.op.size"])
    assert (turned.down, turned.across, turned.columns) == ("heads", "size", SIZES)
    assert turned.blocks["norm filter_norm"]["2x"][1].variant == row.variant
    assert len(table.effects) == 4 + 2 + 2 + 1
    for choice, said in ((["heads", "x"], "no such factor"), (["heads", "heads"], "one factor")):
        with pytest.raises(ConfigError, match=said):
            pivot_of(table.study, table.rows, choice)


def test_a_study_without_a_product_has_no_pivot(tmp_path):
    table = build(write_study(tmp_path, "table2", seeds=[0]), collect(tmp_path, "toy"))
    assert pivot_of(table.study, table.rows) is None
    assert table.effects == ()
    assert "effects" not in json.loads(formats.contents(table)["table2.json"])


def test_rows_that_are_repeated_are_a_factor_without_a_main_effect(tmp_path):
    loaded = write_study(tmp_path, "table2", seeds=[0, 1], grid=["model.op.size=3,5"])
    table = build(loaded, collect(tmp_path, "toy"))
    mains = [one.factors for one in table.effects if len(one.factors) == 1]
    assert set(mains) == {("model.op.size",)}
    assert {one.factors for one in table.effects} - set(mains) == {("row", "model.op.size")}
    assert pivot_of(loaded, table.rows).down == "row"


@pytest.mark.skipif(not can_compile(), reason="no LaTeX with booktabs on the path")
def test_a_pivot_compiles(place, tmp_path):
    texts = [
        text
        for how in ({}, {"grid": ["model.op.heads=2x,C"]})
        for name, text in formats.contents(table_of(place, **how)).items()
        if name.endswith(".tex")
    ]
    assert len(texts) == 4
    compile_latex("\n".join(texts), tmp_path)


def test_the_map_names_every_cell(place):
    table = table_of(place)
    drawn = figures([(table.study, table.rows)])
    figure = drawn["own-heat"]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", style.svg(figure))
    for row in table.rows:
        mean, half = row.accuracy.shown(1).split(" ± ")
        assert mean in shown
        assert f"± {half}" in shown
    assert "Acc@1 (%) by size (down) and norm (across): 6 of 6 rows, best size 7, norm softmax" in (
        figure.get_label()
    )
    assert "Acc@1 (%)" in shown
    again = table_of(place, grid=["model.op.heads=2x,C"])
    assert "heads 2x" in style.svg(figures([(again.study, again.rows)])[f"{again.study.name}-heat"])


def test_the_report_shows_map_and_effects(place):
    loaded = study.load_study(place / "own.yaml")
    text = page([(loaded, collect(place / "results", "toy"))], [])
    assert "Acc@1 (%) by size (down) and norm (across)" in text
    assert "Main effects, in points" in text
    assert "Interactions, in points" in text


def test_by_the_command(place, tmp_path, capfd):
    """A side study of ``--grid`` is read by its name, and written tables are checked."""
    folder = shutil.copytree(place, tmp_path / "copy")

    def lsa(command, code=0):
        found = answer(folder, command, capfd)
        assert found[0] == code, found
        return found[1] + found[2]

    told = lsa("run own.yaml --grid model.op.heads=2x,C --as quick")
    assert "quick is a side study of own: model.op.heads=2x,C" in told
    again = json.loads((folder / "results/toy/studies/quick.json").read_text("utf-8"))
    assert again["grid"] == ["model.op.heads=2x,C"]
    assert "already" not in lsa("run own.yaml --grid model.op.heads=2x,C --as quick")
    assert "something else" in lsa("run own.yaml --grid model.op.heads=2x,1x --as quick", 2)
    told = lsa("table quick --pivot heads,size")
    assert "by heads (down) and size (across)" in told
    assert lsa("table quick --pivot heads,size --check") == "all cells rebuilt\n"
    assert "own-pivot" not in {path.stem for path in (folder / "results/toy/tables").iterdir()}
    assert "quick-heat.svg" in lsa("plots quick")
    lsa("report quick")
    assert "by size (down)" in (folder / "results/toy/report-quick.html").read_text("utf-8")
    assert lsa("status quick").count("heads-2x") == 18
    assert "against   size-3_norm-softmax_heads-2x" in lsa("why quick size-3_norm-softmax_heads-C")
    assert "about" not in json.loads(lsa("plan own.yaml --json")), "the study itself stands"
    named = lsa("run own.yaml --grid model.op.heads=2x,C")
    assert re.match(r"own-heads-2x-C-[0-9a-f]{8} is a side study", named)
    assert named.endswith("36 were done before\n")
    for given in ("heads", "heads,x", "heads,heads"):
        assert "--pivot" in lsa(f"table quick --pivot {given}", 2)
    assert "none of these is a grid" in lsa("table table4 --pivot heads,size", 2)
    assert "no such factor" in lsa("table table4 quick --pivot heads,x", 2)
    assert not (folder / "results/toy/tables/table4.md").exists()
    path = folder / "results/toy/tables/quick-pivot.json"
    path.write_text(path.read_text("utf-8").replace('"n": 3', '"n": 4', 1))
    assert "quick-pivot.json: row heads 2x, norm softmax" in lsa(
        "table quick --pivot heads,size --check", 1
    )
