"""Run Eq. 4 by tensor cores, where a probe has shown that this works."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsa_kernels.gpu import probe
from lsa_kernels.operators import Eq4Inputs, eq4_outputs, heads_last, packed

TESTED = ((3, 8),)
"""Versions of Triton whose Gluon these kernels were compiled with; it is experimental."""
SIZES = (3, 5, 7)
"""Sides of neighborhoods: the taps of a tile of 8 x 8 must lie in 16 x 16."""
WINDOWS = range(3, 8)
"""Sides of windows, square ones: 8 x 8 fit a tile, but not registers."""
DEPTHS = range(16, 65, 8)
"""Channels of a head, copied in groups of 8, and at most as many as registers hold."""
WINDOW_DEPTHS = range(16, 33, 8)
"""The same of windows, whose backward holds the gradients of larger tables."""
WALK = 8
"""Tiles that a program works on one after the other, with one share of the tables' gradients."""


class Case(NamedTuple):
    """What a kernel is compiled for, beside the device."""

    kind: torch.dtype
    depth: int
    size: int
    norm: str
    area: str
    """Neighborhoods by their border, zero or mask; window, or shifted: one with excluded pairs."""
    terms: tuple[bool, ...]
    """Which of q, k, rel_k, rel_q and the bias are there, and whether q.k is in."""

    @property
    def of_windows(self) -> bool:
        """Whether the area is a window."""
        return self.area in ("window", "shifted")

    def __str__(self) -> str:
        """The same for a reader; the terms by their number."""
        kind, terms = str(self.kind).removeprefix("torch."), sum(self.terms[2:])
        area, way = "neighborhoods", f"border {self.area}"
        if self.of_windows:
            area, way = "windows", "some pairs excluded" if self.area == "shifted" else "all pairs"
        return (
            f"{area} of {self.size} x {self.size}, {self.norm}, {way}, "
            f"{terms} terms, {self.depth} channels, {kind}"
        )


USUAL = {
    area: Case(torch.bfloat16, 32, 7, "softmax", way, (True,) * 6)
    for area, way in (("neighborhoods", "zero"), ("windows", "shifted"))
}
"""What stands for all cases of an area where none is given."""


def case_of(x: Eq4Inputs, norm: str, size: int, area: str) -> Case:
    """What these inputs need."""
    there = tuple(t is not None for t in (*x[:2], *x.tables))
    return Case(x.v.dtype, x.v.shape[-1], size, norm, area, (*there, x.use_qk))


def why_not(x: Eq4Inputs, norm: str, size: int, area: str) -> str | None:
    """Say why these inputs are left to the kernels without tensor cores, or None."""
    if not x.v.is_cuda:
        return "the values are not on a GPU"
    if any(t is not None and t.dtype != x.v.dtype for t in x[:2]):
        return "maps are of different types"
    case = case_of(x, norm, size, area)
    return why_never(case) or why_not_proven(case, x.v.device)


def why_never(case: Case) -> str | None:
    """Say why no device has this case, or None."""
    if case.kind not in (torch.bfloat16, torch.float16):
        return f"maps are {case.kind}, tensor cores multiply bfloat16 and float16".replace(
            "torch.", ""
        )
    sizes, depths = (WINDOWS, WINDOW_DEPTHS) if case.of_windows else (SIZES, DEPTHS)
    if case.size not in sizes:
        return f"size={case.size} does not fit a tile; known: {', '.join(map(str, sizes))}"
    if case.depth not in depths:
        return f"heads have {case.depth} channels, known: 16 to {depths[-1]} in steps of 8"
    return None


def why_not_proven(case: Case, device: torch.device) -> str | None:
    """Say why this case does not work on this device, or None; found out once in a process."""
    known = _proven(device.index or 0)
    if case not in known:
        if torch.cuda.is_current_stream_capturing():
            # Nothing can be tried in there, and the next call may.
            return "not tried yet, and a CUDA graph is being captured"
        known[case] = why_not_here(device) or _tried(case, device)
        if known[case] is not None:
            warnings.warn(f"no tensor cores for {case}: {known[case]}", stacklevel=2)
    return known[case]


@functools.cache
def _proven(device: int) -> dict[Case, str | None]:
    return {}


