"""Run Eq. 4 on neighborhoods on a GPU; same arguments as the CPU's."""

from __future__ import annotations

from collections.abc import Sequence

import triton
from torch import Tensor

from lsa_kernels.gpu import eq4
from lsa_kernels.gpu import neighboring_kernels as kernels
from lsa_kernels.gpu.tiles import SPAN, tiles
from lsa_kernels.operators import Eq4Inputs


def forward(
    x: Eq4Inputs, norm: str, size: int, border: str, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``eq4.forward``."""
    return eq4.forward(x, _area(x, norm, size, border), scale, keep)


def backward(
    grad: Tensor, kept: Tensor, out: Tensor, x: Eq4Inputs, norm: str, size: int, border: str,
    scale: float,
) -> Sequence[Tensor | None]:  # fmt: skip
    """As ``eq4.backward``."""
    return eq4.backward(grad, kept, out, x, _area(x, norm, size, border), scale)


def _area(x: Eq4Inputs, norm: str, size: int, border: str) -> eq4.Area:
    batch, heads, height, width, depth = x.v.shape
    spans = -(-height * width // SPAN)
    constants = {
        "USE_QK": x.use_qk, "NORM": norm, "MASK": border == "mask", "SIZE": size, "DEPTH": depth,
        "WIDE": triton.next_power_of_2(depth),
    }  # fmt: skip
    return eq4.Area(
        kernels, lambda meta: (batch * heads * tiles(height, width, meta),),
        (batch * heads * size**2, spans), (spans, batch), (), constants,
    )  # fmt: skip
