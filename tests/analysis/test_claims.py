"""Claims: verdicts follow from intervals, after Holm, of rows that were made alike."""

import subprocess
import sys

import pytest
from synthetic import write_run, write_study

from lsa_study.analysis import claims
from lsa_study.analysis.collect import collect
from lsa_study.analysis.measured import CELLS, COUNTED
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.statistics import t_interval
from lsa_study.config import shipped, study
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError

CLAIMS = claims.Claims.read()


def values(*numbers):
    return t_interval(numbers)


def decided(found, margin=0.0, relation="above"):
    value = 0.5 if relation == "near" else 0.0
    changes = {"relation": relation, "margin": margin, "value": value}
    return claims.ClaimVerdict(CLAIMS[0].model_copy(update=changes)).decided(found)


@pytest.mark.parametrize(
    ("found", "relation", "margin", "word"),
    [
        (values(0.5, 0.6, 0.7), "above", 0.0, "supported"),
        (values(0.5, 0.6, 0.7), "above", 0.55, "unresolved"),
        (values(0.5, 0.6, 0.7), "above", 0.9, "contradicted"),
        (values(-0.5, -0.6, -0.7), "above", 0.0, "contradicted"),
        (values(-0.5, 0.6), "above", 0.0, "unresolved"),
        (values(0.0, 0.1, 0.2), "within", 0.4, "supported"),
        (values(0.0, 0.1, 0.2), "within", 0.3, "unresolved"),
        (values(0.5, 0.6, 0.7), "within", 0.3, "contradicted"),
        (values(-0.5, -0.6, -0.7), "within", 0.3, "contradicted"),
        (values(9.0), "above", 0.0, "unresolved"),
        (values(0.5, 0.6, 0.7), "near", 0.3, "unresolved"),
        (values(0.39, 0.4, 0.41), "near", 0.3, "supported"),
        (values(0.0, 0.01, 0.02), "near", 0.3, "contradicted"),
        (values(0.9, 0.91, 0.92), "near", 0.3, "contradicted"),
    ],
)
def test_verdicts_follow_from_the_interval(found, relation, margin, word):
    assert decided(found, margin, relation=relation).word == word


def test_unresolved_says_how_many_seeds_would_do(tmp_path):
    write_study(tmp_path, "table1", tier="proxy", seeds=[0, 1, 2])
    found = [one for one in judged(tmp_path, "proxy").values() if one.wanted is not None]
    assert found
    for one in found:
        assert f"about {one.wanted} more seed" in one.needs
        assert one.grouped == ("near" if one.wanted <= claims.NEAR else "open")


def judged(results, tier="toy", name=None):
    found = {verdict.claim.id: verdict for verdict in claims.judge_tier(results, tier)}
    return found if name is None else found[name]


def test_nothing_was_run_yet(tmp_path):
    for tier in study.TIERS:
        found = judged(tmp_path, tier)
        ran = [one for one in found.values() if one.claim.metric not in CELLS]
        assert {verdict.verdict for verdict in ran} == {"not run"}
        document = claims.claims_json(list(found.values()), tier)
        assert ("never a reproduction" in document["caution"]) == (tier != "paper")


def test_invented_runs_are_judged(tmp_path):
    for name in ("table1", "table2", "fig2"):
        write_study(tmp_path, name, tier="proxy", seeds=[0, 1, 2])
    found = judged(tmp_path, "proxy")
    assert found["table1-net4-below"].verdict == "supported"
    assert found["table1-net4-below"].article == pytest.approx(1.5)
    assert found["table2-identity-crashes"].reason == "has a meaning at tier paper only"
    assert found["fig2-lsa-memory"].reason == "has a meaning at tier paper only"
    assert found["table4-ghost"].verdict == "not run"
    first = claims.claims_json(list(found.values()), "proxy")["claims"][0]
    assert {"id", "text", "source", "verdict", "estimate", "low", "high"} <= set(first)
    text = claims.claims_text(list(found.values()), "proxy")
    assert "table1-net4-below" in text
    assert "never a reproduction" in text


def test_estimates_are_the_paired_differences(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
    rows = {row.variant: row for row in rows_of(loaded, collect(tmp_path, "proxy"))}
    want = [
        a.accuracy - b.accuracy for a, b in zip(rows["elsa"].runs, rows["swin"].runs, strict=True)
    ]
    got = judged(tmp_path, "proxy", "table4-elsa")
    assert got.estimate.mean == pytest.approx(sum(want) / 3)
    assert (got.estimate.low, got.estimate.high) == (
        rows["elsa"].contrast.difference.low,
        rows["elsa"].contrast.difference.high,
    )
    assert got.estimate.n == 3


def test_a_claim_is_contradicted_by_runs_that_say_otherwise(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"acc1": 70.0 + run.seed / 100})
    assert judged(tmp_path, "proxy", "table4-elsa").verdict == "contradicted"


@pytest.mark.parametrize(
    ("ended", "precision", "control", "verdict"),
    [
        (8, "float16", 0, "supported"),
        (7, "float16", 0, "unresolved (diverged 7/8; about 8 more seeds)"),
        (0, "float16", 0, "contradicted"),
        (8, "float16", 1, "unresolved (table2/net7 diverged 1/8)"),
        (0, "bfloat16", 0, "not comparable (precision bfloat16, the claim is about float16)"),
    ],
)
def test_how_runs_end_is_decided_by_enough_of_them_in_the_claim_s_precision(
    tmp_path, ended, precision, control, verdict
):
    loaded = write_study(tmp_path, "table2", tier="paper", seeds=range(8))
    for run in loaded.runs():
        rank = {"net7_identity": ended, "net7": control}.get(run.variant, 0)
        diverged = {"outcome": "diverged", "acc1": None}
        change = diverged if run.seed < rank else {"outcome": "done", "acc1": 70.0}
        write_run(tmp_path, run, changes=change | {"precision": precision})
    assert judged(tmp_path, "paper", "table2-identity-crashes").verdict == verdict


