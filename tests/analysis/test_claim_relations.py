"""Relations beyond two rows, what the rows differ in, and bad input: one clear line each."""

import json
import math

import pytest
import yaml
from scipy import stats
from synthetic import change_result, write_run, write_study
from typer.testing import CliRunner

from lsa_study import rundir
from lsa_study.analysis import claims
from lsa_study.cli import app
from lsa_study.config import study


def judged(results, name, tier="proxy"):
    return {one.claim.id: one for one in claims.judge_tier(results, tier)}[name]


def written(folder, name, accuracies, tier="proxy", spread=0.05):
    """Runs of a study at these accuracies, three seeds each, a little apart."""
    for run in study.load_study(name, tier=tier, seeds=[0, 1, 2]).runs():
        acc1 = accuracies.get(run.variant, 60.0) + spread * ((7 * run.seed) % 3 - 1)
        write_run(folder, run, changes={"acc1": acc1, "outcome": "done"})


GAINS = {"net6": 70.0, "net6_n": 76.0, "swin": 70.0, "swin_n": 71.0}


def test_a_difference_of_differences_and_the_article_s_own(tmp_path):
    written(tmp_path, "table3", GAINS)
    got = judged(tmp_path, "table3-net6-more-than-swin")
    assert got.estimate.mean == pytest.approx(5.0)
    assert got.article == pytest.approx((82.0 - 81.3) - (81.4 - 81.3))
    assert got.plain == "supported"
    # Its seeds were not declared: the interval holds at every look.
    assert got.sequential
    assert got.method.endswith(", always valid")
    assert {one.rows for one in got.differs} == {
        ("table3/net6_n", "table3/net6"), ("table3/swin_n", "table3/swin"),
    }  # fmt: skip
    written(tmp_path, "table3", GAINS | {"swin_n": 80.0})
    assert judged(tmp_path, "table3-net6-more-than-swin").plain == "contradicted"


def test_other_images_for_one_of_four_rows_refuse_it(tmp_path):
    written(tmp_path, "table3", GAINS)
    for run in study.load_study("table3", tier="proxy", seeds=[0, 1, 2]).runs():
        if run.variant in ("swin", "swin_n"):
            write_run(tmp_path, run, changes={"data_fingerprint": "other"})
    got = judged(tmp_path, "table3-net6-more-than-swin")
    assert got.word == "not comparable"
    assert got.comparable == "data f1f2f3f4f5, reference other"


ORDERS = {"dwconv": 70.0, "net6_n": 76.0, "net7_n_unfold": 82.0}


@pytest.mark.parametrize(
    ("change", "plain", "mean"),
    [
        ({}, "supported", 6.0),
        ({"net7_n_unfold": 76.0}, "unresolved", 0.0),
        ({"net7_n_unfold": 70.0}, "contradicted", -6.0),
        ({"dwconv": 90.0, "net7_n_unfold": 70.0}, "contradicted", -14.0),
    ],
)
def test_a_trend_is_judged_by_the_step_that_is_least_sure(tmp_path, change, plain, mean):
    written(tmp_path, "table5", ORDERS | change)
    got = judged(tmp_path, "table5-order-trend")
    assert got.plain == plain
    assert got.estimate.mean == pytest.approx(mean, abs=0.02)
    assert got.article == pytest.approx(0.4)
    assert got.method.startswith("least sure of 2 steps, table5/")


def test_a_trend_of_one_seed_shows_its_smallest_step_and_stays_open(tmp_path):
    for run in study.load_study("table5", tier="proxy", seeds=[0]).runs():
        changes = {"acc1": (ORDERS | {"net7_n_unfold": 77.0}).get(run.variant, 60.0)}
        write_run(tmp_path, run, changes=changes)
    got = judged(tmp_path, "table5-order-trend")
    assert got.verdict == f"unresolved ({LACKING})"
    assert got.estimate.mean == pytest.approx(1.0)


