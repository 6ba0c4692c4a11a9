"""Tables: rows found by identity, honest cells, four formats that say the same."""

import csv
import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import COMMIT, change_result, write_run, write_study

from lsa_study import rundir
from lsa_study.analysis.collect import collect
from lsa_study.analysis.formats import contents, write_tables
from lsa_study.analysis.table import build
from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks


def table_of(results, name, **how):
    return build(study.load_study(name, **how), collect(results, how.get("tier", "toy")))


def shown(table, variant):
    at = [row.variant for row in table.rows].index(variant)
    return dict(zip(table.header(), table.texts()[at], strict=True))


def test_rows_stand_in_the_study_s_order_with_the_article_beside(tmp_path):
    write_study(tmp_path, "table1")
    table = table_of(tmp_path, "table1")
    assert [row.label for row in table.rows] == [
        "Swin-T", "Net1", "Net2", "Net3", "Net4", "Net5", "Net6", "Net7",
    ]  # fmt: skip
    assert [row.article.value for row in table.rows] == [
        81.3, 80.1, 80.9, 80.9, 79.8, 81.1, 81.3, 81.8,
    ]  # fmt: skip
    swin, net7 = table.rows[0], table.rows[-1]
    assert swin.contrast.seeds == ()
    difference = net7.contrast.difference
    assert difference.mean == pytest.approx(net7.accuracy.mean - swin.accuracy.mean)
    shown_delta = shown(table, "net7")["Δ"]
    assert shown_delta == f"+{difference.mean:.1f} ± {difference.half:.1f}"
    assert net7.article_delta == pytest.approx(0.5)


def best_note(table):
    return [note.text for note in table.notes if "the best by the test set" in note.text]


def test_the_best_epoch_stands_beside_the_last(tmp_path):
    """By how much each row would gain; silent where it is not known, or another thing."""
    write_study(tmp_path, "table2")
    (note,) = best_note(table_of(tmp_path, "table2"))
    table = table_of(tmp_path, "table2")
    expected = [
        f"{row.name} {row.accuracy.mean + 0.1:.2f} (+0.10)" for row in table.rows if row.done
    ]
    assert f"would give {', '.join(expected)}. The article does not say" in note
    for path in tmp_path.glob("toy/runs/*"):
        acc1 = json.loads((path / "result.json").read_text("utf-8"))["acc1"]
        change_result(rundir.RunDir(path), {"best_acc1": acc1})
    (note,) = best_note(table_of(tmp_path, "table2"))
    assert "the best by the test set is the same one in every run." in note
    for unknown in ({"best_acc1": None}, {"best_acc1": 99.0, "selected": "best"}):
        for path in tmp_path.glob("toy/runs/*"):
            change_result(rundir.RunDir(path), unknown)
        assert best_note(table_of(tmp_path, "table2")) == []


def test_a_best_epoch_by_held_out_images_is_no_accuracy_of_the_test_set(tmp_path):
    held_out = ["data.validation=100"]
    write_study(tmp_path, "table2", overrides=held_out)
    table = table_of(tmp_path, "table2", overrides=held_out)
    assert any(row.done for row in table.rows)
    assert best_note(table) == []


def test_intervals_over_the_declared_seeds_are_those_of_one_look(tmp_path):
    """Seeds that a file declares before anything runs; others are held at every look."""
    shipped = study.find_study("table1").resolve()
    text = shipped.read_text("utf-8").replace("../results", str(shipped.parents[1] / "results"))
    path = tmp_path / "table1.yaml"
    path.write_text(text.replace("baseline: swin", "baseline: swin\nseeds: [0, 1, 2]"))
    write_study(tmp_path, "table1")
    declared, open_ended = table_of(tmp_path, path), table_of(tmp_path, "table1")
    assert study.load_study(path).seeds == (0, 1, 2)
    ours, theirs = (table.rows[-1].contrast for table in (declared, open_ended))
    assert ours.difference.mean == theirs.difference.mean
    assert ours.difference.half * 1.5 < theirs.difference.half
    said = [
        any("always valid" in note.text for note in table.notes) for table in (declared, open_ended)
    ]
    assert said == [False, True]
    path.write_text(text.replace("baseline: swin", "baseline: swin\nseeds: [0, 1]"))
    assert table_of(tmp_path, path).rows[-1].contrast.difference.half > theirs.difference.half


def test_numbers_are_those_of_the_run_folders(tmp_path):
    write_study(tmp_path, "table4", seeds=[0, 1, 2])
    row = next(row for row in table_of(tmp_path, "table4").rows if row.variant == "elsa")
    results = [
        run.result()
        for run in rundir.existing(tmp_path, "toy").values()
        if run.result().variant == "elsa"
    ]
    assert sorted(row.accuracy.values) == sorted(result.acc1 for result in results)
    assert row.accuracy.n == 3
    first = min(results, key=lambda result: result.seed)
    assert row.costs["params_m"] == first.params / 1e6
    assert row.costs["gmacs"] == sorted(result.macs for result in results)[1] / 1e9
    assert set(row.identities) == {result.identity for result in results}


