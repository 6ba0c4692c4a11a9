"""Rows whose runs were not made alike: refused or marked, in every format."""

import csv
import io
import json

import pytest
from synthetic import CODE, COMMIT, write_run, write_study

from lsa_study.analysis import claims, html
from lsa_study.analysis.collect import collect
from lsa_study.analysis.comparability import comparability, paired
from lsa_study.analysis.formats import contents
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.table import build
from lsa_study.config import study

REFUSED = [
    ({"data_fingerprint": "digits-2"}, "data digits-2, reference f1f2f3f4f5"),
    ({"test_images": 500}, "test images 500, reference 10000"),
    ({"train_images": 400}, "training images 400, reference 50000"),
]
MARKED = [
    ({"device": "Other chip"}, "chip Other chip, reference Processor 9000"),
    ({"device_kind": "cuda"}, "device kind cuda, reference cpu"),
    ({"precision": "bfloat16"}, "precision bfloat16, reference float32"),
    ({"fused": "none"}, "path taken none, reference C++ kernels, 16 floats a vector"),
    ({"threads": 64}, "threads 64, reference 2"),
    ({"processes": 8}, "processes 8, reference 1"),
    ({"torch": "2.1.0"}, "torch 2.1.0, reference 2.9.0"),
    ({"effective_batch": 48}, "effective batch 48, reference 64"),
    ({"weights": "ema"}, "reported weights ema, reference model"),
    ({"selected": "best by validation"}, "reported epoch best by validation, reference last"),
    # Two working trees with changes, at one commit.
    ({"code": "f" * 64, "dirty": True}, "code ffffffffff, reference 0123456789"),
    ({"code": None, "commit": "f" * 40}, "commit ffffffffff, reference 0123456789"),
    ({"code": None, "dirty": True}, "commit 0123456789 with local changes, reference 0123456789"),
    ({"continued": "code a, then b"}, "seed 0 went on with another code a, then b"),
]


@pytest.fixture
def planted(tmp_path):
    """Write Table 4 at the proxy tier, its row elsa with these changes at seed 0."""

    def write(change, variant="elsa", seeds=(0,)):
        loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
        for run in loaded.runs():
            if run.variant == variant and run.seed in seeds:
                write_run(tmp_path, run, changes=change)
        return loaded, collect(tmp_path, "proxy")

    return write


def verdict_on(results, name="table4-elsa"):
    found = claims.judge_tier(results, "proxy")
    return next(one for one in found if one.claim.id == name)


@pytest.mark.parametrize(("change", "words"), REFUSED + MARKED)
def test_all_formats_of_a_table_show_it(planted, change, words):
    loaded, collected = planted(change)
    table = build(loaded, collected)
    assert {row.variant for row in table.rows if "†" in row.marks} == {"elsa"}
    (note,) = [note.text for note in table.notes if note.mark == "†"]
    assert f"HA + GH: {'not comparable: ' * ((change, words) in REFUSED)}{words}" in note
    written = contents(table)
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(written["table4.csv"]))}
    assert (rows["elsa"]["marks"], rows["swin"]["marks"]) == ("†", "")
    document = json.loads(written["table4.json"])
    assert {"mark": "†", "text": note} in document["notes"]
    assert words.split(",")[0].replace("_", "") in written["table4.md"].replace("\\", "")
    assert words.split(",")[0] in written["table4.tex"].replace("\\", "").replace("{", "")


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_other_images_refuse_a_verdict(tmp_path, planted, change, words):
    planted(change)
    found = verdict_on(tmp_path)
    assert found.word == "not comparable"
    document = claims.claims_json([found], "proxy")["claims"][0]
    assert document["verdict"] == f"not comparable ({words} at seed 0)"
    assert document["comparable"] == f"{words} at seed 0"
    assert words in claims.claims_text([found], "proxy")


