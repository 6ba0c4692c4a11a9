"""What a network costs: parameters and multiply-adds, in the article's convention.

torch's FLOP counter knows matrix products and convolutions only. Importing this module tells it
what the operators of ``lsa_kernels`` cost, by the same convention: two operations for each
multiply-add, and a backward pass twice its forward pass, since each product has two gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import attention
from timm.models import swin_transformer, volo
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import lsa_kernels
from lsa_study import ops
from lsa_study.ops.checks import sides
from lsa_study.ops.ddf import ChannelFilterNorm

Shape = tuple[int, ...]
Products = tuple[int, int]
"""Multiply-adds of convolutions, linear maps and matrix products; and of per-pixel filters."""


@dataclass(frozen=True)
class Count:
    """Size and cost of a network on one input.

    ``macs`` is the article's convention: multiply-adds of every convolution, linear map and
    product of attention, and K*K*C per pixel for applying per-pixel filters, and again for
    combining them with static ones (one ghost matrix, or DDF's product). Norms, softmax,
    activations and element-wise work are left out. ``macs_raw`` leaves out the two filter parts
    too: half of what torch's ``FlopCounterMode`` sees, as tools count, where no fused kernel runs
    (for those see ``KERNEL_FLOPS``).
    """

    params: int
    macs: int
    macs_raw: int


def count(module: nn.Module, input_shape: Sequence[int]) -> Count:
    """Count parameters, and multiply-adds of one forward pass, without computing it.

    The pass runs in a copy of the module on the meta device, so it takes milliseconds whatever the
    size, and the module stays as it is.

    Args:
        module: a network or an operator.
        input_shape: shape of its input with the batch first, such as (1, 3, 224, 224) or, for an
            operator, (1, H, W, C); a shape of three numbers is one such input without its batch.

    Raises:
        ValueError: a part with parameters has no formula here, or a part that should cost
            something was never reached; the count would be too low.
    """
    shape = (1, *input_shape) if len(input_shape) == 3 else tuple(input_shape)
    with torch.no_grad():
        meta = _on_meta(module)
        parts = dict(_parts(meta, ""))
        found = dict.fromkeys(parts, (0, 0))

        def add(name: str, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if type(part) in OUTSIDE:
                raw, filters = _outside(part, inputs[0]), 0
            else:
                raw, filters = FORMULAS[type(part)](part, inputs[0].shape, output.shape)
            found[name] = (found[name][0] + raw, found[name][1] + filters)

        for name, part in parts.items():
            part.register_forward_hook(partial(add, name))
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        place = "cpu" if OUTSIDE.intersection(map(type, meta.modules())) else "meta"
        with torch.random.fork_rng(devices=[]):
            meta(torch.zeros(shape, device=place, dtype=dtype))
    idle = [
        f"{name} ({type(part).__name__})"
        for name, part in parts.items()
        if not any(found[name]) and type(part) not in OUTSIDE
    ]
    if idle:
        raise ValueError(
            f"count: {', '.join(idle)} cost nothing on an input of {shape}; every such part should "
            "be reached, so the network leaves it out or its formula is wrong"
        )
    raw, filters = (sum(part) for part in zip(*found.values(), strict=True))
    params = sum(p.numel() for p in module.parameters())
    return Count(params, raw + filters, raw)


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy for evaluation, whose operators run as meta tensors can, with few calls of torch.

    What holds code from outside stays where it is: not every operator can run without numbers.
    """
    if OUTSIDE.intersection(map(type, module.modules())):
        return copy.deepcopy(module).to("cpu").eval()
    known: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    known |= {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in module.parameters()}
    meta = copy.deepcopy(module, known).eval()
    for op in meta.modules():
        if isinstance(op, ops.UnifiedSpatialOp | ops.ELSA):
            op.implementation = "unfold" if isinstance(op, ops.ELSA) else "auto"
    return meta


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Walk the parts that have a formula."""
    # ELSA reads the weights of its convolutions without calling them: its formula holds them.
    whole = isinstance(module, ops.ELSA) or type(module) in OUTSIDE
    if getattr(module, "training_only", False):
        return
    children = [] if whole else list(module.named_children())
    if type(module) in FORMULAS or type(module) in OUTSIDE:
        yield name or type(module).__name__, module
    elif not children and list(module.parameters()) and not isinstance(module, FREE):
        raise ValueError(
            f"count: {name or 'the module'} is a {type(module).__name__} with parameters and no "
            "formula; add one to lsa_study.measure.FORMULAS"
        )
    for child, inner in children:
        yield from _parts(inner, f"{name}.{child}" if name else child)


def _unified(op: ops.UnifiedSpatialOp, inputs: Shape, output: Shape) -> Products:
    """C per pixel and tap for each dot product and the sum, of a map padded to whole windows."""
    batch, height, width, channels = inputs
    rows, columns = sides(op.size)
    if op.application == "window":
        height, width = -(-height // rows) * rows, -(-width // columns) * columns
    products = len(op.terms & {"qk", "q_rk", "rq_k"}) + 1
    return batch * height * width * channels * products * rows * columns, 0


def _elsa(op: Any, inputs: Shape, output: Shape) -> Products:
    """Projections and logits; then, element by element, one K*K*C per ghost matrix and to apply."""
    pixels, channels, taps = math.prod(inputs[:3]), op.dim, op.kernel_size**2
    if op.variant == "conv":
        conv, _, last = op.attn
        logits = op.dim_qk * taps * conv.in_channels // conv.groups + op.dim_qk * last.out_channels
    else:
        logits = 2 * taps * channels
    raw = pixels * (channels * op.pre_proj.out_channels + logits + channels**2)
    ghosts = bool(op.ghost_mul) + bool(op.ghost_add)
    return raw, pixels * taps * channels * (1 + ghosts)


def _outside(part: Any, given: Tensor) -> int:
    """What a part from outside says of itself by ``macs(shape)``, else what torch counts."""
    if hasattr(part, "macs"):
        return int(part.macs(tuple(given.shape)))
    with FlopCounterMode(display=False) as counter:
        part.forward(given)
    return int(counter.get_total_flops()) // FLOPS_PER_PRODUCT


def _conv(conv: Any, inputs: Shape, output: Shape) -> Products:
    inner = conv.in_channels // conv.groups
    return math.prod(output) * inner * math.prod(conv.kernel_size), 0


def _depthwise(op: Any, inputs: Shape, output: Shape) -> Products:
    """Filters that all pixels of an image share."""
    return math.prod(output) * op.kernel_size**2, 0


def _decoupled(op: Any, inputs: Shape, output: Shape) -> Products:
    """Filters of pixels, combined with those of channels where there are both, then applied."""
    once = math.prod(output) * op.kernel_size**2
    return {"both": (0, 2 * once), "spatial": (0, once), "channel": (once, 0)}[op.branches]


def _attention(op: Any, inputs: Shape, output: Shape) -> Products:
    """Every pixel with every pixel: timm's Swin windows (windows, pixels, C) and VOLO's maps."""
    batch, *sides, channels = inputs
    return 2 * batch * math.prod(sides) ** 2 * channels, 0


def _outlook(op: Any, inputs: Shape, output: Shape) -> Products:
    """K**4 weights of each coarse location with its values."""
    batch, height, width, channels = inputs
    coarse = batch * math.ceil(height / op.stride) * math.ceil(width / op.stride)
    return coarse * channels * op.kernel_size**4, 0


FORMULAS: dict[type[nn.Module], Callable[[Any, Shape, Shape], Products]] = {
    nn.Linear: lambda linear, _, output: (math.prod(output) * linear.in_features, 0),
    nn.Conv2d: _conv,
    # Every pixel of the input with every tap.
    nn.ConvTranspose2d: lambda conv, x, _: (
        math.prod(x) * conv.out_channels // conv.groups * math.prod(conv.kernel_size),
        0,
    ),
    ops.UnifiedSpatialOp: _unified,
    ops.ELSA: _elsa,
    ops.DwConv: _depthwise,
    ops.DepthwiseConv: _conv,
    ops.DynamicDwConv: _depthwise,
    ops.Conv: _conv,
    ops.DDF: _decoupled,
    # Combined with the channels' filters, then applied.
    ops.DDFUp: lambda op, _, output: (0, 2 * math.prod(output) * op.kernel_size**2),
    ops.Involution: lambda op, _, output: (0, math.prod(output) * op.kernel_size**2),
    ops.OutlookAttention: _outlook,
    swin_transformer.WindowAttention: _attention,
    volo.Attention: _attention,
    attention.Attention: _attention,
    # The class token's query with all tokens (images, tokens, C).
    volo.ClassAttention: lambda op, x, _: (2 * x[0] * x[1] * op.head_dim * op.num_heads, 0),
    volo.OutlookAttention: _outlook,
}
"""(module, input shape, output shape) -> products of the module beside those of its parts."""

OUTSIDE: set[type[nn.Module]] = set()
"""Operators and networks from outside, each counted as one part: by ``macs(shape)`` if they have
it, else by torch's counter, which leaves out all element-wise products."""

FREE = (nn.LayerNorm, _BatchNorm, ChannelFilterNorm)
"""Parts with parameters whose cost the convention leaves out."""

FLOPS_PER_PRODUCT = 2


def _window(
    q: Any, k: Any, v: Shape, rel_k: Any, rel_q: Any, rel_bias: Any, excluded: Any, use_qk: bool,
    norm: str, rows: int, columns: int, *rest: Any, **out: Any,
) -> int:  # fmt: skip
    """Eq. 4: one product per tap and channel for each dot product and for the sum."""
    products = use_qk + (rel_k is not None) + (rel_q is not None) + 1
    return FLOPS_PER_PRODUCT * products * math.prod(v) * rows * columns


def _neighboring(*given: Any, **out: Any) -> int:
    """The same, without excluded pairs and with a square of taps."""
    *tensors, use_qk, norm, size = given[:9]
    return _window(*tensors, None, use_qk, norm, size, size)


def _filters(
    values: Shape, given: Any, mul: Any, add: Any, heads: int, size: int, **out: Any
) -> int:
    """Apply filters; combine those of pixels with each static one."""
    combined = sum(part is not None for part in (given, mul, add))
    return FLOPS_PER_PRODUCT * combined * math.prod(values) * size**2


def _strided(
    values: Shape, given: Shape, mul: Any, add: Any, size: int, *_: Any, **out: Any
) -> int:
    """The same where a stride keeps a pixel."""
    combined = 1 + sum(part is not None for part in (mul, add))
    return FLOPS_PER_PRODUCT * combined * math.prod(given[:3]) * values[3] * size**2


def _grouped_conv(x: Shape, weight: Shape, bias: Any, **out: Any) -> int:
    """Every tap of every channel of the group."""
    return FLOPS_PER_PRODUCT * math.prod(x) * math.prod(weight[1:])


KERNEL_FLOPS: dict[str, Callable[..., int]] = {
    "neighboring": _neighboring,
    "neighboring_backward": lambda grad, weights, spreads, *x, **out: 2 * _neighboring(*x),
    "window": _window,
    "window_backward": lambda grad, weights, spreads, *x, **out: 2 * _window(*x),
    "filters": _filters,
    "filters_backward": lambda grad, *x, **out: 2 * _filters(*x),
    "strided_filters": _strided,
    "strided_filters_backward": lambda grad, *x, **out: 2 * _strided(*x),
    "grouped_conv": _grouped_conv,
    "grouped_conv_backward": lambda grad, *x, **out: 2 * _grouped_conv(*x),
}
"""Operator of ``lsa_kernels`` -> its FLOPs, from the shapes of its tensors and its other inputs."""

assert lsa_kernels  # which defines the operators
for _name, _formula in KERNEL_FLOPS.items():
    register_flop_formula(getattr(torch.ops.lsa_kernels, _name))(_formula)