def test_the_note_on_noise_speaks_of_the_rows_own_intervals(tmp_path):
    write_study(tmp_path, "table4", seeds=[0, 1, 2])
    table = table_of(tmp_path, "table4")
    noises = [row.contrast.noise for row in table.rows if row.contrast.noise]
    assert {noise.method for noise in noises} == {f"pooled over {len(table.rows)} rows"}
    size = sorted(noise.resolvable for noise in noises)[len(noises) // 2]
    (note,) = [note.text for note in table.notes if note.text.startswith("Noise")]
    assert f"3 seeds find a difference of {size:.2f} points in about 4 of 5 cases" in note


def test_seeds_beyond_the_tier_s_count(tmp_path):
    write_study(tmp_path, "table4", seeds=[0, 4])
    plain = study.load_study("table4")
    assert plain.seeds == (0,)
    assert {row.accuracy.n for row in build(plain, collect(tmp_path, "toy")).rows} == {2}


def test_runs_are_found_by_identity_never_by_name(tmp_path):
    changed = ["train.epochs=2"]
    write_study(tmp_path, "table4", overrides=changed)
    assert {row.outcome for row in table_of(tmp_path, "table4").rows} == {"not run"}
    found = table_of(tmp_path, "table4", overrides=changed)
    assert {row.outcome for row in found.rows} == {"done"}
    # Table 3 calls the same run of Swin by the same identity, whoever asked for it first.
    shared = table_of(tmp_path, "table3", overrides=changed)
    assert [row.variant for row in shared.rows if row.outcome == "done"] == ["swin"]


def test_ends_without_an_accuracy_are_words_with_counts(tmp_path):
    loaded = write_study(tmp_path, "table2")
    cells = shown(table_of(tmp_path, "table2"), "net7_identity")
    assert cells["Acc@1 (%)"] == "diverged 3/3"
    assert (cells["n"], cells["Article"], cells["Δ"]) == ("0", "crash", "")
    run = next(run for run in loaded.runs() if run.variant == "net7")
    write_run(tmp_path, run, changes={"outcome": "diverged", "acc1": None})
    row = next(row for row in table_of(tmp_path, "table2").rows if row.variant == "net7")
    assert (row.outcome, row.accuracy.n) == ("diverged 1/3", 2)
    assert shown(table_of(tmp_path, "table2"), "net7")["Acc@1 (%)"].endswith("(diverged 1/3)")


def test_out_of_memory_and_not_run_are_told_apart(tmp_path):
    write_study(tmp_path, "fig2", seeds=[0], only="lsa_heads_c,swin")
    table = table_of(tmp_path, "fig2")
    assert shown(table, "lsa_heads_c")["Acc@1 (%)"] == "oom 1/1"
    assert shown(table, "lsa_heads_c")["Article"] == "out of memory"
    assert shown(table, "dwconv")["Acc@1 (%)"] == "not run"
    assert shown(table, "dwconv")["n"] == ""


def test_one_seed_has_no_interval(tmp_path):
    write_study(tmp_path, "table4", seeds=[0])
    table = table_of(tmp_path, "table4")
    assert table.rows[0].accuracy.low is None
    assert "±" not in shown(table, "swin")["Acc@1 (%)"]
    assert any("one seed, so no interval" in note.text for note in table.notes)


def test_the_foot_says_what_the_numbers_rest_on(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0, 3])
    write_run(tmp_path, loaded.runs()[0], changes={"device": "Other chip", "dirty": True})
    (tmp_path / "toy" / "runs" / loaded.runs()[-1].name / "result.json").write_text("{")
    text = " ".join(note.text for note in table_of(tmp_path, "table4", seeds=[0, 3]).notes)
    for words in (
        "never a reproduction", "digits at 28 px", "1,437 training and 360 test images",
        "fingerprint f1f2f3f4f5", "Other chip, Processor 9000", f"{COMMIT[:10]} with local changes",
        "seeds: 0, 3", "torch: 2.9.0", "float32", "Not finished: elsa (seed 3)",
        "1 file could not be read", "Table 4",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize(("times", "said"), [(1.2, False), (2.2, True)])
def test_seconds_that_cannot_be_compared_are_said_to_say_little(tmp_path, times, said, other):
    """Those of one row that lie far apart, and those of several devices, which may well do."""
    loaded = write_study(tmp_path, "table4", seeds=[0, 1])
    for run in loaded.runs():
        seconds = 10.0 * (times if (run.variant, run.seed) == ("elsa", 1) else 1.0)
        write_run(tmp_path, run, changes={"seconds_per_epoch": seconds})
    if other:
        changes = {"seconds_per_epoch": 99.0, "device": "Other chip"}
        write_run(tmp_path, loaded.runs()[0], changes=changes)
    text = " ".join(note.text for note in table_of(tmp_path, "table4", seeds=[0, 1]).notes)
    assert ("differ up to 2.2-fold in seconds: other work ran beside" in text) == said
    assert ("Several devices: compare seconds of rows that ran on the same" in text) == other


@pytest.mark.parametrize("tier", ["toy", "proxy"])
def test_small_tiers_are_labelled_in_every_text_format(tmp_path, tier):
    write_study(tmp_path, "table4", tier=tier, seeds=[0])
    files = contents(table_of(tmp_path, "table4", tier=tier))
    for kind in ("tex", "md", "json"):
        assert "never a reproduction" in files[f"table4.{kind}"]
        assert f"tier {tier}" in files[f"table4.{kind}"] or kind == "json"
    assert {row["tier"] for row in rows_of_csv(files["table4.csv"])} == {tier}


def rows_of_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_all_formats_say_the_same(tmp_path):
    write_study(tmp_path, "table3")
    table = table_of(tmp_path, "table3")
    files = contents(table)
    document = json.loads(files["table3.json"])
    flat = rows_of_csv(files["table3.csv"])
    body = [line for line in files["table3.md"].splitlines() if line.startswith("| ")][2:]
    tex = [line for line in files["table3.tex"].splitlines() if line.endswith(r"\\")][1:]
    assert len(document["rows"]) == len(flat) == len(body) == len(tex) == 9
    for record, line, md, latex in zip(document["rows"], flat, body, tex, strict=True):
        assert float(line["acc1_mean"]) == record["acc1"]["mean"]
        assert line["runs"].split() == record["runs"]
        assert [float(v) for v in line["acc1_values"].split()] == record["acc1"]["values"]
        assert f"{record['acc1']['mean']:.1f} ± " in md
        plain = re.sub(r"\\textbf\{([0-9.]+)\}", r"\1", latex)
        assert rf"{record['acc1']['mean']:.1f} \ensuremath{{\pm}} " in plain
        assert record["Application"] in md


def test_json_has_the_promised_shape(tmp_path):
    write_study(tmp_path, "table2")
    document = json.loads(contents(table_of(tmp_path, "table2"))["table2.json"])
    assert set(document["columns"]) >= {"model", "acc1", "paper", "outcome", "runs"}
    for row in document["rows"]:
        assert set(document["columns"]) <= set(row)
        assert set(row["acc1"]) == {"mean", "low", "high", "n", "values"}
        assert row["paper"] is None or isinstance(row["paper"], float)
        assert len(row["runs"]) == 3
        assert row["reference"] == "net7"


def test_every_study_is_written_four_times_and_the_runs_once(tmp_path):
    loaded = [write_study(tmp_path, name, seeds=[0]) for name in ("table1", "table4")]
    paths = write_tables(loaded, tmp_path)
    folder = tmp_path / "toy" / "tables"
    kinds = ("csv", "tex", "md", "json")
    assert paths == [folder / f"{name}.{kind}" for name in ("table1", "table4") for kind in kinds]
    before = {path: path.read_bytes() for path in paths}
    assert (tmp_path / "toy" / "runs.parquet").exists()
    write_tables(loaded, tmp_path)
    assert before == {path: path.read_bytes() for path in paths}


def test_a_full_disk_leaves_the_tables_as_they_were(tmp_path, monkeypatch):
    loaded = [study.load_study("table4"), study.load_study("table2")]
    before = {path: path.read_bytes() for path in write_tables(loaded, tmp_path)}
    write_study(tmp_path, "table4", seeds=[0])
    plain = Path.write_text

    def full(path, *given, **how):
        if path.name.startswith("table2.md"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, *given, **how)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EnvironmentLacks, match=r"table2\.md: cannot be written \(No space left"):
        write_tables(loaded, tmp_path)
    folder = tmp_path / "toy" / "tables"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_table_without_runs_is_still_a_table(tmp_path):
    (path, *_) = write_tables([study.load_study("table5")], tmp_path)
    assert [row["outcome"] for row in rows_of_csv(path.read_text())] == ["not run"] * 4


