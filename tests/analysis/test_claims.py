"""Claims: the article's own numbers satisfy them, and verdicts follow from intervals."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from synthetic import write_run, write_study

from lsa_study.analysis import claims
from lsa_study.analysis.collect import collect
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.statistics import t_interval
from lsa_study.config import shipped, study
from lsa_study.errors import ConfigError

CLAIMS = claims.Claims.read()
DONE = {"outcome": "done", "acc1": 70.0}
ENDS = {"net7_identity": {"outcome": "diverged", "acc1": None}}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_article_s_own_numbers_satisfy_every_claim(tmp_path, claim):
    printed = []
    for name in [*claim.rows, *claim.minus]:
        stem, variant = name.split("/")
        try:
            loaded = study.load_study(stem, tier=claim.tiers[-1])
        except ConfigError:
            pytest.skip(f"no study has {name} yet")
        rows = {row.variant: row for row in rows_of(loaded, collect(tmp_path, "paper"))}
        if variant not in rows:
            pytest.skip(f"no study has {name} yet")
        printed.append(rows[variant].article)
    if claim.relation == "ends":
        assert printed[0].word == {"diverged": "crash", "oom": "out of memory"}[claim.outcome]
    elif claim.metric == "acc1":
        difference = printed[0].value - printed[1].value
        if claim.minus:
            difference -= printed[2].value - printed[3].value
        if claim.relation == "above":
            assert difference > claim.margin
        else:
            assert abs(difference - claim.value) < claim.margin + 1e-9


def test_there_are_claims_of_every_table_and_their_names_differ():
    assert len(CLAIMS) >= 20
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    places = " ".join(claim.source for claim in CLAIMS)
    for place in ("Fig. 1", "Fig. 2", *(f"Table {n}" for n in range(1, 9)), "Section 3"):
        assert place in places


def values(*numbers):
    return t_interval(numbers)


def decided(found, margin=0.0, noise=None, relation="above"):
    claim = CLAIMS[0].model_copy(update={"relation": relation, "margin": margin})
    return claims.ClaimVerdict(claim).decided(found, noise)


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
    ],
)
def test_verdicts_follow_from_the_interval(found, relation, margin, word):
    assert decided(found, margin, relation=relation).word == word


def test_unresolved_says_how_many_seeds_would_do():
    found = values(0.1, 0.5, 0.3, 0.6, -0.2)
    judged = decided(found)
    words, number, *_ = judged.needs.split()
    assert words == "about"
    repeated = values(*(found.values * 20)[: 5 + int(number)])
    assert repeated.low > -0.03  # with as many of the same kind the interval ends near zero
    assert decided(values(0.2)).needs == "at least 2 more seeds"
    assert decided(values(0.2), noise=0.1).needs == "about 3 more seeds"
    assert decided(values(0.2, 0.2)).needs == "equal differences at every seed"
    assert "more than 1000" in decided(values(-1.0, 1.0001)).needs


def judged(results, tier="toy", name=None):
    found = {verdict.claim.id: verdict for verdict in claims.judge_tier(results, tier)}
    return found if name is None else found[name]


def test_nothing_was_run_yet(tmp_path):
    for tier in study.TIERS:
        found = judged(tmp_path, tier)
        ran = [v for v in found.values() if v.claim.metric not in ("params", "macs")]
        assert {verdict.verdict for verdict in ran} == {"not run"}
        document = claims.claims_json(list(found.values()), tier)
        assert ("never a reproduction" in document["caution"]) == (tier != "paper")


def test_invented_runs_are_judged(tmp_path):
    for name in ("table1", "table2", "fig2"):
        write_study(tmp_path, name, tier="proxy", seeds=[0, 1, 2])
    found = judged(tmp_path, "proxy")
    assert found["table1-net4-below"].plain == "supported"
    assert found["table1-net4-below"].article == pytest.approx(1.5)
    for name in ("table2-identity-crashes", "fig2-lsa-memory"):
        assert found[name].word == "not comparable"
        assert found[name].comparable == "has a meaning at tier paper only"
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
    assert (got.estimate.low, got.estimate.high) == (t_interval(want).low, t_interval(want).high)
    assert got.estimate.n == 3


def test_a_claim_is_contradicted_by_runs_that_say_otherwise(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1, 2])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"acc1": 70.0 + run.seed / 100})
    assert judged(tmp_path, "proxy", "table4-elsa").verdict == "contradicted"


@pytest.mark.parametrize(
    ("seeds", "precision", "verdict"),
    [
        (1, "float16", "unresolved (diverged 1/1)"),
        (5, "float16", "unresolved (diverged 5/5)"),
        (6, "float16", "supported"),
        (6, "bfloat16", "not comparable"),
    ],
)
def test_how_runs_end_is_decided_by_an_exact_interval(tmp_path, seeds, precision, verdict):
    loaded = write_study(tmp_path, "table2", tier="paper", seeds=range(seeds))
    for run in loaded.runs():
        write_run(tmp_path, run, changes={"precision": precision} | ENDS.get(run.variant, DONE))
    assert judged(tmp_path, "paper", "table2-identity-crashes").verdict == verdict


def test_a_control_that_ends_so_too_supports_nothing(tmp_path):
    loaded = write_study(tmp_path, "table2", tier="paper", seeds=range(8))
    for run in loaded.runs():
        write_run(tmp_path, run, changes={"precision": "float16"} | ENDS["net7_identity"])
    got = judged(tmp_path, "paper", "table2-identity-crashes")
    assert got.verdict == "unresolved (the control table2/net7: diverged too)"


def test_decisions_are_corrected_over_all_claims():
    one = claims.ClaimVerdict(CLAIMS[0], word="supported", p=0.03)
    first, second = claims.corrected([one, replace(one, p=0.04)])
    assert (first.adjusted, second.adjusted) == (0.06, 0.06)
    assert (first.word, first.plain, first.grouped) == ("unresolved", "supported", "near")
    (alone,) = claims.corrected([one])
    assert (alone.word, alone.grouped) == ("supported", "decided")


def test_costs_are_counted_without_a_run(tmp_path):
    for tier, word in (("toy", "not run"), ("proxy", "supported"), ("paper", "supported")):
        found = judged(tmp_path, tier)
        counted = [v for v in found.values() if v.claim.metric in ("params", "macs")]
        assert {verdict.word for verdict in counted} == {word}


def test_differences_of_differences_pair_all_four_rows(tmp_path):
    loaded = write_study(tmp_path, "table3", tier="proxy", seeds=[0, 1, 2])
    for run in loaded.runs():
        acc1 = {"net6_n": 72.0, "net6": 70.0, "swin_n": 70.5, "swin": 70.0}.get(run.variant, 60.0)
        write_run(tmp_path, run, changes={"acc1": acc1 + (run.variant == "swin") * run.seed / 10})
    got = judged(tmp_path, "proxy", "table3-net6-more-than-swin")
    assert got.estimate.values == pytest.approx((1.5, 1.6, 1.7))


def test_a_row_that_no_study_has_is_not_run(tmp_path):
    text = shipped.find("experiments/claims.yaml").read_text()
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace("[table10/elsa_swin_t, ", "[nowhere/elsa, "))
    found = {v.claim.id: v for v in claims.judge_tier(tmp_path, "paper", path=path)}
    assert found["table10-elsa-t"].verdict == "not run"
    assert "nowhere/elsa" in found["table10-elsa-t"].reason


def test_a_row_that_diverged_cannot_be_compared(tmp_path):
    loaded = write_study(tmp_path, "table4", seeds=[0])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"outcome": "diverged", "acc1": None})
    got = judged(tmp_path, name="table4-elsa")
    assert (got.verdict, got.reason) == ("no verdict", "table4/elsa: 1 of 1 diverged")


def test_studies_are_read_as_they_were_asked_for(tmp_path):
    changed = ["train.epochs=2"]
    loaded = [write_study(tmp_path, name, overrides=changed) for name in ("table4", "table5")]
    assert judged(tmp_path, name="table4-elsa").verdict == "not run"
    study.remember(tmp_path, loaded[:1], changed)
    assert judged(tmp_path, name="table4-elsa").estimate.n == 3
    # Table 5 was last asked for with other epochs: its rows cannot stand against those of Table 4.
    write_study(tmp_path, "table5")
    got = judged(tmp_path, name="fig1-elsa-beats-dwconv")
    assert got.reason == "the rows also differ in train.epochs"


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
    assert fewer.verdict == "unresolved (the rows also differ in model.backbone)"


def test_speed_is_compared_on_one_device_only(tmp_path):
    for name in ("table4", "table5"):
        loaded = write_study(tmp_path, name, tier="proxy", seeds=[0, 1])
    got = judged(tmp_path, "proxy", "table7-elsa-faster-than-net7n")
    assert got.estimate.n == 2
    other = next(run for run in loaded.runs() if run.variant == "net7_n_unfold")
    write_run(tmp_path, other, changes={"device": "Other chip"})
    got = judged(tmp_path, "proxy", "table7-elsa-faster-than-net7n")
    assert got.verdict == "unresolved (the rows ran on different devices)"


def test_unlike_environments_are_noted(tmp_path):
    loaded = write_study(tmp_path, "table4", tier="proxy", seeds=[0, 1])
    for run in loaded.runs():
        if run.variant == "elsa":
            write_run(tmp_path, run, changes={"torch": "1.0"})
    assert judged(tmp_path, "proxy", "table4-elsa").notes == ("torch 1.0, reference 2.9.0",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relation": "over"}, "relation = 'over'"),
        ({"rows": ["table1/net7"]}, "the others two rows"),
        ({"rows": ["net7", "swin"]}, "write study/variant"),
        ({"relation": "within"}, "'within' needs one above 0"),
        ({"besides": ["model.backbon"]}, "no such settings; give dotted paths"),
        ({"margn": 1}, "margn is not a setting"),
    ],
)
def test_mistakes_in_the_file_are_named_with_their_line(tmp_path, change, words):
    claim = {"id": "a", "text": "b", "source": "c", "rows": ["table1/net7", "table1/swin"]}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [claim | {"relation": "above"} | change]}))
    with pytest.raises(ConfigError, match=words) as caught:
        claims.Claims.read(path)
    assert str(path) in str(caught.value)


def test_judging_needs_no_torch():
    code = "import sys, lsa_study.analysis.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
