"""The same operators for GPUs, in Triton (and its Gluon), imported when a kernel is asked for."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lsa_kernels.build import constant_in_graphs

# The first whose kernels take tuples.
OLDEST = (3, 3)
# Channels of a head: what a tile of 4 x 4 pixels has registers for.
DEEPEST = 128
TILES: dict[str, int] = {}
"""The number of the tile of every kernel and shape that was timed; the first serves all others."""
TIMING = False
"""Whether tiles that are not in ``TILES`` are timed when a kernel is started."""


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
    if torch.cuda.is_available():
        local_cache()
    return None


@constant_in_graphs
def why_not_tried(family: str, dtype: torch.dtype, index: int | None) -> str | None:
    """Say why a family's kernels do not work on a GPU, or None; see ``tried``.

    The first call of a process compiles and tries them, which takes seconds.
    """
    if not torch.cuda.is_available():
        return None
    from lsa_kernels.gpu import tried

    return tried.why_not(family, dtype, index)


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


def prefer_tiles(chosen: Mapping[str, int]) -> None:
    """Let kernels be started with these tiles from now on, as ``timed_tiles`` found them."""
    TILES.clear()
    TILES.update(chosen)


@contextlib.contextmanager
def timed_tiles() -> Iterator[dict[str, int]]:
    """Time the tiles of every kernel that is started in the block; gives what was found so far."""
    global TIMING
    TIMING = True
    try:
        yield TILES
    finally:
        TIMING = False


def local_cache() -> Path | None:
    """Where Triton keeps what it compiled: a folder on this node's own disk; None if it has none.

    Processes on many nodes would compile into one folder of a shared home at once. Whoever set
    ``TRITON_CACHE_DIR`` or ``TRITON_HOME`` is obeyed. The folder is the user's alone, since
    programs are loaded from it.
    """
    if "TRITON_CACHE_DIR" in os.environ:
        return Path(os.environ["TRITON_CACHE_DIR"])
    if "TRITON_HOME" in os.environ:
        return None
    try:
        folder = Path(tempfile.gettempdir()) / f"lsa-triton-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        facts, disk = folder.lstat(), os.statvfs(folder)
    except OSError:
        return None
    ours = (
        stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
    )
    if not ours or disk.f_flag & os.ST_NOEXEC:
        return None
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    return folder


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