def test_reports_need_no_torch():
    code = (
        "import importlib, sys\n"
        "for module in ('formats', 'plots', 'html', 'plots.attention'):\n"
        "    importlib.import_module(f'lsa_study.analysis.{module}')\n"
        "    assert 'torch' not in sys.modules, module\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_without_runs_says_nothing_of_seeds(tmp_path):
    for name, tier in (("table1", "toy"), ("table8", "paper"), ("table10", "toy"), ("stem", "toy")):
        loaded = study.load_study(name, tier=tier)
        table = build(loaded, collect(tmp_path, tier))
        notes = " ".join(note.text for note in table.notes)
        assert f"{table.metric.removesuffix(' (%)')}: no row has been run yet." in notes
        for said in ("seed,", "interval", "± half", "Noise of", "Order:", "Device:", "Costs:"):
            assert said not in notes, (name, said)


def test_runs_that_all_diverged_are_no_seed_of_a_number(tmp_path):
    loaded = study.load_study("table1", only="swin", seeds=[0])
    ended = {"outcome": "diverged", "reason": "epoch 1", "acc1": None}
    write_run(tmp_path, loaded.runs()[0], changes=ended)
    notes = " ".join(note.text for note in build(loaded, collect(tmp_path, "toy")).notes)
    assert "Acc@1: no run has given a number." in notes
    assert "one seed" not in notes
