"""Intervals against printed tables and simulation; formats."""

import math

import numpy as np
import pytest

from lsa_study.analysis.statistics import decimals, signed, t_interval

# Two-sided 95 % points of Student's t as printed in any table, by degrees of freedom.
PRINTED_T = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize(("freedom", "t"), PRINTED_T.items())
def test_known_half_widths(freedom, t):
    n = freedom + 1
    values = [80.0 + k for k in range(n)]
    deviation = math.sqrt(n * (n + 1) / 12)  # of 0, 1, ..., n-1
    found = t_interval(values)
    assert found.mean == pytest.approx(80 + (n - 1) / 2)
    assert found.half == pytest.approx(t * deviation / math.sqrt(n), rel=3e-4)
    assert found.low == pytest.approx(found.mean - found.half)


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = t_interval([81.25])
    assert (one.mean, one.low, one.high, one.half, one.n) == (81.25, None, None, None, 1)
    none = t_interval([])
    assert (none.mean, none.low, none.high, none.n) == (None, None, None, 0)


def test_equal_values_give_their_own_mean():
    found = t_interval([81.1] * 3)
    assert (found.low, found.mean, found.high) == (81.1, 81.1, 81.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match="not all finite"):
        t_interval([1.0, value])


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(n):
    draws = np.random.default_rng(n).normal(81.3, 0.2, (4000, n))
    found = [t_interval(list(row)) for row in draws]
    covered = np.mean([one.low <= 81.3 <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


def test_formats():
    assert t_interval([81.0, 82.0, 83.0]).shown(1) == "82.0 ± 2.5"
    assert t_interval([81.256]).shown(2) == "81.26"
    assert t_interval([]).shown(2) == ""
    assert [signed(v, 1) for v in (0.44, -0.25, 0.0, -0.04, None)] == [
        "+0.4", "−0.2", "0.0", "0.0", "",
    ]  # fmt: skip
    assert [decimals([n]) for n in (None, 360, 10_000, 50_000)] == [1, 1, 2, 2]
    assert (decimals([]), decimals([360, 10_000, None])) == (1, 2)
