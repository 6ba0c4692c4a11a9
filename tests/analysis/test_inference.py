"""Intervals of contrasts against simulations: they hold the truth, and errors stay rare."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lsa_study.analysis.inference import (
    BESIDE,
    Noise,
    holm,
    image_noise,
    more_runs,
    more_seeds,
    of_values,
    proportion,
    seed_noise,
)
from lsa_study.analysis.statistics import t_interval

IMAGES = 0.4
"""Deviation of a row's accuracy between test sets, points."""


def found(values, image=0.0, *, least=0.0, looks=None):
    """The difference of the first two rows and its noise, the variance ``least`` in a mean."""
    seed, freedom, method = seed_noise((1.0, -1.0), values[:2], values[2:])
    noise = Noise(seed, freedom, image, values.shape[1], method, looks, math.sqrt(least))
    return float(values[0].mean() - values[1].mean()), noise


def of_images(contrast):
    return image_noise(contrast.sum(1), np.square(contrast).sum(1), contrast.sum(0))


def drawn(rng, rows, seeds, *, deviation=0.5, image=0.0):
    values = rng.normal(0, deviation, (rows, seeds)) + rng.normal(0, deviation, seeds)
    return values + rng.normal(0, image, (rows, 1))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("image", [0.0, IMAGES])
def test_intervals_hold_the_truth(rows, seeds, image):
    rng, trials = np.random.default_rng(1), 4000
    held = 0
    for _ in range(trials):
        difference, noise = found(drawn(rng, rows, seeds, image=image), math.sqrt(2) * image)
        held += abs(difference) <= noise.edge(0.05)
    # One degree of freedom and a second source: Hillis' alone can miss one time in nine.
    assert 0.93 <= held / trials <= (0.98 if image and (rows, seeds) == (2, 2) else 0.97)


@pytest.mark.parametrize(("seeds", "times", "least", "welch"), [
    # Below 5 seeds one row's own deviation says too little; with one check at 1 % of the
    # difference alone the first three were held to 0.75, 0.75 and 0.82 of the cases.
    (3, 5, 0.82, 0.6), (3, 10, 0.89, 0.85), (5, 3, 0.86, 0.6),
    (5, 5, 0.92, 0.85), (5, 10, 0.93, 0.95), (10, 3, 0.92, 0.85), (10, 5, 0.93, 0.99),
])  # fmt: skip
@pytest.mark.parametrize("row", [0, 7])
def test_a_row_that_varies_otherwise_keeps_its_own_error(row, seeds, times, least, welch):
    rng, trials = np.random.default_rng(2), 1000
    held = own = 0
    for _ in range(trials):
        values = rng.normal(0, 0.5, (8, seeds))
        values[row] *= times
        difference, noise = found(values + rng.normal(0, 0.5, seeds))
        held += abs(difference) <= noise.edge(0.05)
        own += noise.method == "Welch"
    # One that is not compared is left out of the pool, and widens nothing.
    assert (least if row == 0 else 0.93) <= held / trials <= 0.977
    # The two that are compared are looked at by themselves, each at one in twenty.
    assert own / trials >= welch if row == 0 else own / trials <= 0.13


@pytest.mark.parametrize(("rows", "most", "rare"), [
    ((0.36, 0.36), 0.056, 0.004), ((0.72, 0.36), 0.085, 0.018), ((0.72, 0.72), 0.095, 0.018),
    ((1.0, 0.36), 0.085, 0.02),
])  # fmt: skip
def test_compared_rows_that_vary_twice_as_much_seldom_pass_for_others(rows, most, rare):
    """Held to the others alone, as in one test of all rows, both at 0.72 err in 0.13 and 0.024."""
    rng, trials, p = np.random.default_rng(3), 3000, []
    deviations = np.array([*rows, *[0.36] * 6])[:, None]
    for _ in range(trials):
        values = rng.normal(0, 1, (8, 5)) * deviations + rng.normal(0, 0.2, 5)
        difference, noise = found(values)
        p.append(noise.p(difference))
    assert np.mean(np.array(p) < 0.05) <= most
    assert np.mean(np.array(p) < 0.05 / 21) <= rare


def test_pooling_over_rows_almost_doubles_the_power_of_three_seeds():
    effect, deviation, trials = 0.4, 0.2, 10_000
    for rows in (2, 8):
        rng, hits, freedom = np.random.default_rng(11), 0, 2 * (rows - 1)
        for _ in range(trials):
            values = rng.normal(0, deviation, (rows, 3))
            values[0] += effect
            difference, noise = found(values)
            hits += abs(difference) > noise.edge(0.05)
        edge, size = stats.t.ppf(0.975, freedom), effect / (deviation * math.sqrt(2 / 3))
        power = stats.nct.sf(edge, freedom, size) + stats.nct.cdf(-edge, freedom, size)
        # Of Student's test with 2 and with 14 degrees of freedom, which no check can exceed.
        assert round(power, 2) == {2: 0.29, 8: 0.63}[rows]
        error = math.sqrt(power * (1 - power) / trials)
        checked = power - 0.05 * (rows > 2)  # each compared row is held apart one time in twenty
        assert hits / trials == pytest.approx(checked, abs=2 * error)  # 0.01 with 8 rows


