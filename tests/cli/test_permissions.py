"""What may not be read or written, or is of another kind, ends with a line and exit code 3."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from in_process import answer
from synthetic import write_study

from lsa_study.config import study
from lsa_study.config.remember import remember
from lsa_study.errors import EnvironmentLacks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    remember(folder, [write_study(folder, "table4", seeds=[0])])
    return folder


@pytest.fixture
def results(made, tmp_path):
    return shutil.copytree(made, tmp_path / "r")


os_listdir, os_scandir = os.listdir, os.scandir


@pytest.fixture
def lock(monkeypatch):
    """Refuse what ``chmod 000`` of a folder refuses to all but root."""

    def refuse(folder):
        for plain in (os.stat, os.lstat, os.open, os.mkdir, os.listdir, os.scandir):

            def guarded(path, *given, plain=plain, **how):
                place = Path.cwd() / path if isinstance(path, str | Path) else Path()
                listed = plain in (os_listdir, os_scandir) and place == folder
                if listed or folder in place.parents:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return plain(path, *given, **how)

            monkeypatch.setattr(os, plain.__name__, guarded)

    return refuse


@pytest.mark.parametrize("command", ["status", "table table4", "plan table4", "runs", "run table4"])
@pytest.mark.parametrize("place", ["toy", "toy/runs"])
def test_runs_that_may_not_be_read(results, lock, capfd, place, command):
    lock(results / place)
    code, _, said = answer(results, f"{command} --results {results}", capfd)
    assert code == 3, said
    last = said.splitlines()[-1]
    assert last.startswith(f"lsa: {results}/toy/")
    assert ": cannot be read (Permission denied); see what it is" in last


def test_what_was_asked_for_may_not_be_read_and_is_not_called_damaged(results, lock, capfd):
    folder = results / "toy" / "studies"
    lock(folder)
    code, _, said = answer(results, f"table table4 --results {results}", capfd)
    assert code == 0, said
    assert said == f"lsa: {folder}: cannot be read (Permission denied); see what it is, and whose\n"
    with pytest.raises(EnvironmentLacks, match=r"table4\.json: cannot be read"):
        remember(results, [study.load_study("table4", seeds=[0])])


@pytest.mark.parametrize(
    "command",
    ["plan locked/x.yaml", "new operator foo --folder locked/foo", "status --results locked/r"],
)
def test_paths_behind_a_folder_that_may_not_be_read(tmp_path, lock, capfd, command):
    (tmp_path / "locked").mkdir()
    lock(tmp_path / "locked")
    code, out, said = answer(tmp_path, command, capfd)
    assert (code, out) == (3, ""), said
    assert "cannot be read (Permission denied)" in said.splitlines()[-1]


@pytest.mark.parametrize("command", ["table", "plots"])
def test_a_results_folder_that_cannot_be_written(tmp_path, results, capfd, command):
    (tmp_path / "file").write_text("in the way")
    code, _, said = answer(tmp_path, f"{command} table4 --results {tmp_path}/file/results", capfd)
    assert (code, "cannot be written (Not a directory)" in said) == (3, True), said
    (results / "toy" / {"table": "tables"}.get(command, command)).write_text("in the way")
    code, _, said = answer(tmp_path, f"{command} table4 --results {results}", capfd)
    assert (code, "cannot be written (" in said) == (3, True), said