@pytest.mark.parametrize(("change", "words"), MARKED)
def test_another_environment_marks_a_verdict(tmp_path, planted, change, words):
    planted(change)
    found = verdict_on(tmp_path)
    assert found.word != "not comparable"
    note = words if "continued" in change else f"{words} at seed 0"
    assert claims.claims_json([found], "proxy")["claims"][0]["notes"] == [note]
    assert f"† {note}" in claims.claims_text([found], "proxy")


def test_the_report_shows_both(tmp_path, planted):
    for change, words in (REFUSED[1], MARKED[4]):
        judged = claims.judge_tier(tmp_path, "proxy", collected=planted(change)[1])
        page = html.page([planted(change)], judged)
        assert page.count(words) >= 2  # in the table and beside the claim


def test_a_fact_crossed_by_seed_is_seen(tmp_path, planted):
    """Both rows have runs of both chips, and no pair of one seed shares its chip."""
    planted({"device": "B"}, "elsa", seeds=(0, 2))
    loaded = study.load_study("table4", tier="proxy", seeds=[0, 1, 2])
    for run in loaded.runs():
        if (run.variant, run.seed) in {("swin", 1), ("elsa", 0), ("elsa", 2)}:
            write_run(tmp_path, run, changes={"device": "B"})
    assert verdict_on(tmp_path).notes == (
        "chip B, reference Processor 9000 at seed 0, 2",
        "chip Processor 9000, reference B at seed 1",
    )


def test_what_changes_with_the_seed_alone_is_alike(tmp_path, planted):
    loaded, _ = planted({})
    for run in loaded.runs():
        if run.seed == 1:
            write_run(tmp_path, run, changes={"device": "B"})
    assert verdict_on(tmp_path).notes == ()


def test_a_reference_that_went_on_with_other_code_is_marked_itself(planted):
    table = build(*planted({"continued": "code a, then b"}, "swin"))
    assert [row.variant for row in table.rows if "†" in row.marks] == [
        "swin",
        "elsa_noghost",
        "elsa",
    ]
    (note,) = [note for note in table.notes if note.mark == "†"]
    assert "Base model: seed 0 went on with another code a, then b" in note.text
    assert "reference seed 0 went on with another code a, then b" in note.text


@pytest.mark.parametrize("variant", ["swin", "elsa"])
def test_an_epoch_that_the_test_set_selected_is_marked_everywhere(planted, tmp_path, variant):
    """Also where all rows do so, and where only the settings of an older run say it."""
    words = "epoch selected on the test set"
    loaded, found = planted({"selected": "best"}, variant)
    marked = [row.variant for row in build(loaded, found).rows if "†" in row.marks]
    assert variant in marked
    written = contents(build(loaded, found))
    assert all(words in written[f"table4.{form}"] for form in ("json", "md", "tex"))
    verdict = verdict_on(tmp_path)
    assert words in claims.claims_text([verdict], "proxy")
    assert words in html.page([(loaded, found)], [verdict])
    assert words in " ".join(claims.claims_json([verdict], "proxy")["claims"][0]["notes"])
    rows = {row.variant: row for row in rows_of(loaded, found)}
    for update in ({}, {"selected": None, "settings": {"evaluation.epoch": "best"}}):
        runs = [run.model_copy(update=update) for run in rows[variant].runs]
        assert words in comparability(list(zip(runs, runs, strict=True))).marked
        clean = [run.model_copy(update={"selected": "best by validation"}) for run in runs]
        assert comparability(list(zip(clean, clean, strict=True))).text == ""


def test_alike_rows_have_no_dagger(planted):
    table = build(*planted({}))
    assert not [row for row in table.rows if "†" in row.marks]
    assert not [note for note in table.notes if note.mark == "†"]


