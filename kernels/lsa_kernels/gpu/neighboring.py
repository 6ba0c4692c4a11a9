"""Run Eq. 4 on neighborhoods on a GPU; same arguments as the CPU's.

By tensor cores where they take these inputs (``tensor_cores``), else pixel by pixel (``eq4``). Both
keep the same numbers for the backward, so either can follow either.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lsa_kernels.gpu import eq4, tensor_cores
from lsa_kernels.gpu.table_kernels import neighborhoods_kernel
from lsa_kernels.gpu.tiles import SPAN, tiles
from lsa_kernels.operators import Eq4Inputs


def forward(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``eq4.forward``."""
    if tensor_cores.why_not(x, norm, size, border) is None:
        return tensor_cores.forward(x, norm, size, border, scale, keep)
    return eq4.forward(x, _area(x, norm, size, border), scale, keep)


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, norm: str, size: int, border: str,
    scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """As ``eq4.backward``."""
    if tensor_cores.why_not(x, norm, size, border) is None:
        return tensor_cores.backward(grad, kept, x, norm, size, border, scale)
    return eq4.backward(grad, kept, out, x, _area(x, norm, size, border), scale)


def _area(x: Eq4Inputs, norm: str, size: int, border: str) -> eq4.Area:
    batch, heads, height, width, _ = x.v.shape
    spans = -(-height * width // SPAN)
    constants = {
        "NORM": norm, "MASK": border == "mask", "WINDOWS": False, "DOWN": size, "ACROSS": size,
        "SIDE": size,
    }  # fmt: skip
    return eq4.Area(
        constants, lambda meta: (batch * heads * tiles(height, width, meta),),
        neighborhoods_kernel, (batch * heads * size**2, spans), (spans, batch),
    )  # fmt: skip
