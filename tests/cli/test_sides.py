"""Every command that reads a study reads a side study by its name."""

import json
import shutil

import pytest
from in_process import answer
from synthetic import write_study

EPOCH = "train.epochs=1"
ABOUT = "side study of table2: train.epochs=1; only net7; seeds 0-1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished runs of table2 itself, and of a side study of one row and two seeds."""
    folder = tmp_path_factory.mktemp("sides")
    write_study(folder / "results", "table2", seeds=[0])
    write_study(folder / "results", "table2", seeds=[0, 1], only="net7", overrides=[EPOCH])
    return folder


@pytest.fixture
def lsa(made, tmp_path, capfd):
    """Runs a command beside a copy of these runs; wants its exit code and gives what it printed."""
    folder = shutil.copytree(made, tmp_path / "copy")

    def run(command, code=0):
        found = answer(folder, command, capfd)
        assert found[0] == code, found
        run.told = found[2]
        return found[1] if code == 0 else found[2]

    run("run table2")
    told = run(f"run table2 --only net7 --set {EPOCH} --seeds 0-1 --as quick")
    assert f"quick is a {ABOUT}" in told
    assert "read it: lsa table quick --tier toy" in told
    run.results = folder / "results" / "toy"
    return run


def test_the_tables_of_both(lsa):
    assert ABOUT in lsa("table quick").replace("\\", "")
    lsa("table table2 --tier toy")
    tables = lsa.results / "tables"
    for kind in ("csv", "tex", "md", "json"):
        mine = (tables / f"quick.{kind}").read_text("utf-8").replace("\\", "")
        assert ABOUT in mine.replace("allowbreak{}", "").replace("\n    ", "")
        assert "side study" not in (tables / f"table2.{kind}").read_text("utf-8")
    data = json.loads((tables / "quick.json").read_text("utf-8"))
    assert (data["study"], data["side_study"], data["overrides"]) == ("table2", "quick", [EPOCH])
    assert [row["acc1"]["n"] for row in data["rows"]] == [2]
    own = json.loads((tables / "table2.json").read_text("utf-8"))
    assert [(row["outcome"], row["acc1"]["n"]) for row in own["rows"]] == [
        ("diverged 1/1", 0), ("done", 1), ("done", 1),
    ]  # fmt: skip
    assert lsa("table quick table2 --check") == "all cells rebuilt\n"


def test_a_reading_command_with_options_writes_beside_the_studys_own(lsa):
    lsa("table table2")
    before = (lsa.results / "tables" / "table2.json").read_bytes()
    lsa(f"table table2 --set {EPOCH} --only net7")
    assert (lsa.results / "tables" / "table2.json").read_bytes() == before
    (other,) = (lsa.results / "tables").glob("table2-*.json")
    assert json.loads(other.read_text("utf-8"))["rows"][0]["acc1"]["n"] == 1


def test_seeds_beyond_the_declared(lsa):
    """They have a name of their own; the study's own table has all that were trained."""
    write_study(lsa.results.parent, "table2", seeds=[1, 2])
    told = lsa("run table2 --seeds 0-2")
    name = told.split(" is a side study")[0]
    assert name.startswith("table2-seeds-0-2-")
    lsa(f"table table2 {name}")
    counts = {
        stem: [row["acc1"]["n"] for row in json.loads(path.read_text("utf-8"))["rows"]]
        for stem in ("table2", name)
        for path in [lsa.results / "tables" / f"{stem}.json"]
    }
    assert counts == {"table2": [0, 3, 3], name: [0, 3, 3]}
    assert json.loads(lsa("status table2 --json"))["runs"][-1]["seed"] == 2