def test_the_p_of_a_trend_is_the_largest_of_its_steps(tmp_path):
    written(tmp_path, "table5", ORDERS | {"net7_n_unfold": 76.8}, spread=0.3)
    got = {one.claim.id: one for one in claims.judge_tier(tmp_path, "proxy")}
    steps = [got[name].p for name in ("table5-second-order", "table5-third-order")]
    assert got["table5-order-trend"].p == pytest.approx(max(steps))
    assert steps[0] < steps[1]
    written(tmp_path, "table5", ORDERS | {"net7_n_unfold": 75.2}, spread=0.3)
    got = {one.claim.id: one for one in claims.judge_tier(tmp_path, "proxy")}
    # That one of two steps falls was looked for twice.
    assert got["table5-order-trend"].p == pytest.approx(2 * got["table5-third-order"].p)


def table8(folder, below, left=(), seeds=(0, 1)):
    """Both rows of every pair at the paper tier; ELSA is worse in ``below``, ``left`` not run."""
    for run in study.load_study("table8", tier="paper", seeds=list(seeds)).runs():
        if run.variant not in left:
            better = 0.4 * run.variant.startswith("elsa") * (-1 if run.variant in below else 1)
            write_run(folder, run, changes={"acc1": 80.0 + better + run.seed})


@pytest.mark.parametrize(
    ("below", "left", "plain", "reason"),
    [
        ((), (), "supported", "positive in 11 of 11 pairs"),
        (("elsa",), (), "supported", "positive in 10 of 11 pairs"),
        (("elsa", "elsa_volo_d1"), (), "unresolved", "positive in 9 of 11 pairs"),
        ((), ("elsa", "volo_d5"), "supported",
         "positive in 9 of 9 pairs; 2 without a difference or not run"),
    ],
)  # fmt: skip
def test_signs_are_counted_over_pairs_however_sure_each_is(tmp_path, below, left, plain, reason):
    table8(tmp_path, below, left, seeds=[0])
    got = judged(tmp_path, "table8-consistently", "paper")
    assert (got.plain, got.reason) == (plain, reason)
    count, of = (int(word) for word in reason.split()[2:5:2])
    assert got.p == pytest.approx(stats.binomtest(count, of).pvalue)
    assert got.estimate.mean == pytest.approx(count / of)
    assert got.article == 1.0


def test_no_pair_that_was_run_is_not_run(tmp_path):
    got = judged(tmp_path, "table8-consistently", "paper")
    assert (got.verdict, got.reason) == ("not run", "no pair was run at a common seed")


def test_what_the_rows_differ_in_is_listed_with_both_values(tmp_path):
    written(tmp_path, "table1", {})
    written(tmp_path, "table5", {})
    found = claims.judge_tier(tmp_path, "proxy")
    listed = {one["id"]: one["differs"] for one in claims.claims_json(found, "proxy")["claims"]}
    assert listed["table1-net7-beats-swin"] == [
        {
            "rows": ["table1/net7", "table1/swin"],
            "setting": "model.op.terms",
            "values": [["qk", "q_rk", "rq_k", "bias"], ["qk", "bias"]],
        }
    ]
    assert {one["setting"] for one in listed["fig1-dwconv-keeps-up"]} > {"model.op.kind"}
    text = claims.claims_text(found, "proxy")
    assert "differ in model.op.terms (qk+q_rk+rq_k+bias against qk+bias)" in " ".join(text.split())
    assert "differ in layer (dwconv against unified)" in text


def test_a_terminal_of_usual_width_shows_decided_claims_first(tmp_path):
    written(tmp_path, "table1", {"net1": 70.0, "net2": 80.0}, spread=0.2)
    text = claims.claims_text(claims.judge_tier(tmp_path, "proxy"), "proxy")
    assert max(len(line) for line in text.splitlines()) <= 80
    titles = [line for line in text.splitlines() if line[:1].isalpha() and line.endswith(")")]
    assert [title.split(" (")[0].split(":")[0] for title in titles] in (
        ["Decided", "Nearest to being decided", "Open", "Not run"],
        ["Decided", "Nearest to being decided", "Not run"],
        ["Decided", "Open", "Not run"],
    )  # fmt: skip
    for reason in ("has a meaning at tier paper only:", "none of their rows was run:"):
        assert text.count(reason) == 1


