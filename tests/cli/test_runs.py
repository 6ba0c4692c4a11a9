"""`lsa runs` and `lsa note`: filter, group and sort what has finished; say something of it."""

import json
import os
import pty
import subprocess
import sys

import pytest
from in_process import answer
from synthetic import write_run, write_study

from lsa_study.config import study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_study(folder, "table1", seeds=(0, 1, 2))
    return folder


@pytest.fixture
def lsa(results, capfd):
    def ask(command, code=0):
        found = answer(results.parent, f"{command} --results {results}", capfd)
        assert found[0] == code, found
        return found[1] if code == 0 else found[2]

    return ask


def test_in_a_pipe_it_is_markdown(lsa):
    lines = lsa("runs --columns name,acc1,norm --sort -acc1").splitlines()
    assert lines[0] == "| name | acc1 | model.op.norm |"
    assert lines[1] == "| --- | --- | --- |"
    assert lines[-1] == "24 runs"
    accuracies = [float(line.split("|")[2]) for line in lines[2:-1]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_filter(lsa):
    found = json.loads(lsa("runs table1 --json --where acc1>90.5 --columns variant,seed,acc1"))
    assert found["runs"]
    assert all(run["acc1"] > 90.5 for run in found["runs"])
    assert {*found["runs"][0]} == {"variant", "seed", "acc1"}
    every = json.loads(lsa("runs --json"))["runs"]
    assert {"train.lr", "model.op.terms", "params", "tags"} <= {*every[0]}


def test_groups_have_count_mean_and_deviation(lsa):
    found = json.loads(lsa("runs --json --by variant --columns acc1,norm --sort -acc1"))["groups"]
    assert len(found) == 8
    means = [group["acc1"]["mean"] for group in found]
    assert means == sorted(means, reverse=True)
    assert found[0]["count"] == found[0]["acc1"]["n"] == 3
    assert max(group["acc1"]["sd"] for group in found) > 0
    assert found[0]["model.op.norm"] == "softmax"
    assert "±" in lsa("runs --by variant --sort count")


def test_each_run_shows_the_metrics_of_its_task(tmp_path, capfd):
    def heads(command):
        code, said, _ = answer(tmp_path, f"{command} --results {tmp_path}", capfd)
        assert code == 0
        return [cell.strip() for cell in said.splitlines()[0].split("|")[1:-1]], said

    nothing = {"acc1": None, "acc5": None, "loss": None, "best_acc1": None}
    for run in study.load_study("table9", tier="toy", seeds=[0]).runs()[:2]:
        changes = {"metrics": {"box_ap": 12.5, "mask_ap": 11.0, "box_ap50": 20.0}, **nothing}
        write_run(tmp_path, run, changes=changes)
    judged = ["metrics.box_ap", "metrics.mask_ap"]
    head, said = heads("runs")
    assert head == ["name", "outcome", *judged, "seconds_per_epoch", "tags", "note"]
    assert "| 12.50 | 11.00 |" in said
    assert heads("runs --by outcome")[0] == ["outcome", "count", *judged, "seconds_per_epoch"]
    write_study(tmp_path, "table1", seeds=(0,))
    assert heads("runs")[0][2:5] == ["acc1", *judged]
    assert heads("runs table1")[0][2:4] == ["acc1", "seconds_per_epoch"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("runs --where ac1>1", "--where ac1>1: ac1 is no column; did you mean acc1?"),
        ("runs --by nrom", "--by nrom: nrom is no column; did you mean norm?"),
        ("runs --columns acc1,fo", "--columns acc1,fo: fo is no column"),
        ("runs tabel1", "tabel1: no such study; did you mean table1?"),
        ("runs --tier toi", "--tier toi: no such tier"),
        ("note nonet --tag x", "nonet: no finished run"),
        ("note swin --tag x", "swin: 3 runs begin so; write more: swin-s0-"),
        ("note swin-s0 --tag a/b", "--tag 'a/b': cannot be a tag"),
    ],
)
def test_what_is_wrong_is_named(lsa, results, command, why):
    before = {path for path in results.rglob("*") if path.suffix != ".parquet"}
    assert why in lsa(command, code=2)
    assert {path for path in results.rglob("*") if path.suffix != ".parquet"} == before


def test_tags_and_notes(lsa):
    assert lsa("note swin-s0 net1-s1 --tag good --note look").count("good  look") == 2
    found = json.loads(lsa('runs --json --columns name,tags,note --where tags=="good"'))["runs"]
    assert [run["name"][:7] for run in found] == ["net1-s1", "swin-s0"]
    assert "good, look" in page(lsa)
    assert "good" not in lsa("note swin-s0 net1-s1 --untag good --note=")


def page(lsa):
    path = lsa("report table1").strip()
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["runs", "table table1", "status"])
def test_a_terminal_of_any_width_is_not_passed(results, width, command):
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", *command.split(), "--results", str(results)],
        stdout=follower, env=environment, check=True,
    )  # fmt: skip
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 1 << 16):
            text += part
    except OSError:
        pass
    os.close(leader)
    lines = clean(text.decode()).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b[" in text.decode()
    assert "|" not in lines[3]


def clean(text):
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "")