def test_a_second_factor_is_a_dagger_too(tmp_path):
    loaded = study.load_study("table4")
    elsa = loaded.variants["elsa"]
    changed = elsa.model_copy(update={"train": elsa.train.model_copy(update={"lr": 5e-4})})
    loaded.variants["elsa"] = changed
    table = build(loaded, collect(tmp_path, "toy"))
    assert [row.variant for row in table.rows if "†" in row.marks] == ["elsa"]
    (note,) = [note for note in table.notes if note.mark == "†"]
    assert note.text.endswith(": also changes train.lr (0.002 -> 0.0005).")


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"effective_batch": 48}, "train.batch_size"),
        ({"weights": "ema"}, "evaluation.weights"),
        ({"selected": "best by validation"}, "evaluation.epoch"),
        ({"precision": "bfloat16"}, "train.precision"),
        ({"train_images": 400}, "data.train_limit"),
        ({"data_fingerprint": "maps"}, "train.tokens"),
    ],
)
def test_what_follows_from_the_factor_is_no_mismatch(planted, change, setting):
    rows = {row.variant: row for row in rows_of(*planted(change))}
    pairs = paired(rows["elsa"].runs, rows["swin"].runs)
    assert comparability(pairs).text
    assert comparability(pairs, explained=[setting]).text == ""
    assert comparability(pairs, explained=["model.op", "seed"]).text


def test_only_digests_and_commits_of_both_sides_count(planted):
    """Results of before the digest compare by commit; unknown on both sides is alike."""
    unknown = {"fused": None, "threads": None, "processes": None, "code": None}
    alike = {"commit": "f" * 40, "code": CODE}
    rows = {row.variant: row for row in rows_of(*planted(alike))}
    assert comparability(paired(rows["elsa"].runs, rows["swin"].runs)).comparable is True
    assert comparability(paired(rows["elsa"].runs, rows["swin"].runs)).text == ""
    rows = {row.variant: row for row in rows_of(*planted(unknown))}
    run, reference = paired(rows["elsa"].runs, rows["swin"].runs)[0]
    assert run.commit == COMMIT
    assert comparability([(run, run)]).text == ""
    assert comparability([(run, reference)]).marked == (
        "path taken unknown, reference C++ kernels, 16 floats a vector",
        "threads unknown, reference 2",
        "processes unknown, reference 1",
    )


def test_factors_that_the_rows_share_explain_nothing(planted):
    """A study of many factors: rows that differ in the layer alone must have equal batches."""
    rows = {row.variant: row for row in rows_of(*planted({"effective_batch": 48}))}
    assert "effective batch 48" in rows["elsa"].alike.text


def test_one_row_s_seeds_saw_the_same_images(tmp_path):
    """On both sides alike, so no pair differs; a mean over two test sets is none of either."""
    for run in study.load_study("table4", tier="proxy", seeds=[0, 1, 2]).runs():
        changes = {"test_images": 500} if run.seed == 2 else {}
        write_run(tmp_path, run, changes=changes)
    rows = rows_of(study.load_study("table4", tier="proxy"), collect(tmp_path, "proxy"))
    for row in rows:
        (reason,) = row.alike.refused
        assert reason == "test images differs between its seeds: 10000, 500"
    found = verdict_on(tmp_path)
    assert found.word == "not comparable"
    assert "differs between its seeds" in found.needs


def test_what_is_refused_shows_no_difference(planted, tmp_path):
    """Nor an interval, a p value, bold type or a place in the order of rows."""
    table = build(*planted({"data_fingerprint": "digits-2"}))
    row = next(row for row in table.rows if row.variant == "elsa")
    assert (row.contrast.seeds, row.contrast.p()) == ((), None)
    written = contents(table)
    document = {one["variant"]: one for one in json.loads(written["table4.json"])["rows"]}
    assert document["elsa"]["delta"] is document["elsa"]["delta_p"] is None
    assert document["elsa"]["comparable"].startswith("data digits-2, reference f1f2f3f4f5")
    assert document["elsa_noghost"]["comparable"] is True
    lines = iter(written["table4.tex"].splitlines())
    assert any(line.startswith("    % elsa: ") for line in lines)
    assert "textbf" not in next(lines)
