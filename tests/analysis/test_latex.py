"""LaTeX: whatever a name holds is shown as written, and the file compiles."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_study
from typer.testing import CliRunner

from lsa_study.analysis import formats
from lsa_study.analysis.collect import collect
from lsa_study.analysis.latex import escape, latex
from lsa_study.analysis.notes import Note
from lsa_study.analysis.table import build
from lsa_study.cli import app
from lsa_study.config import study
from lsa_study.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NASTY = r"a_b & 50% #1 <tag> $x$ {y} ~ ^ \frac \\ \end{table} [z] *w* -- --- `q` ''r'' \"s\" ,, |t|"
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126))
COMMANDS = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<",
    "textgreater": ">", "textbar": "|", "textasciigrave": "`", "char": '"',
}  # fmt: skip


def read_latex(text: str) -> str:
    """What LaTeX would print: an own small reader, sharing no table with the writer.

    Fails on any sign that would mean something to LaTeX.
    """
    out, at, depth = [], 0, 0
    while at < len(text):
        sign = text[at]
        if sign == "\\":
            if command := re.match(r"\\([a-zA-Z]+)(34)?(\{\})?", text[at:]):
                assert command[1] in COMMANDS, command[0]
                assert command[3], "a command without {} would swallow the next space or letter"
                out.append(COMMANDS[command[1]])
                at += len(command[0])
                continue
            assert text[at + 1] in "{}_&%#$", text[at : at + 2]
            out.append(text[at + 1])
            at += 2
            continue
        assert sign not in "_&%#$~^", f"bare {sign}"
        depth += (sign == "{") - (sign == "}")
        assert depth in (0, 1)
        if sign not in "{}":
            out.append(sign)
        if text[at : at + 2] in ("--", "''", ",,", "?`", "!`"):
            raise AssertionError(f"melts: {text[at : at + 2]}")
        at += 1
    assert depth == 0
    return "".join(out)


@given(PRINTABLE)
def test_every_printable_text_is_shown_as_written(text):
    assert read_latex(escape(text)) == text


@given(PRINTABLE)
def test_a_cell_never_starts_an_argument_of_the_row_before(text):
    assert escape(text)[:1] not in ("[", "*")


def test_control_characters_cannot_end_a_comment_or_a_row():
    assert escape("a\nb\r\n\tc\x00d\x85e f") == "a b c d e f"


@pytest.fixture
def table(tmp_path):
    """A table whose every text is nasty."""
    write_study(tmp_path, "table3")
    plain = build(study.load_study("table3"), collect(tmp_path, "toy"))
    rows = tuple(
        dataclasses.replace(
            row,
            label=NASTY,
            columns={NASTY: NASTY},
            variant="x\n\\end{document}",
            marks=("a", "†"),
        )
        for row in plain.rows
    )
    file = plain.study.file.model_copy(update={"title": NASTY})
    return dataclasses.replace(
        plain,
        study=dataclasses.replace(plain.study, file=file),
        rows=rows,
        notes=(*plain.notes, Note(NASTY, "_"), Note("Δ ± − × † ≥ ≤ – — ’")),
    )


def test_structure_holds_with_nasty_texts(table):
    lines = [line for line in latex(table).splitlines() if not line.lstrip().startswith("%")]
    text = "\n".join(lines)
    bare = re.sub(r"\\[{}&%]", "", text)
    assert bare.count("{") == bare.count("}")
    (shape,) = re.findall(r"\\begin\{tabular\}\{(.+)\}", bare)
    shape = re.sub(r"p\{[0-9]+pt\}", "p", shape)
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 10
    assert {row.count("&") + 1 for row in rows} == {len(shape)}
    assert re.findall(r"\\(?:begin|end)\{[a-z*]+\}", bare) == [
        r"\begin{table*}", r"\begin{tabular}", r"\end{tabular}", r"\begin{minipage}",
        r"\end{minipage}", r"\end{table*}",
    ]  # fmt: skip


def test_the_runs_behind_a_row_stand_in_comments(table):
    comments = [line for line in latex(table).splitlines() if line.lstrip().startswith("%")]
    for row in table.rows:
        assert any(all(identity in line for identity in row.identities) for line in comments)


def can_compile():
    if shutil.which("pdflatex") and shutil.which("kpsewhich"):
        return subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode == 0
    return shutil.which("tectonic") is not None


def compile_latex(text, folder, option=""):
    document = (
        f"\\documentclass[{option}]{{article}}\n"
        "\\usepackage{booktabs}\n\\begin{document}\n"
        f"{text}\n\\end{{document}}\n"
    )
    (folder / "a.tex").write_text(document, "utf-8")
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    else:
        command = ["tectonic", "--only-cached", "a.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "a.pdf").exists()


@pytest.mark.skipif(not can_compile(), reason="no LaTeX with booktabs on the path")
def test_it_compiles(table, tmp_path):
    compile_latex(latex(table), tmp_path)


@pytest.mark.skipif(not can_compile(), reason="no LaTeX with booktabs on the path")
def test_the_tables_of_all_studies_compile_in_one_document(tmp_path):
    loaded = [write_study(tmp_path, name, seeds=[0, 1]) for name in study.ARTICLE]
    texts = [latex(build(one, collect(tmp_path, "toy"))) for one in loaded]
    compile_latex("\n\\clearpage\n".join(texts), tmp_path)
    log = (tmp_path / "a.log").read_text("latin-1")
    assert f"({len(loaded)} pages" in log
    assert "Missing character" not in log
    assert "Overfull" not in log


def faults(log):
    """What LaTeX says of boxes that do not fit: by more than a point, or a page too short."""
    over = [float(points) for points in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", log)]
    return [points for points in over if points > 1] + re.findall("Float too large.*", log)


@pytest.mark.skipif(not can_compile(), reason="no LaTeX with booktabs on the path")
@pytest.mark.parametrize("option", ["onecolumn", "twocolumn"])
def test_every_committed_table_fits_the_page(option, tmp_path):
    paths = sorted((ROOT / "results").glob("*/tables/*.tex"))
    assert len(paths) >= 15
    compile_latex("\n\\clearpage\n".join(map(Path.read_text, paths)), tmp_path, option)
    assert faults((tmp_path / "a.log").read_text("latin-1")) == []


@pytest.mark.skipif(not can_compile(), reason="no LaTeX with booktabs on the path")
@pytest.mark.parametrize("columns", [(), ("Model", "acc1", "paper"), ("acc1", "delta", "params_m")])
@pytest.mark.parametrize("option", ["onecolumn", "twocolumn"])
def test_tables_of_several_seeds_fit_the_page(option, columns, tmp_path):
    loaded = [write_study(tmp_path, name, seeds=[0, 1]) for name in study.ARTICLE]
    texts = [latex(build(one, collect(tmp_path, "toy")), columns) for one in loaded]
    compile_latex("\n\\clearpage\n".join(texts), tmp_path, option)
    assert faults((tmp_path / "a.log").read_text("latin-1")) == []
    if columns:
        assert r"\begin{table}" in texts[0], "three columns fit one of two"


def plain_table(folder, name, **options):
    return build(write_study(folder, name, **options), collect(folder, "toy"))


def test_rules_part_groups_of_rows_of_one_reference(tmp_path):
    table = plain_table(tmp_path, "table3")
    groups = [row.reference for row in table.rows]
    assert latex(table).count(r"\midrule") == len(set(groups)) > 1
    mixed = (table.rows[0], *table.rows[2:], table.rows[1])
    assert latex(dataclasses.replace(table, rows=mixed)).count(r"\midrule") == 1
    assert latex(plain_table(tmp_path, "table1")).count(r"\midrule") == 1


def test_the_highest_mean_is_bold_and_a_note_says_so(tmp_path):
    table = plain_table(tmp_path, "table1", seeds=[0, 1])
    best = max(table.rows, key=lambda row: row.accuracy.mean)
    text = latex(table)
    (line,) = [line for line in text.splitlines() if r"\textbf" in line]
    assert line.split(" & ")[0].strip() == best.label
    assert f"\\textbf{{{best.accuracy.mean:.1f}}}" in line
    assert "highest mean" in text
    assert "not a verdict" in text


def test_nothing_is_bold_where_fewer_than_two_rows_have_an_accuracy(tmp_path):
    table = plain_table(tmp_path, "table1")
    for rows in (table.rows[:1], [dataclasses.replace(row, runs=()) for row in table.rows]):
        text = latex(dataclasses.replace(table, rows=tuple(rows)))
        assert "textbf" not in text
        assert "Bold" not in text


def test_columns_are_chosen_by_title_or_by_name_in_the_data(tmp_path):
    write_study(tmp_path, "table3")
    lsa = ["table", "table3", "--results", str(tmp_path)]
    before = {path.name: path.read_text() for path in formats.write_tables(
        [study.load_study("table3")], tmp_path)}  # fmt: skip
    done = CliRunner().invoke(app, [*lsa, "--columns", "acc1,Application"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "toy" / "tables"
    header = "| Model | Acc@1 (%) | Application |"
    assert header in (folder / "table3.md").read_text()
    (row,) = re.findall(r"Swin-T & [^&]* & local window .*", (folder / "table3.tex").read_text())
    assert row.count("&") == 2
    for kind in ("csv", "json"):
        assert (folder / f"table3.{kind}").read_text() == before[f"table3.{kind}"]
    chosen = [*lsa, "--columns", "acc1,Application", "--check"]
    assert CliRunner().invoke(app, chosen).exit_code == 0
    assert CliRunner().invoke(app, [*lsa, "--check"]).exit_code == 1


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path):
    loaded = [write_study(tmp_path, "table3")]
    with pytest.raises(ConfigError, match="--columns acc: no such column; did you mean acc1"):
        formats.write_tables(loaded, tmp_path, ["acc"])
    assert not (tmp_path / "toy" / "tables").exists()


@given(PRINTABLE)
def test_markdown_cells_cannot_break_out(text):
    cell = formats.escape(text)
    assert not re.search(r"(?<!\\)(\\\\)*\|", cell), "an unescaped bar starts a new cell"
    assert not re.search(r"(?<!\\)(\\\\)*<", cell), "an unescaped < starts HTML"


def test_markdown_holds_its_columns_with_nasty_texts(table):
    lines = [line for line in formats.markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 11
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
