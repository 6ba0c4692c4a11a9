"""What comes with the package is found anywhere; what lies in the working directory comes first."""

import pytest
from typer.testing import CliRunner

import lsa_study
from lsa_study import cli
from lsa_study.config import shipped, study
from lsa_study.errors import ConfigError, Refused


def test_the_command_names_the_version():
    found = CliRunner().invoke(cli.app, ["--version"])
    assert (found.exit_code, found.stdout) == (0, f"lsa_study {lsa_study.__version__}\n")


def test_studies_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study.load_study("table1").file.title == "Comparison of different parameterizations"


def test_a_folder_of_that_name_hides_nothing(tmp_path, monkeypatch):
    """Other projects have experiments too; a study there needs no tiers and presets beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "results").mkdir()
    text = study.find_study("table2").read_text("utf-8")
    (tmp_path / "experiments" / "mine.yaml").write_text(
        text.replace("study: table2", "study: mine")
    )
    assert study.load_study("mine").name == "mine"
    assert study.load_study("table1").name == "table1"
    assert shipped.find("experiments/claims.yaml").is_relative_to(shipped.ROOT)
    with pytest.raises(ConfigError, match="mine, stem, table1"):
        study.find_study("nothing-like-it")


def test_a_copy_is_found_first_and_can_be_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = shipped.copy_to(tmp_path)
    assert tmp_path / "experiments/base/toy.yaml" in written
    assert tmp_path / "results/paper/table1.csv" in written
    path = tmp_path / "experiments" / "table1.yaml"
    path.write_text(path.read_text("utf-8").replace("title: Comp", "title: My comp"))
    assert study.load_study("table1").file.title.startswith("My comp")


def test_a_copy_replaces_nothing(tmp_path):
    shipped.copy_to(tmp_path)
    assert shipped.copy_to(tmp_path) == []
    (tmp_path / "experiments/table1.yaml").write_text("mine")
    (tmp_path / "experiments/table2.yaml").write_text("mine")
    (tmp_path / "results/paper/table1.csv").unlink()
    with pytest.raises(
        Refused, match=r"table1\.yaml and 1 more: changed since it was copied; give"
    ):
        shipped.copy_to(tmp_path)
    assert not (tmp_path / "results/paper/table1.csv").exists()
    (tmp_path / "experiments/table1.yaml").unlink()
    (tmp_path / "experiments/table2.yaml").unlink()
    assert len(shipped.copy_to(tmp_path)) == 3
