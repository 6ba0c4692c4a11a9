"""Comparisons against hand computation, scipy's own tests and simulation."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lsa_study.analysis.article import ArticleRow
from lsa_study.analysis.collect import RunRecord
from lsa_study.analysis.contrasts import by_image, compare, contrast, mcnemar
from lsa_study.analysis.inference import image_noise
from lsa_study.analysis.rows import Row
from lsa_study.analysis.statistics import kendall


def run_of(seed, bits):
    bits = np.asarray(bits, bool)
    return RunRecord(
        identity=f"{seed}",
        variant="row",
        seed=seed,
        outcome="done",
        acc1=100 * bits.mean(),
        correct=np.packbits(bits).tobytes(),
        correct_count=len(bits),
        data_fingerprint="f",
    )


def accuracies(values, base=None):
    """A row of runs with these accuracies by seed, compared with another."""
    runs = [
        run_of(seed, [1]).model_copy(update={"acc1": value, "correct_count": None})
        for seed, value in values.items()
    ]
    shared = sorted(values.keys() & {run.seed for run in base.runs}) if base else ()
    return Row(
        "row", "Row", {}, "base", tuple(runs), ArticleRow(), base=base, declared=tuple(shared)
    )


def test_differences_are_paired_by_seed_over_the_shared_ones():
    base = accuracies({0: 80.0, 1: 81.0, 2: 82.0, 7: 10.0})
    found = accuracies({2: 82.7, 0: 80.4, 1: 81.4, 9: 99.0}, base).contrast
    assert found.seeds == (0, 1, 2)
    assert found.difference.values == pytest.approx((0.4, 0.4, 0.7))
    assert found.difference.mean == pytest.approx(0.5)
    # Two rows alone are the paired t test, but for the noise of the test images.
    assert replace(found.noise, image=0).p(found.difference.mean) == pytest.approx(
        stats.ttest_rel([80.4, 81.4, 82.7], [80, 81, 82]).pvalue
    )
    assert found.noise.method == "paired"
    assert found.difference.deviation == pytest.approx(math.sqrt(0.03))
    assert found.by_image is None


def test_rows_without_a_common_seed_are_not_compared():
    base = accuracies({0: 80.0})
    assert accuracies({1: 80.0}, base).contrast.seeds == ()
    assert accuracies({0: 81.0}, base).contrast.seeds == (0,)
    assert base.contrast.seeds == ()
    none = compare(base.done, ())
    assert (none.seeds, none.difference.mean, none.p(), none.by_image) == ((), None, None, None)


def test_one_seed_has_no_p_and_equal_differences_no_interval_of_no_width():
    one = accuracies({0: 81.0}, accuracies({0: 80.0})).contrast
    assert (one.p(), one.difference.low, one.difference.deviation) == (None, None, None)
    equal = accuracies({0: 81.3, 1: 80.3}, accuracies({0: 81.1, 1: 80.1})).contrast
    assert (equal.p(), equal.difference.low) == (None, None)


def test_mcnemar_by_hand():
    # 10 images changed sides, 1 of them for the better: 2 (1 + 10) / 2**10.
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)


def interval(gained, lost, images):
    """Of a single seed, as shares of the images."""
    others = [1] * (images - gained - lost)
    one, other = ([1] * gained + [0] * lost, [0] * gained + [1] * lost)
    found = by_image([(run_of(0, one + others), run_of(0, other + others))])
    return found.low / 100, found.high / 100


def test_agresti_min_by_hand():
    low, high = interval(10, 5, 100)
    error = math.sqrt(16 - 25 / 102) / 102
    assert (low, high) == pytest.approx((5 / 102 - 1.959964 * error, 5 / 102 + 1.959964 * error))


def test_other_seeds_than_the_declared_hold_at_every_look():
    base = accuracies({0: 80.0, 1: 81.1, 2: 82.0})
    row = accuracies({0: 80.4, 1: 81.4, 2: 82.7}, base)
    one, later, none = (replace(row, declared=seeds).contrast for seeds in ((0, 1, 2), (0, 1), ()))
    width = [of.difference.high - of.difference.low for of in (one, none)]
    assert width[0] < width[1] / 2
    assert later.difference.low is None, "two rows with three seeds know too little"
    alone = "paired, the noise of seeds alone"  # how many test images there were is not known
    assert (one.noise.shown, none.noise.shown) == (alone, f"{alone}, always valid")
    assert one.p() < none.p() < later.p()


def test_bits_say_who_changed_sides():
    one, other = [1, 1, 1, 0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 1, 0, 0, 1]
    found = by_image([(run_of(0, one), run_of(0, other))])
    assert (found.gained, found.lost, found.images, found.seeds) == (3, 1, 9, 1)
    assert found.difference == pytest.approx(100 * 2 / 9)
    assert found.p == mcnemar(3, 1)


def test_several_seeds_average_each_image_first():
    one = [run_of(0, [1, 1, 0, 1]), run_of(1, [1, 0, 0, 1])]
    other = [run_of(0, [0, 1, 0, 1]), run_of(1, [1, 0, 1, 1])]
    found = by_image(list(zip(one, other, strict=True)))
    each = np.array([0.5, 0.0, -0.5, 0.0])
    assert (found.gained, found.lost, found.seeds) == (1, 1, 2)
    assert found.difference == pytest.approx(0.0)
    assert found.noise == pytest.approx(100 * each.std(ddof=1) / 2)


@pytest.mark.parametrize("change", [{"data_fingerprint": "g"}, {"correct_count": 4}])
def test_other_test_sets_are_not_compared_by_image(change):
    assert (
        by_image([(run_of(0, [1, 0, 1]), run_of(0, [1, 0, 1]).model_copy(update=change))]) is None
    )
    missing = {"correct": None, "correct_count": None}
    assert (
        by_image(
            [(run_of(0, [1]).model_copy(update=missing), run_of(0, [1]).model_copy(update=missing))]
        )
        is None
    )


def test_mcnemar_rarely_sees_what_is_not_there():
    draws = np.random.default_rng(3)
    wrong = 0
    for _ in range(2000):
        hard = draws.random(400)
        one, other = (draws.random((2, 400)) < 0.6 + 0.35 * (hard > 0.3)).astype(bool)
        wrong += mcnemar(int((one & ~other).sum()), int((~one & other).sum())) < 0.05
    assert wrong / 2000 <= 0.06


@pytest.mark.parametrize("images", [60, 360])
def test_image_intervals_hold_the_truth(images):
    draws, held = np.random.default_rng(images), 0
    gain, loss = 0.09, 0.05
    for _ in range(2000):
        gained, lost, _ = draws.multinomial(images, [gain, loss, 1 - gain - loss])
        low, high = interval(gained, lost, images)
        held += low <= gain - loss <= high
    assert 0.93 <= held / 2000 <= 0.98


@pytest.mark.parametrize("n", [3, 5, 10])
def test_paired_intervals_hold_the_truth(n):
    draws, held = np.random.default_rng(n), 0
    for _ in range(2000):
        shared = draws.normal(0, 0.3, n)
        base = {s: 80 + shared[s] + draws.normal(0, 0.2) for s in range(n)}
        row = {s: 80.5 + shared[s] + draws.normal(0, 0.2) for s in range(n)}
        found = accuracies(row, accuracies(base)).contrast.difference
        held += found.low <= 0.5 <= found.high
    assert 0.93 <= held / 2000 <= 0.97


# -- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 7])
def test_tau_and_its_p_are_scipy_s_without_ties(n):
    draws = np.random.default_rng(n)
    for _ in range(5):
        one, other = draws.normal(size=(2, n))
        *found, method = kendall(one, other)
        want = stats.kendalltau(one, other, alternative="greater", method="exact")
        assert found == pytest.approx([want.statistic, want.pvalue])
        assert method == "exact"


def test_ties_are_respected():
    one, other = [1, 2, 3, 4, 5], [1, 2, 2, 3, 3]
    tau, p, _ = kendall(one, other)
    assert tau == pytest.approx(stats.kendalltau(one, other).statistic)
    score = lambda order: sum(  # noqa: E731
        np.sign(order[j] - order[i]) * np.sign(other[j] - other[i])
        for i, j in itertools.combinations(range(5), 2)
    )
    scores = [score(order) for order in itertools.permutations(one)]
    assert p == pytest.approx(np.mean([s >= score(one) for s in scores]))


def test_seven_rows_need_a_tau_above_0_6():
    """The 5 % edge that Kendall's own tables print for seven rows is 13 of 21 (0.619)."""
    orders = list(itertools.permutations(range(7)))[::211]
    found = [kendall(range(7), order) for order in orders]
    assert any(p < 0.05 for _, p, _ in found)
    assert all((p < 0.05) == (tau > 0.6) for tau, p, _ in found)


