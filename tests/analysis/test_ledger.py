"""The file of claims: the article's numbers support it, its mirror contradicts it, and mistakes."""

import contextlib
import graphlib
import itertools
import re
from unittest import mock

import numpy as np
import pytest
import synthetic
import yaml
from synthetic import write_run

from lsa_study.analysis import claims
from lsa_study.analysis.article import ArticleRow
from lsa_study.config import shipped, study
from lsa_study.config.contrast import beyond, under
from lsa_study.config.ledger import RULE, Claims
from lsa_study.errors import ConfigError

CLAIMS = Claims.read()
OF_ACCURACY = [claim for claim in CLAIMS if claim.metric == "acc1" and claim.outcome is None]
OWN = {"table3-application-not-sharing"}
OWN |= {claim.id for claim in OF_ACCURACY if any(row.startswith("stem/") for row in claim.sides)}
"""About rows of which no number is printed, or none is at hand."""
TABLES = (
    "table1", "table2", "table3", "table4", "table5", "table6", "table8", "fig2", "ddf_table3",
    "ddf_table5", "stem",
)  # fmt: skip
IMAGES = 50_000


@pytest.fixture(scope="module")
def rows():
    """All rows of the article's tables at its own tier: runs of three seeds and what it prints."""
    found = {}
    for name in TABLES:
        loaded = study.load_study(name, tier="paper", seeds=[0, 1, 2])
        for run in loaded.runs():
            row = f"{name}/{run.variant}"
            article = ArticleRow.of(loaded, run.variant).value
            found.setdefault(row, (article, []))[1].append(run)
    return found


def judged(folder, rows, accuracies):
    """Verdicts on runs with these accuracies, almost alike at every seed and on every image."""

    def nested(result):
        # The images that the less accurate of two runs got right, the other got right too.
        return np.arange(IMAGES) < round(result["acc1"] / 100 * IMAGES)

    noise = np.random.default_rng(0)
    with (
        mock.patch.object(synthetic, "curve", return_value=[]),
        mock.patch.object(synthetic, "correct", nested),
    ):
        done = set()
        for run, accuracy in ((run, accuracies.get(row)) for row in rows for run in rows[row][1]):
            if accuracy is not None and run.identity not in done:
                done.add(run.identity)
                acc1 = round((accuracy + noise.normal(0, 0.01)) * IMAGES / 100) * 100 / IMAGES
                write_run(folder, run, changes={"acc1": acc1, "outcome": "done"})
    # Their seeds were declared: a single look.
    shipped.copy_to(folder / "mine")
    for path in (folder / "mine" / "experiments" / f"{name}.yaml" for name in TABLES):
        text = path.read_text("utf-8")
        path.write_text(text if "\nseeds:" in text else f"{text}seeds: [0, 1, 2]\n", "utf-8")
    with contextlib.chdir(folder / "mine"):
        return {one.claim.id: one for one in claims.judge_tier(folder, "paper")}


def test_the_article_s_own_numbers_support_every_claim_of_accuracy(tmp_path, rows):
    found = judged(tmp_path, rows, {row: article for row, (article, _) in rows.items()})
    words = {claim.id: found[claim.id].verdict for claim in OF_ACCURACY if claim.id not in OWN}
    assert len(words) > 50
    assert not any(one.sequential for one in found.values())
    assert set(words.values()) == {"supported"}, words
    for claim in OF_ACCURACY:
        if claim.id not in OWN:
            assert found[claim.id].article == pytest.approx(found[claim.id].estimate.mean, abs=0.05)


def test_their_mirror_contradicts_every_claim_of_accuracy(tmp_path, rows):
    """Accuracies in the reverse of every claim's order, two points apart."""
    same = {row: runs[0].identity for row, (_, runs) in rows.items()}
    above = {}
    for claim in OF_ACCURACY:
        for one, other in claim.compared:
            # Less than Swin's gain: where that is taken off, it has to be larger.
            turned = claim.id == "table3-swin" or [one, other] == claim.minus
            low, high = (other, one) if turned else (one, other)
            above.setdefault(same[high], set()).add(same[low])
    levels = {}
    for node in graphlib.TopologicalSorter(above).static_order():
        levels[node] = 1 + max((levels[one] for one in above.get(node, ())), default=-1)
    accuracies = {row: 60.0 + 2 * levels.get(of, 0) for row, of in same.items()}
    found = judged(tmp_path, rows, accuracies)
    words = {claim.id: found[claim.id].verdict for claim in OF_ACCURACY}
    assert set(words.values()) == {"contradicted"}, words