NET7 = "table1-net7-beats-swin"
LACKING = "at least 1 more seed; seeds 1-4 of those declared are not there"


def changed(folder, variant, changes, seeds=(0, 1, 2)):
    for run in study.load_study("table1", tier="proxy", seeds=[0, 1, 2]).runs():
        if run.variant == variant and run.seed in seeds:
            place = rundir.RunDir(rundir.runs_folder(folder, "proxy") / run.name)
            change_result(place, changes)


@pytest.mark.parametrize(
    ("changes", "seeds", "verdict"),
    [
        ({"data_fingerprint": "x"}, (0, 1, 2), "not comparable (data x, reference f1f2f3f4f5)"),
        ({"data_fingerprint": "x"}, (1,),
         "not comparable (data x, reference f1f2f3f4f5 at seed 1)"),
        ({"test_images": 500}, (0, 1, 2), "not comparable (test images 500, reference 10000)"),
        ({"outcome": "diverged", "acc1": None}, (0, 1, 2),
         "unresolved (table1/net7: 3 of 3 diverged)"),
        ({"outcome": "diverged", "acc1": None}, (1,), "unresolved (table1/net7: 1 of 3 diverged)"),
        ({"acc1": math.nan}, (0, 1, 2), "not run"),
        ({"seed": 7}, (0, 1, 2), "not run"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(tmp_path, changes, seeds, verdict):
    write_study(tmp_path, "table1", tier="proxy", seeds=[0, 1, 2])
    changed(tmp_path, "net7", changes, seeds)
    assert judged(tmp_path, NET7).verdict == verdict


def test_seeds_of_one_side_alone_decide_nothing(tmp_path):
    for run in study.load_study("table1", tier="proxy", seeds=[0, 1, 2]).runs():
        if run.variant != "net7" or run.seed == 0:
            write_run(tmp_path, run)
    assert judged(tmp_path, NET7).verdict == f"unresolved ({LACKING})"
    for run in study.load_study("table1", tier="proxy", seeds=[5]).runs():
        if run.variant == "net1":
            write_run(tmp_path, run)
    other = tmp_path / "other"
    for seeds, variant in (([0], "swin"), ([1], "net7")):
        for run in study.load_study("table1", tier="proxy", seeds=seeds).runs():
            if run.variant == variant:
                write_run(other, run)
    assert judged(other, NET7).verdict == "unresolved (no seed in common)"


def test_what_could_not_be_read_is_said_beside_the_verdicts(tmp_path):
    write_study(tmp_path, "table1", tier="proxy", seeds=[0, 1, 2])
    changed(tmp_path, "net7", {"acc1": math.nan}, [1])
    told = CliRunner().invoke(
        app, ["claims", "--tier", "proxy", "--json", "--results", str(tmp_path)]
    )
    assert json.loads(told.stdout)["tier"] == "proxy"
    (line,) = told.stderr.splitlines()
    assert line.startswith("left out: ")
    assert "/net7-s1-" in line
    assert "acc1 = nan" in line


def test_a_bad_file_of_claims_is_one_line_and_status_2(tmp_path):
    path = tmp_path / "mine.yaml"
    one = {"id": "a", "text": "b", "source": "c", "rows": ["table1/net7", "table1/swin"]}
    more = one | {"id": "d", "relation": "above", "colour": 1}
    path.write_text(yaml.safe_dump({"claims": [one | {"relation": "above"}, more]}))
    caught = CliRunner().invoke(app, ["claims", "--file", str(path), "--results", str(tmp_path)])
    assert caught.exception.exit_code == 2
    line = 1 + path.read_text().splitlines().index("- colour: 1")
    assert str(caught.exception).startswith(f"{path}:{line}: claims.1.colour is not a setting")
