"""The same operators for GPUs, in Triton, which is imported when a kernel is first asked for."""

from __future__ import annotations

import functools
import importlib.metadata
import re

import torch
from torch import Tensor

# The first whose kernels take tuples.
OLDEST = (3, 3)
# Channels of a head: what a tile of 4 x 4 pixels has registers for.
DEEPEST = 128


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
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


def build_info() -> str:
    """Say that there are kernels for GPUs, by which Triton, or why there are none."""
    if reason := why_missing():
        return f"no Triton kernels: {reason}"
    return f"Triton kernels, triton {importlib.metadata.version('triton')}"


@functools.cache
def about_device(index: int) -> str:
    """What a GPU can do of what the kernels and training want; looked up once in a process.

    Its compute capability, whether it computes in bfloat16 itself, and whether this torch has
    machine code for it.
    """
    major, minor = torch.cuda.get_device_capability(index)
    native = "bfloat16 native" if major >= 8 else "bfloat16 not native: give float16 or float32"
    found = f"compute capability {major}.{minor}, {native}"
    built = torch.cuda.get_arch_list()
    if built and not any(_runs(name, (major, minor)) for name in built):
        # Builds for CUDA 12.8 and later left out what is older than sm_75.
        other = "CUDA 12.6 (cu126)" if (major, minor) < (7, 5) else "another CUDA"
        found += f"; not usable: this torch has code for {', '.join(built)} alone; install one "
        found += f"that was built for {other}"
    return found


def _runs(name: str, device: tuple[int, int]) -> bool:
    """Whether this code, sm_XY or compute_XY, runs there: the latter on all younger devices too."""
    kind, _, number = name.partition("_")
    digits = re.sub(r"\D", "", number)
    code = int(digits[:-1]), int(digits[-1])
    return code <= device and (kind == "compute" or code[0] == device[0])


def too_large(*tensors: Tensor | None) -> str | None:
    """Say which tensor has an image that 32 bits cannot address, or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        sizes, strides = tensor.shape[1:], tensor.stride()[1:]
        if sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) >= 2**31:
            return f"one image of {tuple(tensor.shape)} spans 2**31 numbers or more"
    return None


def kept_shape(v: Tensor) -> list[int]:
    """Shape of the two numbers a pixel that the forward of Eq. 4 keeps."""
    batch, heads, height, width, _ = v.shape
    return [batch, heads, 2, height, width]