def ever_wrong(rows, image, looks, declared=0):
    """Share of true nulls that are decided by who looks after every seed from 2 to 20."""
    rng, trials = np.random.default_rng(4), 500
    wrong = 0
    for _ in range(trials):
        values = drawn(rng, rows, 20, deviation=0.3, image=image)
        seen = (
            found(values[:, :n], math.sqrt(2) * image, looks=None if n == declared else looks)
            for n in range(2, 21)
        )
        wrong += any(abs(difference) > noise.edge(0.05) for difference, noise in seen)
    return wrong / trials


@pytest.mark.parametrize(("rows", "image"), [(2, 0.0), (8, 0.0), (8, 0.2)])
def test_looking_after_every_seed_up_to_20_decides_few_true_nulls(rows, image):
    assert ever_wrong(rows, image, 1.0) <= 0.05


def test_looks_beside_the_declared_seeds_add_at_most_their_part():
    """The look at the declared seeds errs in 5 of 100 alone; all others share one more."""
    alone, all_looks = ever_wrong(8, 0.0, 1e-9, declared=3), ever_wrong(8, 0.0, BESIDE, declared=3)
    assert 0.03 <= alone <= all_looks <= alone + 0.05 * BESIDE


def test_of_30_claims_hardly_one_family_in_20_decides_a_wrong_one():
    rng, families = np.random.default_rng(5), 400
    wrong = 0
    for _ in range(families):
        values = rng.normal(0, 0.25 / math.sqrt(2), (31, 3))
        values[1:11] += 0.3
        p = []
        for row in range(1, 31):
            pair = values[[row, 0]]
            rest = np.delete(values, [0, row], axis=0)
            difference, noise = found(np.vstack([pair, rest]))
            p.append((noise.p(difference), row > 10 or difference < 0))
        adjusted = holm([value for value, _ in p])
        wrong += any(a <= 0.05 and null for a, (_, null) in zip(adjusted, p, strict=True))
    assert wrong / families <= 0.05


def test_an_interval_ends_where_its_p_value_says():
    for looks in (None, BESIDE, 1.0):
        for least in (0.0, 0.5):
            noise = Noise(0.2, 14, 0.1, 3, "pooled over 8 rows", looks, least)
            assert noise.p(noise.edge(0.05)) == pytest.approx(0.05, rel=1e-6)
            assert noise.p(noise.edge(0.2)) == pytest.approx(0.2, rel=1e-6)


def test_images_that_all_seeds_share_are_told_from_each_seed_s_own():
    rng, images = np.random.default_rng(6), 20_000
    always = rng.choice([-1, 0, 1], images, p=[0.1, 0.8, 0.1])
    sometimes = rng.choice([-1, 0, 1], (4, images), p=[0.05, 0.9, 0.05])
    shared, least = of_images(always + sometimes)
    assert shared * images == pytest.approx(1e4 * 0.2, rel=0.05)
    assert least * images == pytest.approx(1e4 * 0.1, rel=0.05)


PROPORTIONS = {"images lead": (1.0, 0.0), "both": (1.0, 0.02), "seeds lead": (1.0, 0.06),
               "rows much alike": (0.2, 0.02)}  # fmt: skip
"""How far rows differ in which images are easy, and the deviation of runs between seeds."""
# At 2 seeds of 2 rows the only deviation has one degree of freedom, and Student's interval misses
# by deviations far below those that counts of images allow, which are not believed here. Whatever
# does so is too careful where images lead; at 3 seeds it hardly shows.
CAREFUL = {(2, 2): 0.998, (2, 3): 0.985}


@pytest.mark.parametrize("proportion", PROPORTIONS)
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("rows", [2, 8])
def test_intervals_of_answers_by_image_hold_the_truth(rows, seeds, proportion):
    """Rows of equal worth: new seeds and a new test set in every trial, as runs record them."""
    rng, trials, images = np.random.default_rng(7), 1000, 200
    apart, deviation = PROPORTIONS[proportion]
    held = 0
    for _ in range(trials):
        own = rng.uniform(-1, 1, (rows, 1, images)) * math.sqrt(apart)
        easy = own + rng.uniform(-1, 1, images) * math.sqrt(1 - apart)
        chance = 0.5 + 0.45 * easy + rng.normal(0, deviation, (rows, seeds, 1))
        right = (rng.random((rows, seeds, images)) < chance).astype(np.int8)
        shared, least = of_images(right[0] - right[1])
        difference, noise = found(100 * right.mean(2), math.sqrt(shared), least=least / seeds)
        held += abs(difference) <= noise.edge(0.05)
    assert 0.93 <= held / trials <= CAREFUL.get((rows, seeds), 0.97)


