"""The same operators for GPUs, in Triton (and its Gluon), imported when a kernel is asked for."""

from __future__ import annotations

import functools
import importlib.metadata

import torch
from torch import Tensor

from lsa_kernels.build import constant_in_graphs

# The first whose kernels take tuples.
OLDEST = (3, 3)
# Channels of a head: what a tile of 4 x 4 pixels has registers for.
DEEPEST = 128


@constant_in_graphs
def why_missing() -> str | None:
    """Say why there are no kernels for GPUs here, or None; looked up once in a process."""
    return _missing()


@functools.cache
def _missing() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"triton {version} is installed, the kernels need {'.'.join(map(str, OLDEST))}"
    return None


def why_no_tensor_cores(area: str = "neighborhoods") -> str | None:
    """Say why this area, neighborhoods or windows, has no tensor cores on this device, or None.

    The first call of a process compiles and tries their kernels, which takes seconds.
    """
    if (reason := _missing()) is not None:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    from lsa_kernels.gpu import tensor_cores

    here = torch.device("cuda", torch.cuda.current_device())
    return tensor_cores.why_not_proven(tensor_cores.USUAL[area], here)


def too_large(*tensors: Tensor | None) -> str | None:
    """Say which tensor has an image that 32 bits cannot address, or None."""
    for t in (t for t in tensors if t is not None):
        if sum((n - 1) * by for n, by in zip(t.shape[1:], t.stride()[1:], strict=True)) >= 2**31:
            return f"one image of {tuple(t.shape)} spans 2**31 numbers or more"
    return None


def kept_shape(v: Tensor) -> list[int]:
    """Shape of the two numbers a pixel that the forward of Eq. 4 keeps."""
    batch, heads, height, width, _ = v.shape
    return [batch, heads, 2, height, width]
