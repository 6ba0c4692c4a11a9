"""How tests of the kernels judge rounding: against float64, beside the plain definition."""

import contextlib
import os
from unittest import mock

import torch

from lsa_kernels import build

SEEDS = range(4)
LANES = (8, 16)
NUDGES = 2
"""Times that the inputs of a seed are nudged."""
BITS = 14
"""What a planted fault leaves of float32's 24."""
SURE = 4
"""Lambda of Higham and Mary: one error in 1,500 may be larger, were all terms of one size."""


@contextlib.contextmanager
def vectors_of(lanes):
    """Let the C++ kernels be those with so many floats a vector; None leaves them as they are.

    A library of the other width is compiled with -O1: it takes a quarter of the time, and the sums
    are the same, in the same order.
    """
    native = lanes is None or build.library().lanes() == lanes
    flags = f"{os.environ.get('CXXFLAGS', '')} -O1"
    chosen = {} if native else {"LSA_KERNELS_LANES": str(lanes), "CXXFLAGS": flags}
    with mock.patch.dict(os.environ, chosen):
        assert native or build.library().lanes() == lanes
        yield


def run(call, tensors, gradient, dtype):
    """Output and all gradients, in float64."""
    leaves = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
    out = call(*leaves)
    assert out.dtype == dtype
    out.backward(gradient.to(dtype))
    found = [out.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]
    return [None if t is None else t.double() for t in found]


def hold(make, plain, ours, terms, *, dtype=torch.float32, lanes=LANES, seeds=SEEDS):
    r"""Refuse a kernel that rounds worse than sums of its length have to.

    Let u be half a unit in the last place of ``dtype``, and n the number of terms that the longest
    chain of sums adds up for a result. A sum of products in any order is the exact sum of products
    whose factors are off by a relative :math:`\delta`: at most n u, and hardly ever more than
    :math:`\lambda \sqrt n \, u` (Higham and Mary, A new approach to probabilistic rounding error
    analysis, 2019). So what n has to do with the result is seen in float64, without summing in
    ``dtype`` at all: nudge every factor, which are all inputs and the output's gradient, by a
    random relative error of at most u, and see how far the result moves. This *response* knows how
    the case is conditioned, and is the same on every processor. Two bounds follow:

    - The root mean square of all errors of all seeds is at most twice that of the plain
      definition, or of sums one term after the other if that is more. Such a sum of n terms of
      random sign and like size has partial sums of :math:`\sqrt k` terms' size, each rounded by
      :math:`u / \sqrt 6`, together :math:`u n / \sqrt{12}`. The response is
      :math:`u \sqrt{2 n / 3}` of a term's size: a factor of :math:`\sqrt{n / 8}`. (The plain
      definition's errors are half as large in the median of our cases. They alone would not do:
      where a seed has one ill-conditioned number, its error is most of the sum, and luck on either
      side.)
    - The largest error is at most :math:`\lambda \sqrt n` times the largest response, lambda 4.

    Args:
        make: from a seed to inputs and the output's gradient.
        plain: the definition, from inputs to the output. ours: the kernel, called likewise.
        terms: for the output and every input's gradient, by name, how many terms are summed.
        lanes: floats of a vector that the kernel is tried with; (None,) for kernels without.
    """
    unit = torch.finfo(dtype).eps / 2
    exact, rounded, moved, found = [], [], [], {lane: [] for lane in lanes}
    for seed in seeds:
        tensors, gradient = make(seed)
        given = [None if t is None else t.to(dtype) for t in (*tensors, gradient)]
        want = run(plain, given[:-1], given[-1], torch.float64)
        rounded.append(errors(run(plain, given[:-1], given[-1], dtype), want))
        draw = torch.Generator().manual_seed(seed)
        for _ in range(NUDGES):
            *nudged, push = (None if t is None else nudge(t.double(), unit, draw) for t in given)
            moved.append(errors(run(plain, nudged, push, torch.float64), want))
        for lane in lanes:
            with vectors_of(lane):
                ours_found = run(ours, given[:-1], given[-1], dtype)
            for name, e, f in zip(terms, want, ours_found, strict=True):
                assert (e is None) == (f is None), f"{name} has a gradient or not, unlike the plain"
            found[lane].append(errors(ours_found, want))
        exact.append(want)
    for at, (name, number) in enumerate(terms.items()):
        if exact[0][at] is None:
            continue
        for lane in lanes:
            about = name if lane is None else f"{name}, {lane} lanes"
            judge(about, number, *([x[at] for x in each] for each in (rounded, moved, found[lane])))


def judge(about, number, plain, response, ours):
    """Hold the errors of one result to the two bounds of ``hold``."""
    allowed = 2 * max(root_mean_square(plain), (number / 8) ** 0.5 * root_mean_square(response))
    error = root_mean_square(ours)
    assert error <= allowed, f"{about}: errors of {error:.2e} on average, may be {allowed:.2e}"
    allowed = SURE * number**0.5 * largest(response)
    error = largest(ours)
    assert error <= allowed, f"{about}: an error of {error:.2e}, may be {allowed:.2e}"


def nudge(tensor, unit, draw):
    relative = 2 * torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype) - 1
    return tensor * (1 + unit * relative)


def errors(found, want):
    return [None if e is None or f is None else f - e for f, e in zip(found, want, strict=True)]


def root_mean_square(tensors):
    return torch.cat([t.flatten() for t in tensors]).square().mean().sqrt().item()


def largest(tensors):
    # An error that is no number is the largest.
    return torch.cat([t.flatten() for t in tensors]).abs().max().item()


def chosen(terms, call):
    """Give a call of Eq. 4 what these terms read."""

    def with_terms(q, k, v, rel_k, rel_q, bias):
        return call(
            q if {"qk", "q_rk"} & set(terms) else None,
            k if {"qk", "rq_k"} & set(terms) else None,
            v,
            rel_k if "q_rk" in terms else None,
            rel_q if "rq_k" in terms else None,
            bias if "bias" in terms else None,
            "qk" in terms,
        )

    return with_terms


def terms_of_eq4(depth, taps, pixels):
    """Three products' channels; the norm's mean and spread over the taps and what they weigh.

    Tables add up those of all pixels of all images.
    """
    number = 3 * depth + 3 * taps
    maps = dict.fromkeys(("out", "dq", "dk", "dv"), number)
    return maps | dict.fromkeys(("drel_k", "drel_q", "drel_bias"), number + pixels)


def coarse(tensor, bits):
    """Rounded to so many bits; the gradient passes unchanged."""
    fraction, exponent = torch.frexp(tensor.detach())
    rounded = torch.ldexp(torch.round(fraction * 2**bits) / 2**bits, exponent)
    return tensor + (rounded - tensor).detach()


def spoiled(call, at, bits):
    """A kernel with one fault: ``at``, an input's number, "out" or "gradient", bits are lost."""

    def with_fault(*tensors):
        if isinstance(at, int):
            tensors = [coarse(t, bits) if i == at else t for i, t in enumerate(tensors)]
        out = call(*tensors)
        if at == "out":
            out = coarse(out, bits)
        if at == "gradient":
            out.register_hook(lambda gradient: coarse(gradient, bits))
        return out

    return with_fault


def hold_for_any_threads(find):
    """``find`` gives the same tensors on one thread, on two, and on two again."""
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            found.append(find())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