def test_the_rows_of_a_claim_differ_in_what_it_names_alone():
    """Every row that its study has, at every tier where the claim has a meaning."""
    known = {}
    for claim in CLAIMS:
        for tier, pair in itertools.product(claim.tiers, claim.compared):
            sides = []
            for stem, variant in (row.split("/") for row in pair):
                if stem not in (*TABLES, "table7") or tier not in study.tiers_of(stem):
                    continue
                if (stem, tier) not in known:
                    known[stem, tier] = study.load_study(stem, tier=tier)
                assert variant in known[stem, tier].variants
                sides.append((known[stem, tier], variant))
            if len(sides) == 2 and claim.metric not in ("params", "macs", "inference"):
                assert [k for k in beyond(*sides) if not under(k, claim.besides)] == [], claim.id


def test_there_are_claims_of_every_table_and_no_two_are_alike():
    assert len(CLAIMS) >= 90
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    places = " ".join(claim.source for claim in CLAIMS)
    for place in ("Fig. 1", "Fig. 2", *(f"Table {n}" for n in range(1, 11)), "Section 3"):
        assert place in places


def test_one_rule_makes_all_margins_and_stands_at_the_head_of_the_file(tmp_path):
    head = shipped.find("experiments/claims.yaml").read_text("utf-8").split("\nclaims:")[0]
    assert RULE in " ".join(head.replace("\n#", " ").split())
    for claim in CLAIMS:
        assert abs(claim.margin) in (0, 0.3 if claim.metric.endswith(("1", "p", "u")) else 10)
    found = claims.judge_tier(tmp_path, "proxy")
    assert claims.claims_json(found, "proxy")["margins"] == RULE
    assert RULE in " ".join(claims.claims_text(found, "proxy").split())


def test_the_article_s_own_conflict_is_noted():
    conflict = [claim.id for claim in CLAIMS if "0.7 points for VOLO" in claim.note]
    assert conflict == ["table6-volo-elsa", "table8-volo-d1-224", "table8-volo-d1-size"]


ONE = {"id": "a", "text": "b", "source": "c", "rows": ["table1/net7", "table1/swin"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relation": "over"}, "relation = 'over'"),
        ({"rows": ["table1/net7"]}, "the others two rows"),
        ({"relation": "trend"}, "'trend' three rows or more"),
        ({"relation": "signs"}, "'signs' pairs of rows"),
        ({"relation": "signs", "rows": [], "pairs": [["table1/net7"]]}, "'signs' pairs of rows"),
        ({"rows": ["net7", "swin"]}, "write study/variant"),
        ({"minus": ["table1/net1"]}, "minus takes two rows"),
        ({"relation": "within"}, "'within' needs one above 0"),
        ({"margin": float("nan")}, "margin=nan, value=0.0: give finite"),
        ({"margin": float("inf")}, "margin=inf, value=0.0: give finite"),
        ({"rows": ["table1/net7", "table1/net7"]}, "a row is compared with itself"),
        ({"relation": "near", "value": 1}, "'near' needs one above 0"),
        ({"besides": ["model.backbon"]}, "no such settings; give dotted paths"),
        ({"metric": "flops"}, "metric = 'flops'"),
        ({"margn": 1}, "margn is not a setting; did you mean"),
        ({"control": "table1/net1"}, "belong to relation 'ends'"),
    ],
)
def test_mistakes_in_the_file_are_named_with_their_line(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Claims.read(written(tmp_path, ONE | {"relation": "above"} | change))
    assert re.match(rf"{re.escape(str(tmp_path))}/claims.yaml:\d+: ", str(caught.value))
    assert len(str(caught.value).splitlines()) == 1


def test_two_claims_of_one_name_are_refused(tmp_path):
    one = ONE | {"relation": "above"}
    with pytest.raises(ConfigError, match=r"claims.yaml:1: claims: id a stands twice") as caught:
        Claims.read(written(tmp_path, one, one))
    assert len(str(caught.value).splitlines()) == 1


def written(folder, *documents):
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": list(documents)}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("row", "tier", "reason"),
    [
        ("table1/net77", "proxy", "table1/net77: no such row"),
        ("nowhere/net7", "proxy", "nowhere/net7: no such row"),
        ("table6/swin", "proxy", "table6/swin: no such row at tier proxy"),
        ("table6/swin", "paper", "table6/swin, table1/swin: not run"),
    ],
)
@pytest.mark.parametrize("metric", ["acc1", "params"])
def test_a_row_that_no_study_has_is_not_run(tmp_path, row, tier, reason, metric):
    claim = ONE | {"relation": "above", "rows": [row, "table1/swin"], "metric": metric}
    (found,) = claims.judge_tier(tmp_path, tier, path=written(tmp_path, claim))
    if metric == "params" and row == "table6/swin":
        assert found.estimate.mean == 0.0
    else:
        assert (found.verdict, found.reason) == ("not run", reason)
