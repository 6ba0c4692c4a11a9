"""The arrows of the imports: every contract of import-linter fails on a wrong import.

``make check`` holds the tree to the contracts; here each of them meets a planted import.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")

PLANTED = [
    ("data flows one way", "lsa_study/training/run.py", "import lsa_study.launch.local"),
    ("data flows one way", "lsa_study/config/settings.py", "import lsa_study.rundir"),
    ("data flows one way", "lsa_study/data/sets.py", "import lsa_study.models.swin"),
    ("data flows one way", "lsa_study/launch/plan.py", "import lsa_study.analysis.collect"),
    ("the run folder is all", "lsa_study/analysis/rows.py", "import lsa_study.data"),
    ("the run folder is all", "lsa_study/analysis/html.py", "import lsa_study.measure"),
    ("training knows neither", "lsa_study/training/run.py", "import lsa_study.config.contrast"),
    ("training knows neither", "lsa_study/training/step.py", "import submitit"),
    ("operators know no configs", "lsa_study/ops/elsa.py", "import lsa_study.config.settings"),
    ("kernels are a leaf", "kernels/lsa_kernels/filters.py", "import lsa_study.errors"),
]


def broken(tree):
    """The contracts that a tree breaks, as the linter names them."""
    done = subprocess.run(
        [LINTER, "--no-cache"], cwd=tree, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{tree}:{tree / 'kernels'}"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = [line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")]
    assert done.returncode == bool(found), done.stdout + done.stderr
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the packages with their contracts."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("lsa_study", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__", "csrc")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_tree_keeps_every_contract(tree):
    assert broken(tree) == []


@pytest.mark.parametrize(("contract", "file", "line"), PLANTED, ids=lambda text: text[:40])
def test_a_wrong_import_breaks_its_contract(tree, contract, file, line):
    path = tree / file
    before = path.read_text("utf-8")
    try:
        path.write_text(f"{before}\n\n{line}\n", "utf-8")
        assert any(name.startswith(contract) for name in broken(tree))
    finally:
        path.write_text(before, "utf-8")
