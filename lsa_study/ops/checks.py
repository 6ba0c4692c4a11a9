"""The shape of an area, and the refusal of what cannot be meant."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from lsa_kernels import Eq4Inputs
from lsa_study.vocabulary import APPLICATIONS, BORDERS, IMPLEMENTATIONS, NORMS

Size = int | tuple[int, int]
"""Side of an area, or rows and columns of a window."""


def sides(size: Size) -> tuple[int, int]:
    """Rows and columns of a window."""
    return (size, size) if isinstance(size, int) else size


def num_offsets(application: str, size: Size) -> int:
    """How many offsets pos(j) - pos(i) an area has."""
    rows, columns = sides(size)
    return (2 * rows - 1) * (2 * columns - 1) if application == "window" else rows * columns


def check_attention(
    x: Eq4Inputs, norm: str, application: str, size: Size, shift: int, border: str
) -> None:
    """Refuse what ``spatial_attention`` cannot mean."""
    check_options(norm, application, border, size, shift)
    v = x.v
    if v.dim() != 5:
        raise ValueError(f"v {tuple(v.shape)} must be (B, heads, H, W, d)")
    _check_reads(x)
    rows, columns = sides(size)
    if application == "window" and (v.shape[2] % rows or v.shape[3] % columns):
        raise ValueError(
            f"v {tuple(v.shape)} is not whole windows of {rows} x {columns}; pad the map, as "
            "UnifiedSpatialOp does"
        )
    offsets = num_offsets(application, size)
    want = (v.shape[1], offsets, v.shape[4])
    for name, table, shape in (
        ("rel_k", x.rel_k, want), ("rel_q", x.rel_q, want), ("rel_bias", x.rel_bias, want[:2]),
    ):  # fmt: skip
        if table is not None and tuple(table.shape) != shape:
            raise ValueError(
                f"{name} {tuple(table.shape)} does not fit v {tuple(v.shape)} with "
                f"application={application!r}, size={size}: want {shape}"
            )


def _check_reads(x: Eq4Inputs) -> None:
    if not x.use_qk and all(table is None for table in x.tables):
        raise ValueError("no term is chosen; give use_qk=True, rel_k, rel_q or rel_bias")
    for name, tensor, read in (("q", x.q, x.reads_q), ("k", x.k, x.reads_k)):
        if tensor is None and read:
            raise ValueError(f"{name} is None, but the chosen terms read it; give a tensor")
        if tensor is not None and tensor.shape != x.v.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the shape of v {tuple(x.v.shape)}"
            )


def check_options(norm: str, application: str, border: str, size: Size, shift: int) -> None:
    """Refuse unknown options, and areas that cannot be."""
    for name, option, known in (
        ("norm", norm, NORMS), ("application", application, APPLICATIONS),
        ("border", border, BORDERS),
    ):  # fmt: skip
        if option not in known:
            raise ValueError(f"{name}={option!r} is unknown; known: {', '.join(known)}")
    rows, columns = sides(size)
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size} must be at least 1")
    if application == "window":
        if not 0 <= shift < min(rows, columns):
            raise ValueError(f"shift={shift} must be at least 0 and below size={size}")
        return
    if rows != columns or rows % 2 == 0:
        raise ValueError(
            f"size={size}: 'neighboring' centres an area on every pixel; give an odd size "
            "(window accepts even sizes)"
        )
    if shift:
        raise ValueError(f"shift={shift} belongs to windows; give 0 with 'neighboring'")


def check_implementation(
    implementation: str, refused: tuple[str, ...] = (), purpose: str = ""
) -> None:
    """Refuse unknown implementations, and those that do not compute a purpose."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation={implementation!r} is unknown; known: {known}")
    if implementation in refused:
        raise ValueError(f"implementation={implementation!r} does not compute {purpose}")


def check_maps(x: Tensor, dim: int) -> None:
    """Refuse what is not (B, H, W, dim)."""
    if x.dim() != 4 or x.shape[-1] != dim:
        raise ValueError(f"x {tuple(x.shape)} must be (B, H, W, {dim})")


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse heads that do not share the channels evenly."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={dim}; give a divisor")


def check_known(name: str, value: str, kinds: Any) -> None:
    """Refuse a value that a ``Literal`` does not name."""
    if value not in get_args(kinds):
        raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(get_args(kinds))}")


def check_positive(name: str, value: int) -> None:
    """Refuse steps below one pixel, and parts of one."""
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1 pixel")
    if not isinstance(value, int):
        raise ValueError(f"{name}={value!r} must be a whole number of pixels; give an int")


def check_odd(kernel_size: int) -> None:
    """Refuse even sides: no pixel is central."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd, so that a pixel is central")


def check_filters(
    values: Tensor, filters: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, size: int
) -> None:
    """Refuse what ``apply_filters`` cannot mean."""
    check_odd(size)
    if values.dim() != 4:
        raise ValueError(f"values {tuple(values.shape)} must be (B, H, W, C)")
    batch, height, width, channels = values.shape
    fits = filters.dim() == 5 and tuple(filters.shape[:3]) == (batch, height, width)
    if not fits or filters.shape[4] != size * size or channels % max(filters.shape[3], 1):
        raise ValueError(
            f"filters {tuple(filters.shape)} do not fit values {tuple(values.shape)}: want "
            f"({batch}, {height}, {width}, heads, {size * size}) with heads a divisor of {channels}"
        )
    for name, ghost in (("ghost_mul", ghost_mul), ("ghost_add", ghost_add)):
        if ghost is not None and tuple(ghost.shape) != (channels, size, size):
            raise ValueError(
                f"{name} {tuple(ghost.shape)} does not fit values {tuple(values.shape)}: want "
                f"({channels}, {size}, {size})"
            )
