"""A side study has a name of its own, and the study's own table stands."""

import json
import shutil

import pytest
from synthetic import write_run

from lsa_study.cli.options import Selection
from lsa_study.config import study
from lsa_study.config.remember import named, remember
from lsa_study.errors import ConfigError


def ask(results, alias=None, name="table1", **how):
    """Ask as ``lsa run`` does; gives the name."""
    (loaded,) = Selection([name], "toy", results=results, **how).load(alias=alias)
    remember(results, [loaded])
    return loaded.name


def read(results, name="table1", **how):
    """Load as ``lsa table`` does."""
    (loaded,) = Selection([name], "toy", results=results, **how).load(recall=True)
    return loaded


def test_the_studys_own_table_stands(tmp_path):
    ask(tmp_path)
    name = ask(tmp_path, overrides=["train.epochs=1"], only="net1")
    assert read(tmp_path).runs() == study.load_study("table1").runs()
    assert read(tmp_path).about == ""
    side = read(tmp_path, name)
    assert (side.name, list(side.variants)) == (name, ["net1"])
    assert side.variants["net1"].train.epochs == 1
    assert side.about == "side study of table1: train.epochs=1; only net1; seeds 0"


def test_what_is_remembered_is_read_though_it_would_be_refused_now(tmp_path):
    """As was possible: one row of a grid, with its value set again."""
    name = ask(tmp_path, grid=["train.lr=0.01,0.02"], only="swin_lr-0.01")
    path = tmp_path / "toy" / "studies" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overrides": ["train.lr=0.01"]}))
    assert list(read(tmp_path, name).variants) == ["swin_lr-0.01"]
    with pytest.raises(ConfigError, match=r"--set train\.lr=0\.01: train\.lr makes the rows"):
        read(tmp_path, name, overrides=["train.lr=0.01"])


def test_only_side_studies_asked_for(tmp_path):
    ask(tmp_path, overrides=["train.epochs=1"], seeds="0-1")
    own = read(tmp_path)
    assert (own.name, own.overrides, own.seeds) == ("table1", ("train.epochs=1",), (0, 1))
    assert own.about == "table1 as it was asked for here: train.epochs=1; seeds 0-1"
    ask(tmp_path, overrides=["train.epochs=2"])
    assert read(tmp_path).overrides == ()


@pytest.mark.parametrize("folders", [True, False])
def test_runs_from_before_anything_was_remembered(tmp_path, folders):
    """A side study must not take over the table of runs that are there."""
    from lsa_study.analysis.collect import collect

    ask(tmp_path, overrides=["train.epochs=1"])
    write_run(tmp_path, study.load_study("table1", seeds=[3]).runs()[2])
    if not folders:
        collect(tmp_path, "toy", update=True)
        shutil.rmtree(tmp_path / "toy" / "runs")
    assert read(tmp_path).overrides == ()


def test_other_seeds_are_a_side_study_and_the_table_has_them_all(tmp_path):
    name = ask(tmp_path, seeds="0-9")
    assert name.startswith("table1-seeds-0-9-")
    assert (read(tmp_path).name, read(tmp_path).seeds) == ("table1", tuple(range(10)))
    assert ask(tmp_path, seeds="0") == "table1"
    assert ask(tmp_path, seeds="3,5", overrides=["train.epochs=1"]).startswith("table1-epochs-1-s")
    assert read(tmp_path).seeds == tuple(range(10))
    assert read(tmp_path).declared == (0,)
    assert read(tmp_path, name).seeds == tuple(range(10))
    for asked in ("table1", name):
        fewer = read(tmp_path, asked, seeds="2-4")
        assert (fewer.name, fewer.seeds) == (asked, tuple(range(10))), "its table stays whole"
    assert ask(tmp_path, only="*") == "table1", "all rows are the study itself"


