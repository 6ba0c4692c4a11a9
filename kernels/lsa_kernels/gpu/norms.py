# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
"""From logits to weights and back, for both areas of Eq. 4: arithmetic of one tap or key a call.

Two numbers a pixel are kept of the forward, from which the backward finds the weights again:

- softmax: the largest logit, and 1 over the sum;
- filter norm: mean, and spread (deviation plus epsilon).

``SIDE`` is that of a square of as many pixels as the area has.
"""

from __future__ import annotations

import triton
import triton.language as tl

GAIN = tl.constexpr(1.4142135623730951)
EPSILON = tl.constexpr(1e-10)


@triton.jit
def rate_of(second, NORM: tl.constexpr, SIDE: tl.constexpr):
    """What a pixel's weights are multiplied with, from the second number that is kept."""
    rate = second
    if NORM == "filter_norm":
        rate = GAIN / SIDE / second
    return rate


@triton.jit
def weigh(logit, seen, first, rate, NORM: tl.constexpr):
    """Logits to weights, with what the forward found out about each pixel."""
    if NORM == "softmax":
        weight = tl.exp(logit - first) * rate
    elif NORM == "filter_norm":
        weight = (logit - first) * rate
    else:
        weight = logit
    return tl.where(seen, weight, 0.0)


@triton.jit
def soften(logit, seen, first, second):
    """One step of softmax: largest logit and sum so far, what fades the rest, the new weight."""
    logit = tl.where(seen, logit, float("-inf"))
    top = tl.maximum(first, logit)
    # Before the first tap that has a say, nothing must come of inf - inf.
    base = tl.where(top == float("-inf"), 0.0, top)
    fade = tl.exp(first - base)
    weight = tl.exp(logit - base)
    return top, second * fade + weight, fade, weight


@triton.jit
def grow(logit, seen, count, mean, squares):
    """One step of Welford's mean and squares: both and the count with one more logit."""
    count += seen.to(tl.float32)
    apart = tl.where(seen, logit - mean, 0.0)
    mean += apart / tl.maximum(count, 1.0)
    return count, mean, squares + apart * (logit - mean)


@triton.jit
def spread(count, squares):
    """Deviation plus epsilon."""
    return tl.sqrt_rn(squares / tl.maximum(count - 1, 1.0)) + EPSILON


@triton.jit
def slope(to_weight, weight, seen, rate, pull, push, NORM: tl.constexpr):
    """Gradients of weights to gradients of logits.

    ``pull`` and ``push`` are what the norm takes off: for the weight, and for all alike.
    """
    if NORM == "softmax":
        found = weight * (to_weight - pull)
    elif NORM == "filter_norm":
        found = rate * (to_weight - push - pull * weight)
    else:
        found = to_weight
    return tl.where(seen, found, 0.0)


@triton.jit
def filter_pull(pull, count, second, SIDE: tl.constexpr):
    """What filter norm takes off for a weight, from the gradient of the output times the output."""
    # With w = G x / (s + e): x = w (s + e) / G, and s changes by x / ((n - 1) s).
    deviation = second - EPSILON
    share = second * SIDE * SIDE / (2 * tl.maximum(count - 1, 1.0) * deviation)
    return tl.where(deviation > 0, pull * share, 0.0)
