"""README.md and docs/: what they show can be typed, and what they name is there."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.main import get_command

from lsa_study import cli
from lsa_study.config import yaml
from lsa_study.config.experiment import StudyFile
from lsa_study.config.layers import validate
from lsa_study.config.schema import study_schema
from lsa_study.config.study import find_study, load_study
from lsa_study.launch.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page.name != "settings.md"]
"""Those that people write."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STUDY = re.compile(r"^study: (\w+)", re.MULTILINE)
LATER = ("launch", "retry", "cancel", "gc", "status")
"""Commands that need a cluster or runs under way."""
SHORT = ["--seeds", "0", "--set", "data.train_limit=64"]
"""What a page's runs are trained with here, and one epoch unless the page says how many."""


def by_name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    found = BLOCK.findall(page.read_text("utf-8"))
    return [text for language, text in found if language in languages]


def commands(page):
    """What the page's blocks have readers type, as lists of arguments."""
    for text in blocks(page, "sh", "console", ""):
        shell = text.startswith(("lsa ", "make ", "python"))
        lines = text.splitlines()
        typed = lines if shell else [line[2:] for line in lines if line.startswith("$ ")]
        yield from (shlex.split(line, comments=True) for line in typed if line)


def options(command):
    return {name for one in command.params for name in one.opts}


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_every_command_of_a_block_parses(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    group = get_command(cli.app)
    for program, *given in commands(page):
        given = given[: given.index(">")] if ">" in given else given
        if program == "make":
            assert set(given) <= targets
        elif program == "lsa":
            name, *rest = given
            group.commands[name].make_context(name, rest)  # raises at a wrong option


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_every_command_of_a_sentence_has_its_options(page):
    prose = BLOCK.sub("", page.read_text("utf-8"))
    group = get_command(cli.app)
    spans = [span.split() for span in re.findall(r"`lsa ([^`]+)`", prose)]
    for name, *rest in spans:
        known = options(group) if name.startswith("-") else options(group.commands[name])
        typed = {one.partition("=")[0] for one in [name, *rest] if one.startswith("-")}
        assert typed <= known | {"--install-completion"}, f"lsa {name} {' '.join(rest)}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_link_and_picture_is_there(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for link in filter(None, (one or other for one, other in links)):
        path, _, part = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        heads = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE) if part else []
        anchors = [re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads]
        assert not part or part in anchors, link


def test_every_page_is_named_on_the_first():
    first = PAGES[0].read_text("utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in first] == []


def test_no_sentence_stands_twice():
    found = {}
    for page in WRITTEN:
        prose = BLOCK.sub("", page.read_text("utf-8"))
        prose = "\n".join(line for line in prose.splitlines() if not line.startswith(("#", "|")))
        for sentence in re.split(r"(?<=[.:;])\s+", " ".join(prose.split())):
            if len(sentence.split()) > 5:
                found.setdefault(sentence, []).append(page.name)
    assert {text: pages for text, pages in found.items() if len(pages) > 1} == {}


# -- what the blocks do -------------------------------------------------------------------------


def test_the_study_on_the_first_page_is_the_shipped_one():
    (text,) = (one for one in blocks(PAGES[0], "yaml") if one.startswith("study:"))
    shipped = find_study("table4").read_text("utf-8")
    bare = [
        [line.split("  #")[0].rstrip() for line in one.splitlines() if not line.startswith("#")]
        for one in (text, shipped)
    ]
    assert bare[0] == bare[1]


def test_the_ranges_on_the_first_page_are_those_of_the_committed_tables():
    """Box AP by framework and mIoU at the toy tier, rounded to whole points."""
    page = " ".join((ROOT / "README.md").read_text("utf-8").split())
    table9, table10 = (
        pd.read_csv(ROOT / f"results/toy/tables/{name}.csv") for name in ("table9", "table10")
    )
    box_ap = table9.groupby("Framework")["box_ap_mean"]
    for found, text in (
        (box_ap.get_group("Mask R-CNN"), "box AP {} to {} with Mask R-CNN"),
        (box_ap.get_group("Cascade Mask R-CNN"), "and {} to {} with its cascade"),
        (table10["miou_mean"], "mIoU {} to {};"),
    ):
        assert text.format(round(found.min()), round(found.max())) in page


def test_the_table_on_the_first_page_is_the_committed_one():
    written = (ROOT / "results/toy/tables/table4.md").read_text("utf-8")
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert "\n".join(table) in PAGES[0].read_text("utf-8")


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_every_yaml_block_is_read(page, tmp_path):
    """As a study, as a part of one, or as a cluster's file."""
    shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments/block.yaml"
    for text in blocks(page, "yaml"):
        path.write_text(text)
        document = yaml.read(path)
        if "study" in document.data:
            assert load_study(path).variants
        elif document.data.keys() <= StudyFile.model_fields.keys() - {"resources"}:
            jsonschema = pytest.importorskip("jsonschema")
            part = {**study_schema(), "required": []}
            jsonschema.Draft202012Validator(part).validate(document.data)
        else:
            validate(Cluster, document.data, document.where)


def typed(folder, paths, *given):
    """Run ``lsa`` in a folder; what it prints may be sent to a file."""
    given, target = (list(given), None) if ">" not in given else (list(given[:-2]), given[-1])
    if given[0] == "run":
        epochs = [] if any("train.epochs" in one for one in given) else ["--set", "train.epochs=1"]
        given += [*SHORT, *epochs]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", *given], cwd=folder, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"lsa {' '.join(given)}\n{done.stdout}{done.stderr}"
    if target:
        (folder / target).write_text(done.stdout)


def save(study, text, folder):
    """Save a block of YAML under its study's name, or add claims to the study before it."""
    if found := STUDY.search(text):
        study = folder / f"{found[1]}.yaml"
        if found[1] != "table4":  # which is there
            study.write_text(text)
    elif text.startswith("claims:"):
        study.write_text(f"{study.read_text()}{text}")
    return study


@pytest.mark.slow
@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_a_page_can_be_followed(page, tmp_path):
    """Its blocks from the top down: YAML is saved, commands run, each block's in the first folder.

    What it would install is put on Python's path.
    """
    study, paths = None, [ROOT, ROOT / "kernels"]
    for tier in ("paper", "toy", "proxy"):
        shutil.copytree(ROOT / "results" / tier, tmp_path / "results" / tier)
    for language, text in BLOCK.findall(page.read_text("utf-8")):
        study = save(study, text, tmp_path) if language == "yaml" else study
        folder, lines = tmp_path, text.splitlines() if language == "sh" else []
        for program, *given in (shlex.split(line, comments=True) for line in lines):
            if program == "cd":
                folder /= given[0]
            elif program == "pip":
                paths.append(folder)
            elif program == "lsa" and given[0] not in LATER and "paper" not in given:
                typed(folder, paths, *given)


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results" / "toy", tmp_path / "results" / "toy")
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in blocks(page, "python"):
        exec(compile(ast.parse(text), page.name, "exec"), names)
    if page.name == "README.md":
        import torch

        parameters = sum(one.numel() for one in names["model"].parameters())
        said = float(re.search(r"# ([\d.]+) M parameters", page.read_text("utf-8"))[1])
        assert round(parameters / 1e6, 1) == said
        x = torch.zeros(1, 8, 8, 96)
        assert names["layer"](x).shape == names["net7_n"](x).shape == x.shape


def test_a_wrong_option_would_be_seen():
    with pytest.raises(typer._click.exceptions.NoSuchOption):
        get_command(cli.app).commands["plan"].make_context("plan", ["table1", "--tiers", "toy"])