@pytest.mark.parametrize(("rows", "seeds", "image", "share"), [
    (2, 3, 0.0, 0.8), (8, 3, 0.0, 0.73), (8, 3, 0.2, 0.78), (8, 5, 0.0, 0.76), (8, 5, 0.2, 0.79),
])  # fmt: skip
def test_resolvable_differences_are_found_in_about_four_of_five_cases(rows, seeds, image, share):
    """Somewhat less often where a compared row passes for one that varies more."""
    error = 0.2 * math.sqrt(2 / seeds)
    size = Noise(error, (rows - 1.0) * (seeds - 1), math.sqrt(2) * image, seeds, "").resolvable
    rng, trials, hits = np.random.default_rng(8), 4000, 0
    for _ in range(trials):
        values = drawn(rng, rows, seeds, deviation=0.2, image=image)
        values[0] += size
        difference, noise = found(values, math.sqrt(2) * image)
        hits += abs(difference) > noise.edge(0.05)
    assert hits / trials == pytest.approx(share, abs=0.02)


def test_a_second_source_never_narrows_an_interval_and_least_bounds_it():
    alone, both = (Noise(0.5, 1, image, 2, "paired") for image in (0.0, 0.6))
    assert both.edge(0.05) >= alone.edge(0.05)
    assert Noise(0.0, 1, 0.3, 2, "paired", BESIDE).edge(0.05) == math.inf
    zero = Noise(0.0, 1, 0.3, 2, "paired", least=0.4)
    assert zero.edge(0.05) == pytest.approx(1.96 * 0.5, abs=1e-4)
    assert zero.p(0.98) == pytest.approx(0.05, rel=1e-3)


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, 0.06, 0.06]


def test_noise_of_values_alone_is_student_s():
    values = t_interval([1.0, 2.0, 4.0, 4.5])
    noise = of_values(values)
    assert values.mean - noise.edge(0.05) == pytest.approx(values.low)
    assert noise.p(values.mean) == pytest.approx(stats.ttest_1samp(values.values, 0).pvalue)
    assert of_values(t_interval([1.0])) is None
    assert of_values(t_interval([1.0, 1.0])) is None


def test_so_many_more_runs_of_the_same_share_differ_from_a_coin():
    assert more_runs(5, 5, 0.05) == (1, None, None), "6 of 6: p = 1/32"
    assert more_runs(0, 1, 0.05) == (5, None, None)
    assert more_runs(2, 4, 0.05) is None
    about, _, _ = more_runs(3, 4, 0.05)
    assert stats.binomtest(round(0.75 * (4 + about)), 4 + about, 0.5).pvalue <= 0.05


def test_one_run_of_one_says_nothing_of_a_share():
    one = proportion(0, 1)
    assert (one.low, one.high) == (0.0, pytest.approx(0.975))
    six = stats.binomtest(6, 6).proportion_ci(method="exact")
    assert proportion(6, 6).low == pytest.approx(six.low)


def test_more_seeds_are_more_for_smaller_distances_and_none_beyond_the_images():
    noise = Noise(0.2, 14, 0.05, 3, "pooled over 8 rows")
    near, far = more_seeds(noise, 0.3), more_seeds(noise, 0.6)
    assert near[0] > far[0] > 0
    assert near[1] <= near[0]
    none, fewest, most = more_seeds(Noise(0.2, 14, 0.3, 3, "paired"), 0.2)
    assert (none, most) == (None, None)
    assert fewest == more_seeds(Noise(0.2, 14, 0.3, 3, "paired"), 0.2 + math.hypot(0.2, 0.3))[0]


def test_the_declared_seeds_that_are_left_decide_by_their_narrow_interval():
    some = Noise(0.18, 21, 0.12, 4, "pooled over 8 rows", BESIDE, 0.2)
    assert more_seeds(some, 0.9)[0] == 2
    assert more_seeds(replace(some, declared=5), 0.9)[0] == 1
    assert more_seeds(replace(some, declared=9), 0.9)[0] == 2, "the interval of every look is first"
    for seeds, declared, looks, of in (
        ([0, 1], [0, 1, 2], BESIDE, 3),
        ([0, 1, 2], [2, 1, 0], None, None),
        ([0, 5], [0, 1, 2], BESIDE, None),
        ([0, 1], [], 1.0, None),
    ):
        known = some.looked(seeds, declared)
        assert (known.looks, known.declared) == (looks, of)
