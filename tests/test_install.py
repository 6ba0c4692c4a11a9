"""What is installed: a wheel that needs no checkout, and what it says of itself."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lsa_study
from lsa_study.config.shipped import FILES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OTHER_NAMES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
FROM_OTHERS = {"triton": "torch", "markupsafe": "jinja2", "pydantic_core": "pydantic"}
"""Imported packages that another one brings along."""
PACKAGES = sysconfig.get_path("purelib")


def run(*command, folder, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LSA_DATA")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False,
        env=environment | options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel alone; the packages it needs are those of this one."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", folder, ROOT, folder=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", *offline, wheel, folder=folder)
    where = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder
    )
    Path(where.strip(), "others.pth").write_text(f"{PACKAGES}\n")
    return folder / "venv" / "bin"


@pytest.mark.slow
@pytest.mark.real_process
def test_a_wheel_does_without_a_checkout(installed, tmp_path):
    def lsa(*arguments):
        return run(installed / "lsa", *arguments, folder=tmp_path)

    where = run(installed / "python", "-c", "import lsa_study; print(lsa_study.__file__)",
                folder=tmp_path)  # fmt: skip
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "8 variants x 1 seed = 8 runs" in lsa("plan", "table1")
    one_epoch = ("--set", "train.epochs=1", "--set", "data.train_limit=64")
    assert "3 done" in lsa("run", "table2", *one_epoch)
    assert "81.8" in lsa("table", "table2")
    assert "ghost" in lsa("claims")
    assert (tmp_path / "results/toy/tables/table2.csv").exists()
    wanted = {path.relative_to(ROOT) for pattern in FILES for path in ROOT.glob(pattern)}
    assert f"{len(wanted)} files" in lsa("init", "mine")
    mine = tmp_path / "mine"
    found = {path.relative_to(mine) for path in mine.rglob("*") if path.is_file()}
    assert found == wanted


# -- what the package says of itself ------------------------------------------------------------


def test_one_version():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert lsa_study.__version__ == PROJECT["version"] == cited[1]
    assert metadata.version("lsa_study") == lsa_study.__version__


def imported():
    """Names of other packages that the package imports, wherever in a file."""
    for path in [*ROOT.glob("lsa_study/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_what_is_imported_is_declared():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    lines = [line for group in groups for line in group]
    declared = {re.split(r"[>=<\[;]", line)[0].replace("-", "_") for line in lines}
    others = set(imported()) - sys.stdlib_module_names - {"lsa_study", "lsa_kernels"}
    names = {OTHER_NAMES.get(name, FROM_OTHERS.get(name, name)) for name in others}
    assert {name.replace("-", "_") for name in names} <= declared


def test_every_dependency_has_a_least_version():
    assert [line for line in PROJECT["dependencies"] if ">=" not in line] == []


HEAVY = ("pandas", "pyarrow", "submitit", "sklearn", "scipy", "matplotlib", "typer", "rich",
         "jinja2", "simplejpeg")  # fmt: skip
ALONE = f"""
import sys
sys.modules |= dict.fromkeys({HEAVY})
import torch
from lsa_study import ops
from lsa_study.models import build_model
from lsa_study.ops import functional
assert ops.ELSA(8, 2)(torch.zeros(1, 4, 4, 8)).shape == (1, 4, 4, 8)
ops.OutlookAttention(8, 2)
"""


@pytest.mark.real_process
def test_operators_need_neither_tables_nor_schedulers():
    """In another project that has torch and timm they are imported alone."""
    subprocess.run([sys.executable, "-c", ALONE], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_shell_is_given_completions():
    asked = {"_LSA_COMPLETE": "complete_bash", "COMP_WORDS": "lsa pl", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'lsa'; from lsa_study.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.stdout.split() == ["plan", "plots"]
