"""A study of one's own: no article in any output, its own claims, known by its name once it ran."""

import csv
import json
import re
import shutil

import pytest
import yaml
from in_process import answer
from synthetic import write_study

from lsa_study.analysis import claims
from lsa_study.analysis.html import write_report
from lsa_study.cli.options import Selection

OWN = """\
study: ksize
factor: [model.op.size]
baseline: k3
set:
  model.op: {kind: unified, terms: [qk, bias], norm: softmax, application: neighboring}
variants:
  k3: {set: {model.op.size: 3}}
  k5: {set: {model.op.size: 5}}
  k7: {set: {model.op.size: 7}}
claims:
  - {id: more, text: A larger area is better., rows: [k7, k3], relation: above}
  - {id: near, text: It costs little., rows: [k7, k3], relation: within, metric: macs, margin: 99}
"""
COMMANDS = (
    "why ksize k7", "diff ksize/k3 ksize/k7", "table ksize", "plots ksize", "report ksize",
    "retry ksize", "claims --study ksize", "status ksize", "cancel ksize", "plan ksize",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished runs of an own study at the proxy tier, asked for by its path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(OWN)
    write_study(folder / "results", str(folder / "own.yaml"), tier="proxy", seeds=range(3))
    return folder


@pytest.fixture
def lab(made, tmp_path):
    return shutil.copytree(made, tmp_path / "lab")


@pytest.fixture
def lsa(lab, capfd):
    """Runs a command in the lab; wants its exit code, gives what it printed."""

    def run(command, code=0, here=lab):
        found = answer(here, command, capfd)
        assert found[0] == code, found
        return found[1] if code == 0 else found[2]

    run("run own.yaml --tier proxy --seeds 0-2 --as three")
    return run


def written(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_study_is_known_by_its_name_wherever_one_stands(lsa, lab, command):
    (lab / "deeper").mkdir()
    tier = "" if command.split()[0] in ("retry", "cancel", "status", "diff") else " --tier proxy"
    by_name = lsa(f"{command}{tier} --results ../results", here=lab / "deeper")
    by_path = lsa(f"{command.replace('ksize', '../own.yaml')}{tier} --results ../results",
                  here=lab / "deeper")  # fmt: skip
    assert by_name.replace(f"{lab}/", "../") == by_path.replace(f"{lab}/", "../")


def test_no_output_says_article(lsa, lab):
    told = [lsa(f"{one} --tier proxy") for one in COMMANDS]
    told.append(lsa("claims --study ksize --tier proxy --json"))
    told.append(lsa("why ksize k7 --tier proxy --json"))
    texts = dict(enumerate(told))
    for folder in ("tables", "plots", "report.html"):
        place = lab / "results" / "proxy" / folder
        paths = [place] if place.is_file() else [*place.iterdir()]
        texts |= {path: path.read_text("utf-8") for path in paths if path.suffix != ".png"}
    assert len(texts) > 20
    for place, text in texts.items():
        assert not re.search(r"article|printed in|never a reproduction|Table 1\b", text, re.I), (
            place
        )
        assert "net7" not in text, place
    data = json.loads(texts[lab / "results/proxy/tables/ksize.json"])
    assert "source" not in data
    assert [name for name in data["columns"] if "paper" in name] == []
    assert {name for row in data["rows"] for name in row if "paper" in name} == {"paper"}
    header = next(csv.reader(texts[lab / "results/proxy/tables/ksize.csv"].splitlines()))
    assert [name for name in header if "paper" in name] == []
    assert [row["acc1"]["n"] for row in data["rows"]] == [3, 3, 3]
    assert "| Δ |" in texts[lab / "results/proxy/tables/ksize.md"]


def test_a_single_row_has_no_reference(lsa, lab):
    one = yaml.safe_load(OWN) | {"study": "one", "claims": []}
    one["variants"] = {"k3": one["variants"]["k3"]}
    (lab / "one.yaml").write_text(yaml.safe_dump(one))
    lsa("table one.yaml --tier proxy")
    text = (lab / "results/proxy/tables/one.md").read_text("utf-8")
    assert "| Model | Acc@1 (%) | n | Params" in text
    assert "reference" not in text.lower()
    assert "Δ:" not in text.split("Acc@1: ")[0]
    assert "--study one: has no claims" in lsa("claims --study one.yaml --tier proxy", code=2)


def test_own_claims_are_a_family_of_their_own(lsa, lab, capfd):
    own = json.loads(lsa("claims --study ksize --tier proxy --json"))
    more, near = own["claims"]
    assert (more["id"], more["rows"], more["n"]) == ("more", ["ksize/k7", "ksize/k3"], 3)
    assert more["adjusted"] == more["p"], "one claim of two is tested"
    assert (near["verdict"], near["method"]) == ("supported", "as the runs counted it")
    assert "margins" not in own
    write_study(lab / "results", "table2", tier="proxy", seeds=range(3))
    results = lab / "results"
    asked = Selection(["table2", str(lab / "own.yaml")], "proxy", results=results)
    both = asked.load(recall=True)
    write_report(both, results)
    page = (lab / "results/proxy/report.html").read_text("utf-8")
    assert "<h1>What limits local self-attention?</h1>" in page
    assert page.index('id="claims"') < page.index('id="ksize-claims"') < page.index('id="table2"')
    assert 'id="claim-ksize-more"' in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len({*ids})
    found = [[*claims.families(claims.judge_studies([one], results))] for one in both]
    assert found == [[""], ["ksize"]], "the article's alone, or its own alone"
    *_, told = answer(lab.parent, "claims --tier proxy --results lab/results", capfd)
    assert "own: lsa claims --study ksize --tier proxy --results lab/results\n" in told
    article = json.loads(lsa("claims --tier proxy --json"))
    assert len(article["claims"]) > 90, "the article's alone"
    assert lsa("claims --study three --tier proxy").startswith("Claims of three\n")


def test_claims_of_a_file(lsa, lab):
    text = "claims:\n  - {id: a, text: Five is more., rows: [k5, k3], relation: above}\n"
    (lab / "mine.yaml").write_text(text)
    (found,) = json.loads(lsa("claims --file mine.yaml --study ksize --tier proxy --json"))[
        "claims"
    ]
    assert (found["id"], found["n"]) == ("a", 3)
    assert "mine.yaml:2: " in lsa("claims --file mine.yaml --tier proxy", code=2)
    (lab / "mine.yaml").write_text(text.replace("k5, k3", "ksize/k5, own/k3"))
    (found,) = json.loads(lsa("claims --file mine.yaml --tier proxy --json"))["claims"]
    assert found["n"] == 3, "by its name, or by its file beside that of the claims"
    (lab / "README").write_text("a file that is no study\n")
    assert "README: no such study" in lsa("plan README", code=2)
    told = lsa("claims --file own.yaml", code=2)
    assert "own.yaml: is a study, not a file of claims; for its own: lsa claims --study" in told


def change(**changes):
    """The study with claims of this kind."""
    return {"claims": [{"id": "c", "text": "It is.", "relation": "above", "rows": ["k7", "k3"]}
                       | changes]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (change(rows=["k7", "k33"]), "claim c: 'k33' is not a variant; did you mean k3?"),
        (change(rows=["ksize/k9", "k3"]), "claim c: 'k9' is not a variant; known: k3, k5, k7"),
        (change(rows=["k7", "table1/swim"]), "'swim' is not a variant of table1; did you"),
        (change(rows=["k7", "tabel1/swin"]), "tabel1: no such study; did you mean table1?"),
        (change(rows=["k7", "table1/net7"], besides=["model.op.terms"]), "never compared"),
        (change(rows=["k7", "a/b/c"]), "write a row of this study, or study/variant"),
        (change(metric="box_ap"), "no run records it, so nothing could judge the claim; give acc1"),
        (change(metric="inference"), "nothing could judge it: inference is timed by lsa bench"),
        (change(tiers=["paper"]), "nothing could judge it: it has a meaning at tier paper"),
        (change(source=3), "claims.0.source = 3"),
        ({"claims": change()["claims"] * 2}, "id c stands twice"),
        ({"baseline": "table1/swin"}, "rows of another study are no rows here"),
        ({"baseline": "k33"}, "baseline 'k33' is not a variant; did you mean k3?"),
        ({"seeds": [0, 0, -1]}, "-1 is no seed; give whole numbers from 0"),
        ({"seeds": [0, 0, -1]}, "0 stands 2 times; keep one"),
        ({"seeds": [0.5]}, "seeds.0 = 0.5 will not do; it should be an integer"),
        ({"variants": {"k3": {"set": {"model.op.size": 3}, "against": "table3/swin"}}},
         "'table3/swin' is not a variant; rows of another study are no rows here"),
        ({"variants": {"k3": {"set": {"model.op.size": 3}, "paper": {"model": "Swin-T"}}}},
         "paper names a row of the article, and the study has none; drop it"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(tmp_path, capfd, changes, message):
    document = yaml.safe_load(OWN) | {"claims": [], "tiers": ["toy", "proxy"]} | changes
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
    before = written(tmp_path)
    for command in ("plan", "run", "table"):
        code, out, err = answer(tmp_path, f"{command} own.yaml", capfd)
        assert (code, out) == (2, "")
        assert message in err
        assert all(line.startswith("lsa: own.yaml:") for line in err.splitlines())
    assert written(tmp_path) == before


def test_two_studies_of_one_name(lsa, lab):
    (lab / "other.yaml").write_text(OWN.replace("size: 7", "size: 9"))
    before = written(lab)
    for command in ("plan", "run", "table", "report", "why", "claims --study"):
        row = " k3" if command == "why" else ""
        told = lsa(f"{command} other.yaml{row}", code=2)
        assert "other.yaml: the study ksize of results is another file, own.yaml; give" in told
    assert written(lab) == before
    (lab / "own.yaml").rename(lab / "other.yaml")
    lsa("table other.yaml --tier proxy")  # it moved


def test_a_file_that_is_gone_or_holds_another_study(lsa, lab):
    gone = "ksize: its file own.yaml is gone; put it back, or give its new path"
    (lab / "own.yaml").rename(lab / "moved.yaml")
    for command in COMMANDS:
        before = written(lab)
        assert gone in lsa(command, code=2)
        assert written(lab) == before
    assert "three is a side study" in lsa("run moved.yaml --tier proxy --seeds 0-2 --as three")
    assert "3 distinct runs" in lsa("plan ksize --tier proxy --seeds 0")
    (lab / "moved.yaml").write_text(OWN.replace("study: ksize", "study: other"))
    assert "its file moved.yaml is of study other now; give a path" in lsa("table ksize", code=2)


def test_an_edited_file_is_read_anew(lsa, lab):
    (lab / "own.yaml").write_text(OWN.replace("size: 7", "size: 9"))
    assert "k7 (k7, tier proxy): not run" in lsa("why ksize k7 --tier proxy")
    assert "k5 (k5, tier proxy): done" in lsa("why ksize k5 --tier proxy")


def test_rows_are_compared_by_name(lsa):
    assert "model.op.size  3 -> 7" in lsa("diff ksize/k3 own.yaml/k7")
    assert "  seed  0 -> 1\n" in lsa("diff ksize/k3-s0 ksize/k3-s1")
    assert "model.op.size  3 -> 5" in lsa("diff three/k3 ksize/k5"), "of a side study too"
    assert "k9: is no row of ksize; known: k3, k5, k7" in lsa("diff ksize/k3 ksize/k9", code=2)
    assert "no run of it has ended" in lsa("diff ksize/k3 ksize/k3-s9", code=2)


def test_the_whole_study_moves_with_its_results(lsa, lab, tmp_path):
    there = lab.rename(tmp_path / "elsewhere")
    assert "done" in lsa(f"why ksize k3 --tier proxy --results {there}/results", here=tmp_path)


def test_paths_of_broken_runs_begin_at_the_tier(lsa, lab):
    run = next((lab / "results/proxy/runs").iterdir())
    (run / "result.json").write_text("{")
    lsa(f"report ksize --tier proxy --results {lab}/results")
    page = (lab / "results/proxy/report.html").read_text("utf-8")
    assert str(lab) not in page
    assert f"proxy/runs/{run.name}" in page


def test_what_is_said_of_a_side_study_keeps_to_the_width(lsa):
    told = lsa(f"run own.yaml --tier proxy --seeds 0-2 --as {'x' * 60}").splitlines()
    assert told[:2] == [f"{'x' * 60} is a side study of", "  ksize: seeds 0-2"]
    long = "train.epochs=1 --set train.lr=0.001 --set augment.label_smoothing=0.05"
    told = lsa(f"plan ksize --set {long} --only k3")
    assert "1 variants x 1 seed = 1 runs" in told
    assert ", 1 epoch, batch" in told
    assert max(map(len, told.split("  contrast")[0].splitlines()[1:])) <= 80
    assert told.endswith("1 distinct runs, 1 epoch in all, 1 to do\n")
    assert "lsa rehearse own.yaml --tier toy" in told, "no command knows its name by heart"