def test_figures_and_the_report_stand_beside_the_studys_own(lsa):
    lsa("plots table2")
    names = {path.name for path in (lsa.results / "plots").iterdir()}
    lsa("plots quick")
    more = {path.name for path in (lsa.results / "plots").iterdir()} - names
    assert {"quick-accuracy.svg", "quick-costs.svg"} <= more
    assert all(name.startswith("quick-") for name in more)
    assert "side study of table2" in (lsa.results / "plots" / "quick-curves.svg").read_text("utf-8")
    lsa("report quick")
    page = (lsa.results / "report-quick.html").read_text("utf-8")
    assert not (lsa.results / "report.html").exists()
    assert page.count(f"About: {ABOUT}") == 3, "with the claims, the table and its notes"
    lsa("report table2 quick")
    assert ABOUT in (lsa.results / "report.html").read_text("utf-8")


def test_verdicts_by_a_side_study(lsa):
    found = json.loads(lsa("claims --json --study table2"))["claims"]
    assert {tuple(claim["overrides"]) for claim in found} == {()}
    mine = json.loads(lsa("claims --json --study quick"))["claims"]
    assert [claim["id"] for claim in mine] == [claim["id"] for claim in found]
    assert {tuple(claim["overrides"]) for claim in mine} == {(ABOUT,)}
    assert ABOUT in lsa("claims --study quick")
    assert ABOUT not in lsa("claims")


def test_where_runs_stand_and_what_can_be_done(lsa):
    assert [run["seed"] for run in json.loads(lsa("status quick --json"))["runs"]] == [0, 1]
    told = lsa("status quick")
    assert told.startswith(f"quick: {ABOUT}\n")
    assert "2 done" in told
    assert "side study" not in lsa("status table2")
    assert lsa("why quick net7").count("\nseed ") == 2
    assert "nothing to do" in lsa("retry quick")
    assert "2 neither queued nor running" in lsa("cancel quick --yes")
    assert lsa("track quick").count("tracking/tensorboard") == 2
    assert "quick: 2 runs begin so; write more: net7-s0-" in lsa("logs quick", code=2)
    assert "2 were done before" in lsa("run quick")


def test_plans_name_side_studies(lsa):
    listed = lsa("plan --list")
    assert f"quick  {ABOUT} (toy)" in listed
    works = [line for line in listed.splitlines() if line.endswith(":")]
    assert [work.partition(" ")[0] for work in works] == ["ELSA:", "Decoupled", "Scaled"]
    blocks = listed.split(works[1])
    assert "  table1 " in blocks[0]
    assert "  ddf_table3 " in blocks[1]
    assert lsa("plan quick").startswith("quick (toy): 1 variants x 2 seeds = 2 runs")
    data = json.loads(lsa("plan quick --json"))
    assert (data["study"], data["side_study"], data["about"]) == ("table2", "quick", ABOUT)
    told = lsa(f"plan table2 --only net7 --set {EPOCH} --set train.lr=0.1")
    assert "rehearse table2 --tier toy --set=train.epochs=1 --set=train.lr=0.1 --only=net7" in told
    assert "qick: no such study or side study; did you mean quick?" in lsa("table qick", code=2)
    assert "Missing argument" in lsa("plan", code=2)


@pytest.mark.parametrize("name", ["quick", "table2", "../x", "x\x1b[2J"])
@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_bad_name_starts_nothing(lsa, command, name):
    before = sorted(path for path in lsa.results.rglob("*"))
    assert "lsa: --as " in lsa(f"{command} table2 --set train.epochs=3 --as {name}", code=2)
    assert sorted(path for path in lsa.results.rglob("*")) == before


def test_a_damaged_memory_is_named_by_every_command(lsa):
    (lsa.results / "studies" / "quick.json").write_text("{")
    for command in ("table table2", "status", "plan table2", "claims", "plots table2", "retry"):
        lsa(command)
        assert "quick.json: is damaged" in lsa.told, command
    assert "quick.json: is damaged" in lsa("table quick", code=2)
    assert "quick.json: is damaged" in (lsa.results / "tables" / "table2.md").read_text("utf-8")
