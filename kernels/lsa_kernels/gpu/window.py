"""Run Eq. 4 on windows on a GPU; same arguments as the CPU's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lsa_kernels.gpu import eq4
from lsa_kernels.gpu.table_kernels import windows_kernel
from lsa_kernels.gpu.tiles import SPAN
from lsa_kernels.operators import Eq4Inputs


def forward(
    x: Eq4Inputs, excluded: Tensor | None, norm: str, rows: int, columns: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As ``eq4.forward``."""
    return eq4.forward(x, _area(x, excluded, norm, rows, columns), scale, keep)


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, excluded: Tensor | None, norm: str,
    rows: int, columns: int, scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """As ``eq4.backward``."""
    return eq4.backward(grad, kept, out, x, _area(x, excluded, norm, rows, columns), scale)


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
