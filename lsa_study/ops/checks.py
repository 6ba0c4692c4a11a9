"""The words of Eq. 4, the shape of an area, and the refusal of what cannot be meant."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Norm = Literal["identity", "filter_norm", "softmax"]
Application = Literal["window", "neighboring"]
Border = Literal["zero", "mask"]
Size = int | tuple[int, int]
"""Side of an area, or rows and columns of a window."""

NORMS = ("identity", "filter_norm", "softmax")


def sides(size: Size) -> tuple[int, int]:
    """Rows and columns of a window."""
    return (size, size) if isinstance(size, int) else size


def num_offsets(application: str, size: Size) -> int:
    """How many offsets pos(j) - pos(i) an area has."""
    rows, columns = sides(size)
    return (2 * rows - 1) * (2 * columns - 1) if application == "window" else rows * columns


def check_attention(
    q: Tensor | None, k: Tensor | None, v: Tensor, rel_k: Tensor | None, rel_q: Tensor | None,
    rel_bias: Tensor | None, use_qk: bool, norm: str, application: str, size: Size, shift: int,
    border: str,
) -> None:  # fmt: skip
    """Refuse what ``spatial_attention`` cannot mean, in words."""
    check_words(norm, application, border)
    check_area(application, size, shift)
    if v.dim() != 5:
        raise ValueError(f"v {tuple(v.shape)} must be (B, heads, H, W, d)")
    _check_reads(q, k, v, use_qk, rel_k, rel_q, rel_bias)
    rows, columns = sides(size)
    if application == "window" and (v.shape[2] % rows or v.shape[3] % columns):
        raise ValueError(
            f"v {tuple(v.shape)} is not whole windows of {rows} x {columns}; pad the map, as "
            "UnifiedSpatialOp does"
        )
    offsets = num_offsets(application, size)
    want = (v.shape[1], offsets, v.shape[4])
    for name, table, shape in (
        ("rel_k", rel_k, want), ("rel_q", rel_q, want), ("rel_bias", rel_bias, want[:2]),
    ):  # fmt: skip
        if table is not None and tuple(table.shape) != shape:
            raise ValueError(
                f"{name} {tuple(table.shape)} does not fit v {tuple(v.shape)} with "
                f"application={application!r}, size={size}: want {shape}"
            )


def _check_reads(
    q: Tensor | None, k: Tensor | None, v: Tensor, use_qk: bool, rel_k: Tensor | None,
    rel_q: Tensor | None, rel_bias: Tensor | None,
) -> None:  # fmt: skip
    if not use_qk and rel_k is None and rel_q is None and rel_bias is None:
        raise ValueError("no term is chosen; give use_qk=True, rel_k, rel_q or rel_bias")
    for name, tensor, read in (
        ("q", q, use_qk or rel_k is not None),
        ("k", k, use_qk or rel_q is not None),
    ):
        if tensor is None and read:
            raise ValueError(f"{name} is None, but the chosen terms read it; give a tensor")
        if tensor is not None and tensor.shape != v.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the shape of v {tuple(v.shape)}"
            )


def check_words(norm: str, application: str, border: str) -> None:
    """Refuse unknown words."""
    for word, known, name in (
        (norm, NORMS, "norm"),
        (application, ("window", "neighboring"), "application"),
        (border, ("zero", "mask"), "border"),
    ):
        if word not in known:
            raise ValueError(f"{name}={word!r} is unknown; known: {', '.join(known)}")


def check_area(application: str, size: Size, shift: int) -> None:
    """Refuse areas that cannot be."""
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


def check_filters(
    values: Tensor, filters: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, size: int
) -> None:
    """Refuse what ``apply_filters`` cannot mean, in words."""
    if size % 2 == 0 or size < 1:
        raise ValueError(f"kernel_size={size} must be odd, so that a pixel is central")
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
