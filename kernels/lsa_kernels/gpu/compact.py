# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""Norms of the tensor-core kernels: a tile's pixels down, all that each of them meets across.

What is one tap or key a call in ``norms`` is one array (64, 64) here; where a logit is minus
infinity, a pixel does not meet anything.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon

from lsa_kernels.gpu import norms
from lsa_kernels.gpu.halo import products

GAIN = gl.constexpr(norms.GAIN.value)
EPSILON = gl.constexpr(norms.EPSILON.value)
filter_pull = gluon.jit(norms.filter_pull.fn)
rate_of = gluon.jit(norms.rate_of.fn)
slope = gluon.jit(norms.slope.fn)
weigh = gluon.jit(norms.weigh.fn)


@gluon.jit
def normalise(logit, NORM: gl.constexpr, SIDE: gl.constexpr):
    """Weights of a tile's pixels, and the two numbers that the backward finds them by."""
    seen = logit != float("-inf")
    first = gl.zeros([64], gl.float32, gl.SliceLayout(1, products(gl.num_warps())))
    second = first
    if NORM == "softmax":
        first = gl.max(logit, 1)
        weight = gl.exp(logit - first[:, None])
        second = 1.0 / gl.sum(weight, 1)
        weight *= second[:, None]
    elif NORM == "filter_norm":
        count = gl.maximum(gl.sum(seen.to(gl.float32), 1), 1.0)
        first = gl.sum(gl.where(seen, logit, 0.0), 1) / count
        apart = gl.where(seen, logit - first[:, None], 0.0)
        squares = gl.sum(apart * apart, 1)
        second = gl.sqrt_rn(squares / gl.maximum(count - 1, 1.0)) + EPSILON
        weight = apart * (GAIN / SIDE / second)[:, None]
    else:
        weight = gl.where(seen, logit, 0.0)
    return weight, first, second


@gluon.jit
def two_numbers(kept, pixel, plane, mask):
    """The two numbers that are kept of each pixel, ``plane`` apart."""
    first = gl.load(kept + pixel, mask=mask, other=0.0)
    return first, gl.load(kept + plane + pixel, mask=mask, other=1.0)


@gluon.jit
def taken_off(to_weight, weight, seen, second, NORM: gl.constexpr, SIDE: gl.constexpr):
    """What the norm takes off gradients of weights: for the weight, and for all alike."""
    pull = gl.sum(weight * to_weight, 1)
    push = gl.zeros([64], gl.float32, gl.SliceLayout(1, products(gl.num_warps())))
    if NORM == "filter_norm":
        count = gl.maximum(gl.sum(seen.to(gl.float32), 1), 1.0)
        push = gl.sum(gl.where(seen, to_weight, 0.0), 1) / count
        pull = filter_pull(pull, count, second, SIDE)
    return pull, push
