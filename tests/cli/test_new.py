"""`lsa new`: what it writes works as written, and nothing of anybody's is overwritten."""

import itertools
import os
import subprocess
import sys

import pytest
from in_process import answer
from outsiders import ROOT

from lsa_study.config.experiment import StudyFile

NUMBERS = itertools.count()
KINDS = ("operator", "study", "dataset", "metric")


@pytest.fixture(params=KINDS)
def written(request, tmp_path, capfd):
    """The kind and the folder of what was begun."""
    name = f"begun{next(NUMBERS)}_{request.param[:2]}"
    code, out, err = answer(tmp_path, f"new {request.param} {name}", capfd)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"Next: cd {name} && ")
    study = tmp_path / name / "study.yaml"
    if StudyFile.model_fields["article"].is_required():
        csv = ROOT / "results/paper/table1.csv"
        study.write_text(f"{study.read_text()}article: {{csv: {csv}, source: none}}\n")
    return request.param, tmp_path / name


def python(folder, *words):
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


@pytest.mark.slow
def test_its_own_tests_pass_and_its_study_runs(written):
    kind, folder = written
    ended = python(folder, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # As written but for the size.
    small = ["--set", "data.train_limit=64", "--set", "train.epochs=1", "--as", "small"]
    ended = python(folder, "lsa_study.cli", "run", "study.yaml", *small)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shown = python(folder, "lsa_study.cli", "table", "small")
    assert shown.returncode == 0, shown.stderr
    assert kind != "metric" or f"| {folder.name} |" in shown.stdout.replace("\\", "")


def test_its_study_is_sound_as_written(written):
    _, folder = written
    ended = python(folder, "lsa_study.cli", "plan", "study.yaml")
    assert ended.returncode == 0, ended.stderr
    assert "contrast  ok" in ended.stdout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Two-words", "cannot be its name; give 2 to 40 small letters"),
        ("../out", "cannot be its name"),
        ("class", "cannot be its name"),
        ("taken", "is there already; give another name, or --folder"),
    ],
)
def test_names_that_cannot_be(tmp_path, capfd, kind, name, said):
    mine = tmp_path / "taken/study.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    code, out, err = answer(tmp_path, f"new {kind} {name}", capfd)
    assert (code, out) == (2, "")
    assert said in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_package_may_not_hide_another(tmp_path, capfd):
    code, out, err = answer(tmp_path, "new operator torch", capfd)
    assert (code, out, [*tmp_path.iterdir()]) == (2, "", [])
    assert "there is a package torch that it would hide" in err


def test_the_folder_can_be_chosen(tmp_path, capfd):
    code, _, err = answer(tmp_path, "new metric sharpness --folder deep/here", capfd)
    assert (code, err) == (0, "")
    assert (tmp_path / "deep/here/sharpness/metrics.py").is_file()
    assert (tmp_path / "deep/here/tests/test_sharpness.py").is_file()
