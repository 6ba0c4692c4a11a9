"""The check names each cell that the runs do not give."""

import json

import pytest
from synthetic import write_run, write_study
from typer.testing import CliRunner

from lsa_study.analysis.formats import check_tables, write_tables
from lsa_study.cli import app
from lsa_study.config import study
from lsa_study.config.asked import parquet_path


@pytest.fixture
def results(tmp_path):
    write_tables([write_study(tmp_path, "table4", seeds=[0])], tmp_path)
    return tmp_path


def check(results):
    return check_tables([study.load_study("table4")], results)


def test_tables_as_written_pass(results):
    assert check(results) == []


def test_it_needs_the_parquet_only(results):
    (results / "toy" / "runs").rename(results / "gone")
    assert check(results) == []


@pytest.mark.parametrize("kind", ["csv", "json", "md", "tex"])
def test_an_edited_number_is_named(results, kind):
    path = results / "toy" / "tables" / f"table4.{kind}"
    rows = json.loads((path.with_suffix(".json")).read_text())["rows"]
    means = [row["acc1"]["mean"] for row in rows]
    row, value = next(
        (r["variant"], m) for r, m in zip(rows, means, strict=True) if means.count(m) == 1
    )
    shown = f"{value:.1f}" if kind in ("md", "tex") else str(value)
    path.write_text(path.read_text().replace(shown, "99.9", 1))
    (line, *more) = check(results)
    assert "99.9" in line
    assert shown in line
    assert f"table4.{kind}: " in line
    places = {"csv": f"row {row}, acc1_mean", "json": f"row {row}, acc1.mean"}
    assert places.get(kind, "line") in line
    assert not more


@pytest.mark.parametrize("kind", ["csv", "json", "md", "tex"])
def test_a_deleted_cell_is_named_by_the_command_with_exit_code_1(results, kind):
    path = results / "toy" / "tables" / f"table4.{kind}"
    document = json.loads(path.with_suffix(".json").read_text())
    value = document["rows"][1]["acc1"]["mean"]
    if kind == "json":
        del document["rows"][1]["acc1"]["mean"]
        path.write_text(json.dumps(document))
        shown = str(value)
    else:
        shown = str(value) if kind == "csv" else f"{value:.1f}"
        path.write_text(path.read_text().replace(shown, "", 1))
    told = CliRunner().invoke(app, ["table", "table4", "--check", "--results", str(results)])
    assert told.exit_code == 1
    place = {"csv": "row elsa_noghost, acc1_mean", "json": "row elsa_noghost, acc1.mean"}
    line = next(line for line in told.output.splitlines() if line.startswith(f"table4.{kind}: "))
    assert place.get(kind, "cell") in line
    assert shown in line.split(" in the file, ")[1]
    assert "1 cell differs" in told.output


def test_a_new_seed_is_named_in_every_format(results):
    for run in study.load_study("table4", seeds=[1]).runs():
        write_run(results, run)
    before = check(results)
    assert before == [], "runs that are not collected yet do not count"
    from lsa_study.analysis.collect import collect

    collect(results, "toy", update=True)
    lines = check(results)
    for kind in ("csv", "json", "md", "tex"):
        assert any(line.startswith(f"table4.{kind}: ") for line in lines)
    assert any("row swin, acc1_n: 1 in the file, 2 from the runs" in line for line in lines)


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_a_line_that_is_gone_does_not_shift_those_after_it(results, kind):
    path = results / "toy" / "tables" / f"table4.{kind}"
    lines = path.read_text().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if "Article: the values" in line)
    path.write_text("".join(lines[:at] + lines[at + 1 :]))
    (line,) = check(results)
    assert line.startswith(f"table4.{kind}: line {at + 1}, cell 1: nothing in the file, ")


def test_missing_and_damaged_files_are_named(results):
    folder = results / "toy" / "tables"
    (folder / "table4.tex").unlink()
    (folder / "table4.json").write_text("{")
    (folder / "table4.csv").write_text("")
    found = " ".join(check(results))
    assert "table4.tex: cannot be read; write it with lsa table" in found
    assert "table4.json: is damaged" in found
    assert "table4.csv: row swin, acc1_mean: nothing in the file" in found


def test_a_damaged_collection_is_named(results):
    parquet_path(results, "toy").write_bytes(b"PAR1")
    assert "is unreadable" in check(results)[0]