def test_seeds_that_a_study_declares(tmp_path):
    path = tmp_path / "five.yaml"
    text = (
        study.find_study("table2")
        .read_text("utf-8")
        .replace("../", f"{study.find_study('table2').parents[1]}/")
    )
    path.write_text(text.replace("study: table2", "study: five\nseeds: [0, 1, 2, 3, 4]"))
    loaded = study.load_study(path)
    assert loaded.seeds == loaded.declared == (0, 1, 2, 3, 4)
    results = tmp_path / "results"
    assert ask(results, name=str(path), seeds="2-3") == "five"
    assert ask(results, name=str(path), seeds="2-5").startswith("five-seeds-2-5-")
    path.write_text(text.replace("study: table2", "study: five\nseeds: [0, 1]"))
    assert study.load_study(path).declared == (0, 1)
    assert read(results, str(path)).declared == (0, 1, 2, 3, 4), "as when it was first asked for"
    elsewhere = tmp_path / "elsewhere"
    assert ask(elsewhere, name=str(path), seeds="0-3").startswith("five-seeds-0-3-")
    path.write_text(text.replace("study: table2", "study: five\nseeds: [0, 1, 2, 3]"))
    assert read(elsewhere, str(path)).declared == (0, 1), "as when its side study was asked for"
    for wrong in ("[-1]", "[a]", "3"):
        path.write_text(text.replace("study: table2", f"study: five\nseeds: {wrong}"))
        with pytest.raises(ConfigError, match=r"five.yaml:"):
            study.load_study(path)


def test_spaces_and_parts_that_match_in_one_study_alone(tmp_path):
    chosen = Selection(["table1", "table4"], results=tmp_path, only="net1, elsa")
    assert [list(one.variants) for one in chosen.load()] == [["net1"], ["elsa"]]


def test_what_changes_no_run_makes_no_side_study(tmp_path):
    asked = ask(tmp_path, overrides=["data.root=/nowhere", "runtime.device=cpu"])
    assert (asked, read(tmp_path).about) == ("table1", "")
    one = ask(tmp_path, overrides=["runtime.workers=3", "train.epochs=1", "data.train_limit=64"])
    assert ask(tmp_path, overrides=["data.train_limit=64", "train.epochs=1"]) == one


def test_an_override_inside_another_keeps_its_place(tmp_path):
    whole = "model.op={kind: unified, terms: [qk], norm: softmax, application: window, size: 4}"
    name = ask(tmp_path, overrides=[whole, "model.op.size=8"], only="swin")
    assert read(tmp_path, name).variants["swin"].model.op.size == 8


def test_a_side_study_is_asked_for_again_by_its_name(tmp_path):
    name = ask(tmp_path, "short", overrides=["train.epochs=1"], only="net1")
    assert ask(tmp_path, name=name) == name
    assert ask(tmp_path, "short", overrides=["train.epochs=1"], only="net1", seeds="3") == name
    assert read(tmp_path, name).seeds == (0, 3)
    more = ask(tmp_path, name=name, overrides=["train.lr=0.1"])
    assert more != name
    assert read(tmp_path, more).overrides == ("train.epochs=1", "train.lr=0.1")


@pytest.mark.parametrize(
    "alias",
    ["table1", "table8", "all", "../up", "a/b", "", ".", "-x", "x\x1b[31m", "x\n", "é", "x" * 61],
)
def test_names_that_cannot_be(tmp_path, alias):
    with pytest.raises(ConfigError, match=r"^--as ") as error:
        ask(tmp_path, alias, overrides=["train.epochs=1"])
    assert "\x1b" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recall", [True, False])
def test_a_shipped_study_keeps_its_name(tmp_path, monkeypatch, recall):
    """A file of that name would take over its table; a copy and a side study do not."""
    shipped, path, results = (
        study.find_study("table2").resolve(),
        tmp_path / "mine.yaml",
        tmp_path / "r",
    )
    text = shipped.read_text("utf-8").replace("../", f"{shipped.parents[1]}/")
    path.write_text(text)

    def load(name, alias=None):
        return Selection([str(name)], "toy", results=results).load(recall=recall, alias=alias)[0]

    assert load(path).name == "table2", "nobody asked for the shipped one here"
    remember(results, [load("table2")])
    with pytest.raises(
        ConfigError, match=r"mine.yaml: the study table2 of .* is another file, .*table2.yaml; give"
    ):
        load(path)
    remember(results, [load(path, "copy")])
    assert load("table2").document.path.samefile(shipped)
    assert load("copy").document.path.samefile(path)
    path.write_bytes(shipped.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert load(shipped).name == load(path).name == "table2"
    path.write_text(text.replace("study: table2", "study: claims"))
    with pytest.raises(ConfigError, match=r"study: claims: means something else to lsa; give"):
        load(path)


def test_two_files_of_one_name_in_one_call(tmp_path):
    shipped = study.find_study("table2")
    text = shipped.read_text("utf-8").replace("../", f"{shipped.parents[1]}/")
    paths = [tmp_path / "one.yaml", tmp_path / "other.yaml"]
    for path in paths:
        path.write_text(text.replace("study: table2", "study: mine"))
    chosen = Selection([*map(str, paths)], results=tmp_path)
    with pytest.raises(
        ConfigError, match=r"other.yaml: is named as .*one.yaml is; give it another name"
    ):
        chosen.load()


def test_a_name_that_is_taken_is_refused(tmp_path):
    assert ask(tmp_path, "short", overrides=["train.epochs=1"]) == "short"
    before = sorted(tmp_path.rglob("*.json"))
    with pytest.raises(ConfigError, match="--as short: is the name of something else"):
        ask(tmp_path, "short", overrides=["train.epochs=2"])
    with pytest.raises(ConfigError, match="--as short: 2 studies"):
        Selection(["table1", "table2"], results=tmp_path).load(alias="short")
    assert sorted(tmp_path.rglob("*.json")) == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"seeds": [-1], "study": "table1"}', '{"overrides": "x"}', "\x00\xff",
     '{"seeds": ["a"]}', '{"only": 3}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_memory_is_named(tmp_path, content):
    ask(tmp_path, seeds="0-3")
    ask(tmp_path, "short", overrides=["train.epochs=1"])
    for name in ("table1", "short"):
        (tmp_path / "toy" / "studies" / f"{name}.json").write_text(content)
    own = read(tmp_path)
    assert [line.split(": ")[0].split("/")[-1] for line in own.asked.broken] == [
        "short.json", "table1.json",
    ]  # fmt: skip
    assert own.seeds == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match=r"short.json: is damaged"):
        read(tmp_path, "short")
    with pytest.raises(ConfigError, match=r"short.json: is damaged"):
        ask(tmp_path, "short", overrides=["train.epochs=1"])


