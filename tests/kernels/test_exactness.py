"""The criterion itself: what it accepts and what it refuses, whatever the order of torch's sums."""

import pytest
import torch
from exactness import LANES, hold, vectors_of

from lsa_kernels import build

COUNT = 300
TERMS = {"out": COUNT, "x": 1, "w": 1}


def make(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(200, COUNT, generator=draw) for _ in range(2)], torch.ones(200)


def plain(x, w):
    return (x * w).sum(1)


def one_by_one(x, w, bits=torch.float32):
    """Sums in the worst order, each rounded to a type."""
    total = torch.zeros_like(x[:, 0])
    for at in range(COUNT):
        total = (total + x[:, at] * w[:, at]).to(bits).to(x.dtype)
    return total


def one_wrong(x, w):
    """A result of 200 is summed in half precision."""
    out = plain(x, w)
    return torch.where(torch.arange(200) == 7, one_by_one(x, w, torch.float16), out)


def test_sums_in_the_worst_order_are_accepted():
    hold(make, plain, one_by_one, TERMS, lanes=(None,))


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (lambda x, w: one_by_one(x, w, torch.bfloat16), "out: errors of .* on average"),
        (lambda x, w: one_by_one(x, w, torch.float16), "out: errors of .* on average"),
        (one_wrong, "out: "),
        (lambda x, w: plain(x, w.half().float()), "out: errors of .* on average"),
        (lambda x, w: plain(x, w) * float("nan"), "out: "),
        (lambda x, w: plain(x, w.detach()), "w has a gradient or not"),
    ],
    ids=["sums in bfloat16", "sums in half", "one wrong", "a factor in half", "nan", "no gradient"],
)
def test_worse_sums_are_refused(ours, words):
    with pytest.raises(AssertionError, match=words):
        hold(make, plain, ours, TERMS, lanes=(None,))


@pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))
def test_libraries_of_both_widths_lie_side_by_side():
    before = build.library()
    for lanes in LANES:
        with vectors_of(lanes):
            assert build.library().lanes() == lanes
            assert build.window_lanes(2 * lanes, tables=True) == 2 * lanes
            assert build.window_lanes(2 * lanes, tables=False) == lanes
    assert build.library() is before


def test_an_unknown_number_of_lanes_is_refused(monkeypatch):
    monkeypatch.setenv("LSA_KERNELS_LANES", "12")
    assert (
        build.built().reason == "LSA_KERNELS_LANES='12' is unknown; give 8 or 16, or leave it out"
    )