def test_many_rows_are_sampled_near_the_exact_value():
    draws = np.random.default_rng(1)
    one = draws.normal(size=12)
    other = one + draws.normal(size=12) * 1.2
    _, p, method = kendall(one, other)
    want = stats.kendalltau(one, other, alternative="greater", method="exact").pvalue
    assert method == "sampled"
    assert p == pytest.approx(want, rel=0.2)


def test_too_few_or_tied_rows_have_no_order():
    assert kendall([1, 2], [1, 2]) is None
    assert kendall([1, 1, 1], [1, 2, 3]) is None


# -- power ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numpy", [1, 2])
@pytest.mark.parametrize("images", [9, 64, 70])
def test_packed_answers_give_the_noise_of_plain_ones(monkeypatch, numpy, images):
    if numpy == 1:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    weights = (1.0, -1.0, -0.5, 0.5)
    bits = np.random.default_rng(images).integers(0, 2, (4, 3, images))
    runs = [[run_of(seed, of.tolist()) for seed, of in enumerate(row)] for row in bits]
    found = contrast(list(zip(weights, runs, strict=True)))
    plain = np.tensordot(weights, bits, 1)
    shared, least = image_noise(plain.sum(1), np.square(plain).sum(1), plain.sum(0))
    assert found.noise.image == pytest.approx(math.sqrt(shared))
    assert found.noise.least == pytest.approx(math.sqrt(least / 3))
    changed = by_image(list(zip(*runs[:2], strict=True)))
    assert changed.gained == (bits[0] > bits[1]).sum()
    assert changed.lost == (bits[0] < bits[1]).sum()