def test_one_run_decides_nothing_of_how_runs_end(tmp_path):
    loaded = write_study(tmp_path, "table2", tier="paper", seeds=[0])
    for run in loaded.runs():
        write_run(tmp_path, run, changes={"outcome": "done", "acc1": 70.0, "precision": "float16"})
    got = judged(tmp_path, "paper", "table2-identity-crashes")
    assert got.verdict == "unresolved (diverged 0/1; about 7 more seeds)"


def test_toy_results_get_no_verdict(tmp_path):
    for name in ("table1", "table4"):
        write_study(tmp_path, name, seeds=[0, 1, 2])
    found = judged(tmp_path).values()
    assert {one.word for one in found} == {"no verdict", "not run"}
    assert not {one.plain for one in found} & set(claims.DECIDED)


def test_decisions_stand_only_after_holm(tmp_path):
    write_study(tmp_path, "table1", tier="proxy", seeds=[0, 1, 2])
    found = list(judged(tmp_path, "proxy").values())
    decisions = [one for one in found if one.word in claims.DECIDED]
    assert decisions
    tested = [one for one in decisions if one.claim.metric not in COUNTED]
    assert all(one.p <= one.adjusted <= 0.05 for one in tested)
    alone = [one for one in found if one.plain in claims.DECIDED and one.word == "unresolved"]
    assert all(one.adjusted > 0.05 and "alone, open among" in one.needs for one in alone)
    document = claims.claims_json(found, "proxy")["claims"]
    assert {"p", "adjusted", "plain", "comparable", "grouped", "method"} <= set(document[0])
    assert {one["grouped"] for one in document} <= set(claims.GROUPS)


def test_seeds_that_change_nothing_decide_nothing(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
    first = {run.variant: run for run in loaded.runs() if run.seed == 0}
    for run in loaded.runs():
        folder = write_run(tmp_path, run, changes={"acc1": 80.0 + len(run.variant)})
        before = next(tmp_path.glob(f"proxy/runs/{first[run.variant].name}"))
        for path in before.glob("*.npz"):
            (folder.root / path.name).write_bytes(path.read_bytes())
    assert "all 3 seeds gave the same answers" in judged(tmp_path, "proxy", "table4-elsa").verdict


@pytest.mark.parametrize("change", [{"data_fingerprint": "other"}, {"test_images": 500}])
def test_other_data_gives_no_verdict(tmp_path, change):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes=change)
    got = judged(tmp_path, "proxy", "table4-elsa")
    assert got.word == "not comparable"
    assert got.as_json()["comparable"] == got.comparable != ""


def test_claims_of_one_study_keep_their_adjusted_verdicts(tmp_path):
    write_study(tmp_path, "table1", tier="proxy", seeds=[0, 1, 2])
    found = claims.judge_tier(tmp_path, "proxy")
    chosen = claims.of_study(found, "table1")
    assert 0 < len(chosen) < len(found)
    assert all(one in found for one in chosen)
    with pytest.raises(ConfigError, match="--study table11: no claim is about it"):
        claims.of_study(found, "table11")


def test_a_row_that_diverged_cannot_be_compared(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"outcome": "diverged", "acc1": None})
    got = judged(tmp_path, "proxy", "table4-elsa")
    assert got.verdict == "unresolved (table4/elsa: 1 of 1 diverged)"


def test_studies_are_read_as_they_were_asked_for(tmp_path):
    changed = ["train.epochs=7"]
    loaded = [
        write_study(tmp_path, name, tier="proxy", overrides=changed)
        for name in ("table4", "table5")
    ]
    assert judged(tmp_path, "proxy", "table4-elsa").verdict == "not run"
    remember(tmp_path, loaded[:1])
    assert judged(tmp_path, "proxy", "table4-elsa").estimate.n == 3
    # Table 5 was asked for with other epochs: its rows cannot stand against those of Table 4.
    remember(
        tmp_path, [write_study(tmp_path, "table5", tier="proxy", overrides=["train.epochs=8"])]
    )
    got = judged(tmp_path, "proxy", "fig1-elsa-beats-dwconv")
    assert got.verdict == "not comparable (the rows also differ in train.epochs)"


def test_whole_networks_are_compared_in_what_the_claim_names(tmp_path):
    """Only that, and it stands beside the verdict; anything else that differs forbids it."""
    write_study(tmp_path, "table8", tier="paper")
    got = judged(tmp_path, "paper", "table8-small-matches-base")
    assert got.estimate.n == 3
    assert got.notes[0] == "evaluation.weights model, the other ema"
    assert {note.split()[0] for note in got.notes[:4]} == {
        "model.backbone", "model.drop_path", "train.ema_decay", "evaluation.weights",
    }  # fmt: skip
    path = tmp_path / "claims.yaml"
    words = shipped.find("experiments/claims.yaml").read_text()
    path.write_text(words.replace("besides: [model.backbone, ", "besides: ["))
    (fewer,) = [
        verdict
        for verdict in claims.judge_tier(tmp_path, "paper", path=path)
        if verdict.claim.id == "table8-small-matches-base"
    ]
    assert fewer.verdict == "not comparable (the rows also differ in model.backbone)"


def test_unlike_environments_are_noted(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"torch": "1.0"})
    assert judged(tmp_path, "proxy", "table4-elsa").notes == ("torch 1.0, reference 2.9.0",)


def test_judging_needs_no_torch():
    code = "import sys, lsa_study.analysis.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
