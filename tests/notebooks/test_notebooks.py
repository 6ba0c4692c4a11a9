"""Every notebook runs from end to end on the committed results, as in a fresh clone."""

import shutil
import subprocess
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")

ROOT = Path(__file__).resolve().parents[2]
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
SHOWS = {
    "explore_study": ["Comparison of different parameterizations", "table1 net7 (Net7", "verdict"],
    "compare_runs": ["model.op.kind", "ByImage(images=497", "<svg"],
    "attention_maps": ["without q_rk", "without ghost", "Effective area of each head"],
    "own_operator": ["gained", "none", "own"],
}


def shown(cell):
    """What a cell printed or gave."""
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        yield "".join([output.get("text", ""), *map(str, data.values())])


@pytest.mark.parametrize("stem", STEMS)
def test_both_forms_are_the_same_and_hold_no_output(stem):
    text = jupytext.read(ROOT / "notebooks" / f"{stem}.py")
    paired = jupytext.read(ROOT / "notebooks" / f"{stem}.ipynb")
    assert [(cell.cell_type, cell.source) for cell in paired.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ], f"jupytext --sync notebooks/{stem}.py"
    for cell in paired.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("stem", STEMS)
def test_it_runs_from_end_to_end(stem, tmp_path, monkeypatch):
    # A fresh clone: all that is committed of every tier, but no run folders and so no weights.
    listed = subprocess.run(
        ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.*")}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(ROOT / "notebooks" / f"{stem}.ipynb")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    text = "\n".join(part for cell in notebook.cells for part in shown(cell))
    for words in SHOWS[stem]:
        assert words in text
    left = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.*")}
    assert left == before, "notebooks read; they write nothing"


def test_every_notebook_is_known():
    assert set(STEMS) == set(SHOWS)
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(STEMS)
