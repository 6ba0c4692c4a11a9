"""What a trained operator looks at: the weight of every pixel for every other, term by term."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lsa_study.models.blocks import SpatialBlock
from lsa_study.models.pretrained import read_checkpoint
from lsa_study.models.registry import from_settings
from lsa_study.ops import ELSA, DwConv, UnifiedSpatialOp
from lsa_study.ops.checks import sides
from lsa_study.ops.functional import apply_filters, spatial_attention
from lsa_study.rundir import RunDir

Mix = Callable[[Tensor], Tensor]
"""Values (H, W, channels), one-hot -> (G, reading pixel, channel)."""
Floats = npt.NDArray[np.float32]
MOST_PIXELS = 4096
"""A map of more has over 16 million pairs."""
GHOST = "ghost"


def load_run(run: RunDir) -> nn.Module:
    """The network of a finished run with its final weights, ready to be looked at.

    Raises:
        ConfigError: the run's weights or its configuration are not there.
    """
    settings, weights = run.settings(), read_checkpoint(run.weights)
    (head,) = (weights[name] for name in ("head.fc.weight", "head.weight") if name in weights)
    network = from_settings(
        settings.model, image_size=settings.data.image_size, num_classes=len(head)
    )
    network.load_state_dict(weights)
    return network.eval()


@torch.no_grad()
def inputs(network: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every spatial operator of a network, by name, with what it reads for these images.

    Images are (B, 3, H, W), normalised as the network was trained; returned is such as
    ``{"layers.0.blocks.1.attn": (operator, x)}``, x (B, H, W, C).
    """
    found: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(name: str, op: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[name] = (op, given[0])

    with contextlib.ExitStack() as hooks:
        for name, block in network.named_modules():
            if isinstance(block, SpatialBlock):
                hook = functools.partial(keep, f"{name}.attn")
                hooks.enter_context(block.attn.register_forward_pre_hook(hook))
        network(images)
    return found


@torch.no_grad()
def attention(op: nn.Module, x: Tensor, *, without: Collection[str] = ()) -> Floats:
    r"""The weight with which each pixel reads each other one: the bracket of Eq. 4 or Eq. 5.

    .. math:: f'_i = \sum_j w_{i,j} \, v_j

    Read off the operator's own definition by giving it one-hot values. A part that is left out is
    left out of the trained operator; nothing is trained again.

    Args:
        op: ``UnifiedSpatialOp``, ``ELSA`` or ``DwConv``.
        x: (1, H, W, C), what the operator reads; H and W whole windows, at most 4096 pixels.
        without: of a unified operator some of its terms, of ELSA ``ghost``.

    Returns:
        (G, H, W, H, W): group, reading pixel, read pixel. Groups are heads; with a ghost head
        they are channels, each its head's weights times one matrix plus another.

    Raises:
        ValueError: the operator has no such weights or no such part, or the map does not fit.
    """
    batch, height, width, _ = x.shape
    if batch != 1 or height * width > MOST_PIXELS:
        raise ValueError(f"x {tuple(x.shape)}: give one map of at most {MOST_PIXELS} pixels")
    if unknown := sorted(set(without) - _parts(op)):
        parts = ", ".join(sorted(_parts(op))) or "none"
        raise ValueError(f"without={unknown}: no parts of {type(op).__name__}; it has {parts}")
    if isinstance(op, UnifiedSpatialOp):
        mix, depth = _of_terms(op, x, op.terms - set(without))
    else:
        mix, depth = _of_filters(op, x, without)
    pixels, found = height * width, []
    for start in range(0, pixels, depth):
        # Channel c is 1 at pixel start + c alone.
        ones = x.new_zeros(pixels + depth, depth)
        ones[torch.arange(start, start + depth), torch.arange(depth)] = 1
        found.append(mix(ones[:pixels].view(height, width, depth)))
    weights = torch.cat(found, -1)[..., :pixels]
    return weights.reshape(-1, height, width, height, width).float().cpu().numpy()


def _parts(op: nn.Module) -> set[str]:
    if isinstance(op, UnifiedSpatialOp):
        return set(op.terms)
    return {GHOST} if isinstance(op, ELSA) and op.ghost_head is not None else set()


def _of_terms(op: UnifiedSpatialOp, x: Tensor, terms: Collection[str]) -> tuple[Mix, int]:
    # How a layer projects is its own: there is no public way to ask for it.
    q, k, v = op._project(x)
    (height, width), (rows, columns) = x.shape[1:3], sides(op.size)
    shift, right = op.shift * (height > rows), op.shift * (width > columns)
    if op.application == "window" and shift != right:
        raise ValueError(
            f"a map of {height} x {width} is shifted by {shift} and {right}; give one that is "
            "longer than a window on both axes or on none"
        )

    def mix(ones: Tensor) -> Tensor:
        mixed = spatial_attention(
            q, k, ones.expand_as(v), rel_k=op.rel_k if "q_rk" in terms else None,
            rel_q=op.rel_q if "rq_k" in terms else None,
            rel_bias=op.rel_bias if "bias" in terms else None, use_qk="qk" in terms, norm=op.norm,
            application=op.application, size=op.size, shift=shift, border=op.border,
            scale=op.scale, implementation="reference",
        )  # fmt: skip
        return mixed[0].flatten(1, 2)

    return mix, op.depth


def _of_filters(op: nn.Module, x: Tensor, without: Collection[str]) -> tuple[Mix, int]:
    if isinstance(op, DwConv):
        filters = op.weight.flatten(1).expand(*x.shape[:3], -1, -1)
    elif isinstance(op, ELSA):
        projected = op.pre_proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        q, k, _ = torch.split(projected, [op.dim_qk, op.dim_qk, op.dim], -1)
        filters = op.attention_maps(q * k * op.scale)
        mul, add = (None, None) if GHOST in without else op.ghost()
        if mul is not None or add is not None:
            filters = filters.repeat_interleave(op.dim // op.num_heads, 3)
        filters = filters if mul is None else filters * mul.flatten(1)
        filters = filters if add is None else filters + add.flatten(1)
    else:
        raise ValueError(
            f"{type(op).__name__} has no weights of this form; give a UnifiedSpatialOp, ELSA or "
            "DwConv"
        )
    groups, taps = filters.shape[3:]
    side = round(taps**0.5)

    def mix(ones: Tensor) -> Tensor:
        mixed = apply_filters(
            ones.repeat(1, 1, groups)[None], filters, kernel_size=side, implementation="reference"
        )
        return mixed.view(-1, groups, side).transpose(0, 1)

    return mix, side


def effective_area(weights: Floats) -> Floats:
    r"""How many pixels a group reads, whatever the size of its area.

    .. math:: \frac{(\sum_j |w_{i,j}|)^2}{\sum_j w_{i,j}^2}, \quad averaged over i

    One for a group that reads a single pixel, K*K for one that weighs its whole area alike. Weights
    are those of ``attention``, (G, H, W, H, W), to (G,) pixels; readers whose weights are all zero
    are left out.
    """
    size = np.abs(weights).reshape(*weights.shape[:3], -1)
    squares = np.square(size).sum(-1)
    area = np.square(size.sum(-1)) / np.where(squares > 0, squares, np.nan)
    found: Floats = np.nanmean(area.reshape(len(weights), -1), axis=1)
    return found
