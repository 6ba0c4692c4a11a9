"""Intervals of contrasts against simulations: they hold the truth, and errors stay rare."""

import math

import numpy as np
import pytest
from scipy import stats

from lsa_study.analysis.inference import (
    BESIDE,
    Noise,
    holm,
    image_noise,
    more_seeds,
    proportion,
    seed_noise,
)

IMAGES = 0.4
"""Deviation of a row's accuracy between test sets, points."""


def found(values, image=0.0, *, looks=None):
    seed, freedom, method = seed_noise((1.0, -1.0), values[:2], values[2:])
    noise = Noise(seed, freedom, image, values.shape[1], method, looks)
    return float(values[0].mean() - values[1].mean()), noise


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
    assert 0.93 <= held / trials <= 0.97


def test_rows_that_vary_otherwise_keep_their_own_error():
    rng, trials = np.random.default_rng(2), 3000
    held = welch = 0
    for _ in range(trials):
        values = drawn(rng, 8, 5)
        values[0] *= 6
        difference, noise = found(values)
        held += abs(difference) <= noise.edge(0.05)
        welch += noise.method == "Welch"
    # Pooled without the check, three of four.
    assert held / trials >= 0.88
    assert welch / trials >= 0.7


def test_pooling_over_rows_doubles_the_power_of_three_seeds():
    rng, trials = np.random.default_rng(3), 4000
    power = []
    for rows in (2, 8):
        hits = 0
        for _ in range(trials):
            values = rng.normal(0, 0.2, (rows, 3))
            values[0] += 0.4
            difference, noise = found(values)
            hits += abs(difference) > noise.edge(0.05)
        power.append(hits / trials)
    assert power[0] == pytest.approx(0.30, abs=0.03)
    assert power[1] == pytest.approx(0.63, abs=0.03)


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
        noise = Noise(0.2, 14, 0.1, 3, "pooled over 8 rows", looks)
        assert noise.p(noise.edge(0.05)) == pytest.approx(0.05, rel=1e-6)
        assert noise.p(noise.edge(0.2)) == pytest.approx(0.2, rel=1e-6)


def test_images_that_all_seeds_share_are_told_from_each_seed_s_own():
    rng, images = np.random.default_rng(6), 20_000
    always = rng.choice([-1, 0, 1], images, p=[0.1, 0.8, 0.1])
    sometimes = rng.choice([-1, 0, 1], (4, images), p=[0.05, 0.9, 0.05])
    shared, least = image_noise((always + sometimes).astype(np.int8))
    assert shared * images == pytest.approx(1e4 * 0.2, rel=0.05)
    assert least * images == pytest.approx(1e4 * 0.1, rel=0.05)


@pytest.mark.parametrize(("rows", "seeds", "most"), [
    # Two rows alone tell little of seeds; where images are most of the noise, that is too careful.
    (2, 2, 1.0), (2, 3, 0.98), (2, 5, 0.97), (8, 2, 0.97), (8, 3, 0.97), (8, 5, 0.97),
])  # fmt: skip
def test_intervals_of_answers_by_image_hold_the_truth(rows, seeds, most):
    """Rows of equal worth: new seeds and a new test set in every trial, as runs record them."""
    rng, trials, images = np.random.default_rng(7), 1200, 300
    held = 0
    for _ in range(trials):
        # Whether an image is easy depends on the row; how good a run is, on its seed.
        chance = 0.5 + 0.45 * rng.uniform(-1, 1, (rows, 1, images))
        chance = np.clip(chance + rng.normal(0, 0.02, (rows, seeds, 1)), 0, 1)
        right = (rng.random((rows, seeds, images)) < chance).astype(np.int8)
        shared, least = image_noise(right[0] - right[1])
        values = 100 * right.mean(2)
        seed, freedom, method = seed_noise((1.0, -1.0), values[:2], values[2:], least)
        noise = Noise(seed, freedom, math.sqrt(shared), seeds, method)
        held += abs(values[0].mean() - values[1].mean()) <= noise.edge(0.05)
    assert 0.93 <= held / trials <= most


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, 0.06, 0.06]


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
    assert more_seeds(Noise(0.2, 14, 0.3, 3, "paired"), 0.2) is None
