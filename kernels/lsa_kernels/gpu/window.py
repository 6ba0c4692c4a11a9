"""Run Eq. 4 on windows on a GPU; same arguments as the CPU's.

By tensor cores where they take these inputs (``tensor_cores``), else pixel by pixel (``eq4``). Both
keep the same numbers for the backward, so either can follow either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lsa_kernels.gpu import eq4, tensor_cores
from lsa_kernels.gpu.table_kernels import windows_kernel
from lsa_kernels.gpu.tiles import SPAN
from lsa_kernels.operators import Eq4Inputs


def forward(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As ``eq4.forward``."""
    if _by_tensor_cores(x, excluded, norm, rows, columns):
        return tensor_cores.window_forward(x, norm, rows, excluded, scale, keep)
    return eq4.forward(x, _area(x, excluded, norm, rows, columns), scale, keep)


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, excluded: Tensor | None, norm: str,
    rows: int, columns: int, scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """As ``eq4.backward``."""
    if _by_tensor_cores(x, excluded, norm, rows, columns):
        return tensor_cores.window_backward(grad, kept, x, norm, rows, excluded, scale)
    return eq4.backward(grad, kept, out, x, _area(x, excluded, norm, rows, columns), scale)


def _by_tensor_cores(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int
) -> bool:  # fmt: skip
    area = "window" if excluded is None else "shifted"
    return rows == columns and tensor_cores.why_not(x, norm, rows, area) is None


def _area(x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int) -> eq4.Area:
    batch, heads, height, width, _ = x.v.shape
    pixels, offsets = rows * columns, (2 * rows - 1) * (2 * columns - 1)
    windows = batch * (height // rows) * (width // columns)
    together = max(SPAN // pixels, 1)
    shares = -(-windows // together)
    constants = {
        "NORM": norm, "MASK": False, "WINDOWS": True, "DOWN": rows, "ACROSS": columns,
        "SIDE": math.sqrt(pixels),
    }  # fmt: skip
    return eq4.Area(
        constants, lambda meta: (windows * heads * -(-pixels // (meta["ROWS"] * meta["COLUMNS"])),),
        windows_kernel, (shares * heads * offsets,), (shares,), (windows, together), excluded,
    )  # fmt: skip