def test_a_study_given_by_path_is_found_after_a_move(tmp_path):
    here = tmp_path / "project"
    here.mkdir()
    text = study.find_study("table2").read_text("utf-8")
    root = study.find_study("table2").parents[1]
    (here / "own.yaml").write_text(text.replace("../", f"{root}/").replace("table2", "own", 1))
    name = ask(here / "results", name=str(here / "own.yaml"), only="net7")
    there = here.rename(tmp_path / "moved")
    assert list(read(there / "results", name).variants) == ["net7"]
    (there / "own.yaml").unlink()
    with pytest.raises(ConfigError, match=f"{name}.json: its study's file .*own.yaml is gone"):
        read(there / "results", name)


def test_a_side_study_is_found_at_its_own_tier(tmp_path):
    def load(tier, alias=None, recall=False, **how):
        chosen = Selection(["mine" if recall else "table1"], tier, results=tmp_path, **how)
        (found,) = chosen.load(recall=recall, alias=alias)
        return found

    remember(tmp_path, [load("proxy", "mine", overrides=["train.epochs=1"])])
    assert load(None, recall=True).tier == "proxy"
    with pytest.raises(ConfigError, match="mine: is a side study of tier proxy; give --tier proxy"):
        load("toy", recall=True)
    remember(tmp_path, [load("toy", "mine", overrides=["train.epochs=1"])])
    with pytest.raises(ConfigError, match="mine: is at tiers toy, proxy; choose one with --tier"):
        load(None, recall=True)


def test_a_memory_of_an_older_version(tmp_path):
    """It kept the last overrides as the study's own."""
    path = tmp_path / "toy" / "studies" / "table1.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"overrides": ["train.epochs=1"], "seeds": [0, 1]}))
    assert (read(tmp_path).overrides, read(tmp_path).seeds) == (("train.epochs=1",), (0, 1))
    ask(tmp_path)
    assert (read(tmp_path).overrides, read(tmp_path).seeds) == ((), (0,))


def test_a_side_study_that_makes_other_rows_alike_rules_no_table(tmp_path):
    """Asked for one row, it fits; the study's own table stands without it."""
    how = {"tier": "toy", "recall": tmp_path}
    alike = ["task.framework=cascade_mask_rcnn"]
    side = study.load_study("table9", only="mask_swin_t_1x", overrides=alike, **how)
    remember(tmp_path, [named(side, tmp_path, "fw")])
    assert not study.load_study("table9", **how).overrides
    assert study.load_study("fw", **how).overrides == ("task.framework=cascade_mask_rcnn",)


def test_rows_of_another_task_stand_beside_no_number_of_the_article():
    other = ["task={kind: segment, size: micro}"]
    assert study.load_study("table9", only="mask_swin_t_1x").file.article is not None
    crossed = study.load_study("table9", only="mask_swin_t_1x", overrides=other)
    assert crossed.file.article is None
    assert crossed.metrics == ("miou",)