@functools.cache
def why_not_here(device: torch.device) -> str | None:
    """Say why no case can work on this device, or None."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80, or not NVIDIA's"
    return why_untested()


def why_untested() -> str | None:
    """Say that these kernels were not compiled with the Triton that is installed, or None."""
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) in TESTED:
        return None
    tested = ", ".join(".".join(map(str, each)) for each in TESTED)
    return f"triton {version} is installed, its Gluon was tested in {tested}"


def _tried(case: Case, device: torch.device) -> str | None:
    """Compare this case with the definition on a small map; say what differs, or None."""

    def attempt() -> str | None:
        try:
            with torch.cuda.device(device):
                run = (window_forward, window_backward) if case.of_windows else (forward, backward)
                return probe.compare(case, device, *run)
        except Exception as error:  # whatever it is, there are other kernels
            return f"{type(error).__name__}: {error}".split("\n", 1)[0]

    # A thread has none of its caller's modes: of gradients, autocast or dispatch.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(attempt).result()


def parts(wide: int, room: int) -> int:
    """Into how many parts all pairs of a tile and its halo are cut, for so much shared memory.

    Raises:
        ValueError: they do not fit in two parts either.
    """
    for found in (1, 2):
        if shared_memory(wide, found) <= room:
            return found
    raise ValueError(f"{room} bytes of shared memory, two parts need {shared_memory(wide, 2)}")


def shared_memory(wide: int, cut: int) -> int:
    """Bytes that the backward needs: four maps and two tables, and all pairs or a band."""
    pairs, band = 4 * 64 * (256 // cut + 8), 2 * 64 * (256 + 64)
    return 2 * wide * (2 * 64 + 2 * 256 + 2 * 64) + max(pairs, band)


def padded(depth: int) -> int:
    """Channels with those that fill them up to a power of two."""
    return 1 << (depth - 1).bit_length()


def warps(kernel: str, wide: int, cut: int = 1) -> int:
    """Warps of a program: as few as hold it in registers."""
    return 4 if kernel.endswith("forward_kernel") and wide <= 32 and cut == 1 else 8


def kernel_of(name: str) -> Any:
    """A kernel by its name."""
    from lsa_kernels.gpu import tensor_kernels, window_tensor_kernels

    return getattr(window_tensor_kernels if name.startswith("window") else tensor_kernels, name)


def start(kernel: str, programs: int, on: Tensor, *given: Any, **constants: Any) -> None:
    """Start a kernel by name."""
    with torch.cuda.device(on.device):
        kernel_of(kernel)[(programs,)](
            *given,
            **constants,
            num_warps=warps(kernel, constants["WIDE"], constants.get("PARTS", 1)),
            enable_fp_fusion=True,
        )


def room_of(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def constants(x: Eq4Inputs, norm: str, size: int) -> dict[str, Any]:
    """What all kernels are compiled for."""
    depth = x.v.shape[-1]
    fixed = {"NORM": norm, "SIDE": size, "DEPTH": depth, "WIDE": padded(depth)}
    return {"USE_QK": x.use_qk, **fixed}


def cut(v: Tensor) -> dict[str, int]:
    """What the kernels of neighborhoods are compiled for besides."""
    return {"PARTS": parts(padded(v.shape[-1]), room_of(v.device))}


def spans(v: Tensor) -> int:
    """Programs of one head of one image."""
    height, width = v.shape[2:4]
    return -(-(-(-height // 8) * -(-width // 8)) // WALK)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if every pixel can be copied in groups of 8 channels, else a copy."""
    steps, last = tensor.stride()[:-1], tensor.stride(-1)
    fits = last == 1 and not any(step % 8 for step in steps) and not tensor.data_ptr() % 16
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def ready(tables: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Tables as the kernels read them, of one type, so that a case is compiled once."""
    return [None if t is None else t.float().contiguous() for t in tables]


def steps(tensor: Tensor | None) -> tuple[int, ...]:
    """Steps of a (B, h, H, W, d) in groups of 8 numbers, the last left out."""
    return (0, 0, 0, 0) if tensor is None else tuple(s // 8 for s in tensor.stride()[:4])


def forward(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``eq4.forward``."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        batch, heads, height, width, _ = x.v.shape
        maps = [None if t is None else aligned(t) for t in x[:3]]
        start(
            "forward_kernel", batch * heads * spans(x.v), x.v, (*maps, *ready(x.tables)), out,
            kept if keep else None, tuple(map(steps, maps)), steps(out), heads, height, width,
            scale, WALK, MASK=border == "mask", **cut(x.v), **constants(x, norm, size),
        )  # fmt: skip
    return out, kept, unused


def backward(
    grad: Tensor, kept: Tensor, x: Eq4Inputs, norm: str, size: int, border: str, scale: float
) -> Sequence[Tensor | None]:
    """Gradients of q, k, v and the three tables; None where the input is absent."""
    v, tables = x.v, ready(x.tables)
    to_q, to_k = (None if t is None else heads_last(t) for t in x[:2])
    to_v = heads_last(v)
    if not v.numel():
        return (to_q, to_k, to_v, *(None if t is None else torch.zeros_like(t) for t in x.tables))
    batch, heads, height, width, _ = v.shape
    maps = [None if t is None else aligned(t) for t in x[:3]]
    grad, norms = aligned(grad), torch.empty_like(kept)
    shares = [
        None if t is None else v.new_empty(spans(v), batch, *t.shape, dtype=torch.float32)
        for t in tables
    ]
    read, given = (*maps, *tables), tuple(map(steps, maps))
    programs, fixed = batch * heads * spans(v), cut(v) | constants(x, norm, size)
    options = (heads, height, width, scale, WALK)
    start(
        "queries_kernel", programs, v, read, grad, kept, norms, to_q, shares[0], shares[2], given,
        steps(grad), steps(to_q), *options, MASK=border == "mask", **fixed,
    )  # fmt: skip
    start(
        "keys_kernel", programs, v, read, grad, kept, norms, to_k, to_v, shares[1], given,
        *map(steps, (grad, to_k, to_v)), *options, **fixed,
    )  # fmt: skip
    return (to_q, to_k, to_v, *added(shares, x.tables))


def added(
    shares: Sequence[Tensor | None], tables: Sequence[Tensor | None]
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of tables from the programs' shares, of whose sizes the tables' are the last."""
    return [
        None if share is None or t is None else share.sum(tuple(range(share.dim() - t.dim()))).to(t)
        for share, t in zip(shares, tables, strict=True)
    ]


def window_forward(
    x: Eq4Inputs, norm: str, size: int, excluded: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``eq4.forward``, on windows of size x size pixels."""
    out, kept, unused = eq4_outputs(x.v, lambda: ([0], [0]), keep)
    if x.v.numel():
        maps = [None if t is None else aligned(t) for t in x[:3]]
        programs, options = _windows(x.v, size)
        start(
            "window_forward_kernel", programs, x.v, (*maps, *ready(x.tables)), *packed(excluded),
            out, kept if keep else None, tuple(map(steps, maps)), steps(out), *options, scale,
            WALK, **constants(x, norm, size),
        )  # fmt: skip
    return out, kept, unused


def window_backward(
    grad: Tensor, kept: Tensor, x: Eq4Inputs, norm: str, size: int, excluded: Tensor | None,
    scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the three tables; None where the input is absent."""
    tables = ready(x.tables)
    to_maps = [None if t is None else heads_last(t) for t in x[:3]]
    if not x.v.numel():
        return (*to_maps, *(None if t is None else torch.zeros_like(t) for t in x.tables))
    maps, grad = [None if t is None else aligned(t) for t in x[:3]], aligned(grad)
    programs, options = _windows(x.v, size)
    spans = programs // x.v.shape[1]
    shares = [None if t is None else t.new_empty(spans, *t.shape) for t in tables]
    start(
        "window_backward_kernel", programs, x.v, (*maps, *tables), *packed(excluded), grad, kept,
        *to_maps, *shares, tuple(map(steps, maps)), *map(steps, (grad, *to_maps)), *options, scale,
        WALK, **constants(x, norm, size),
    )  # fmt: skip
    return (*to_maps, *added(shares, x.tables))


def _windows(v: Tensor, size: int) -> tuple[int, tuple[int, ...]]:
    """Programs, and what they are given: heads, height, width, windows of a head."""
    batch, heads, height, width, _ = v.shape
    windows = batch * (height // size) * (width // size)
    return heads * -(-windows // WALK), (heads, height, width, windows)
