"""Definitions compute in float32 at least, whatever type they are given, and round once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsa_kernels import Eq4Inputs

HALVES = (torch.float16, torch.bfloat16)


def wide(x: Any) -> Any:
    """A tensor of half precision, or such tensors of Eq. 4, in float32; all else as it is."""
    if isinstance(x, Eq4Inputs):
        return Eq4Inputs(*map(wide, x))
    return x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x


def at_least_float32(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a definition its inputs in float32 at least, and keep autocast out of it.

    Without this a sum over taps or keys loses a bit with nearly every doubling of their number,
    and autocast rounds weights of a norm to half precision before they are applied.
    """

    @functools.wraps(definition)
    def computed(x: Any, *others: Any, **options: Any) -> Tensor:
        with without_autocast(_values(x).device.type):
            return definition(wide(x), *map(wide, others), **options)

    return computed


def rounded_once(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, with the result in the type of the first input: the values, or Eq. 4's."""
    exact = at_least_float32(definition)

    @functools.wraps(definition)
    def rounded(x: Any, *others: Any, **options: Any) -> Tensor:
        return exact(x, *others, **options).to(_values(x).dtype)

    return rounded


def _values(x: Any) -> Tensor:
    values: Tensor = x.v if isinstance(x, Eq4Inputs) else x
    return values


def without_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast off on this kind of device; nothing is switched where it is off already."""
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
