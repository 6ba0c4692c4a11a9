"""What torch's FLOP counter sees of the project's own operators.

Torch counts two operations for a multiply-add, and knows matrix products and convolutions only: an
operator without a formula costs it nothing. Formulas here follow the article's convention, as
:mod:`lsa_study.measure` does: applying per-pixel filters costs K*K*C multiply-adds per pixel, and
so does every static filter that is combined with them. A backward pass costs twice its forward
pass: each product has two gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import lsa_kernels

Shape = tuple[int, ...]

FLOPS_PER_PRODUCT = 2


def neighboring(
    q: Shape | None, k: Shape | None, v: Shape, rel_k: Shape | None, rel_q: Shape | None,
    rel_bias: Shape | None, use_qk: bool, norm: str, size: int, *rest: Any, **out: Any,
) -> int:  # fmt: skip
    """Eq. 4: one product per tap and channel for each dot product and for the sum."""
    products = use_qk + (rel_k is not None) + (rel_q is not None) + 1
    return FLOPS_PER_PRODUCT * products * math.prod(v) * size**2


def neighboring_backward(
    grad: Shape, weights: Shape, spreads: Shape, *forward: Any, **out: Any
) -> int:
    """Two gradients of every product."""
    return 2 * neighboring(*forward)


def filters(
    values: Shape, given: Shape | None, mul: Shape | None, add: Shape | None, heads: int, size: int,
    **out: Any,
) -> int:  # fmt: skip
    """Apply filters; combine those of pixels with each static one."""
    combined = sum(part is not None for part in (given, mul, add))
    return FLOPS_PER_PRODUCT * combined * math.prod(values) * size**2


def filters_backward(grad: Shape, *forward: Any, **out: Any) -> int:
    """Two gradients of every product."""
    return 2 * filters(*forward)


def grouped_conv(x: Shape, weight: Shape, bias: Shape | None, **out: Any) -> int:
    """Every tap of every channel of the group."""
    return FLOPS_PER_PRODUCT * math.prod(x) * math.prod(weight[1:])


def grouped_conv_backward(grad: Shape, *forward: Any, **out: Any) -> int:
    """Two gradients of every product."""
    return 2 * grouped_conv(*forward)


def window(
    q: Shape | None, k: Shape | None, v: Shape, rel_k: Shape | None, rel_q: Shape | None,
    rel_bias: Shape | None, excluded: Shape | None, use_qk: bool, norm: str, rows: int,
    columns: int, *rest: Any, **out: Any,
) -> int:  # fmt: skip
    """Eq. 4 on windows: as on neighborhoods, with the window's pixels for taps."""
    products = use_qk + (rel_k is not None) + (rel_q is not None) + 1
    return FLOPS_PER_PRODUCT * products * math.prod(v) * rows * columns


def window_backward(grad: Shape, weights: Shape, spreads: Shape, *forward: Any, **out: Any) -> int:
    """Two gradients of every product."""
    return 2 * window(*forward)


FORMULAS: dict[str, Callable[..., int]] = {
    "neighboring": neighboring,
    "neighboring_backward": neighboring_backward,
    "window": window,
    "window_backward": window_backward,
    "filters": filters,
    "filters_backward": filters_backward,
    "grouped_conv": grouped_conv,
    "grouped_conv_backward": grouped_conv_backward,
}
"""Operator of ``lsa_kernels`` -> its FLOPs, from the shapes of its tensors and its other inputs."""


def register() -> None:
    """Tell torch the formulas; once per process, as :mod:`lsa_study.measure` does when imported."""
    assert lsa_kernels  # which defines the operators
    for name, formula in FORMULAS.items():
        register_flop_formula(getattr(torch.ops.lsa_kernels, name))(formula)
