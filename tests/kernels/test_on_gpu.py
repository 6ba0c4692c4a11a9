"""The fused operators on a GPU against the definitions in float64; see ``gpu`` in conftest.py."""

import itertools

import pytest
import torch
from exactness import chosen, hold, terms_of_eq4
from torch import nn

from lsa_kernels import Eq4Inputs
from lsa_study.ops import ELSA, UnifiedSpatialOp, reference
from lsa_study.ops.functional import apply_filters, spatial_attention

pytestmark = pytest.mark.gpu
TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [("qk", "bias"), ("q_rk", "rq_k"), ("bias",), TERMS]
NORMS = ("softmax", "identity", "filter_norm")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 2, 11, 13, 32, 7), (1, 3, 5, 9, 24, 3), (1, 1, 8, 16, 64, 7)]
KERNELS = {"cuda": "fused", "cpu": "auto"}
"""A CPU's take no float16."""
ONCE = {"lanes": (None,), "seeds": range(2)}


def moved(call, gpu):
    """The call on a GPU; its gradients come back."""
    return lambda *given: call(
        *(x.to(gpu) if isinstance(x, torch.Tensor) else x for x in given)
    ).cpu()


def make(seed, batch, heads, height, width, depth, offsets):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    maps = [normal(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4) for _ in range(3)]
    tables = [normal(heads, offsets, depth) for _ in range(2)] + [normal(heads, offsets)]
    return [*maps, *tables], normal(batch, heads, height, width, depth)


def fused(**options):
    return lambda q, k, v, rel_k, rel_q, rel_bias, use_qk: spatial_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=rel_bias, use_qk=use_qk,
        implementation=KERNELS[v.device.type], **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("terms", SETS, ids="+".join)
def test_neighboring(terms, norm, border, dtype, gpu):
    for *sizes, side in SHAPES:
        batch, _, height, width, depth = sizes
        hold(
            lambda seed, sizes=sizes, side=side: make(seed, *sizes, side**2),
            chosen(
                terms,
                lambda *x, side=side, depth=depth: reference.neighboring(
                    Eq4Inputs(*x), norm, side, border, depth**-0.5
                ),
            ),
            moved(
                chosen(
                    terms, fused(norm=norm, application="neighboring", size=side, border=border)
                ),
                gpu,
            ),
            terms_of_eq4(depth, side**2, batch * height * width), dtype=dtype, **ONCE,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_tensor_cores_are_taken(dtype, gpu):
    if gpu.type == "cpu":
        pytest.skip("a CPU has no tensor cores of this kind")
    from lsa_kernels.gpu import tensor_cores

    for *sizes, side in SHAPES:
        x = Eq4Inputs(*(t.to(gpu, dtype) for t in make(0, *sizes, side**2)[0]))
        assert tensor_cores.why_not(x, "softmax", side, "zero") is None
    x = Eq4Inputs(*(t.to(gpu, dtype) for t in make(0, 2, 2, 14, 21, 32, 13**2)[0]))
    for area in ("window", "shifted"):
        assert tensor_cores.why_not(x, "softmax", 7, area) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("terms", SETS, ids="+".join)
def test_windows(terms, norm, shift, dtype, gpu):
    side, sizes = 7, (2, 2, 14, 21, 32)
    excluded = reference.shift_bands(14, 21, side, (shift, shift), torch.device("cpu"))

    def plain(*given):
        x = Eq4Inputs(*given).of_maps(lambda t: t.roll((-shift, -shift), (2, 3)))
        out = reference.window(x, norm, side, excluded, 32**-0.5)
        return out.roll((shift, shift), (2, 3))

    hold(
        lambda seed: make(seed, *sizes, (2 * side - 1) ** 2), chosen(terms, plain),
        moved(chosen(terms, fused(norm=norm, application="window", size=side, shift=shift)), gpu),
        terms_of_eq4(32, side**2, 2 * 14 * 21), dtype=dtype, **ONCE,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [(), ("mul",), ("add",), ("mul", "add")], ids="+".join)
@pytest.mark.parametrize("side", [3, 7])
def test_filters(side, parts, dtype, gpu):
    batch, height, width, heads, depth = 2, 9, 13, 3, 32

    def given(seed):
        draw = torch.Generator().manual_seed(seed)
        maps = [torch.randn(batch, height, width, heads * depth, generator=draw) for _ in "vg"]
        filters = torch.randn(batch, height, width, heads, side**2, generator=draw)
        ghosts = [torch.randn(heads * depth, side, side, generator=draw) for _ in "ma"]
        mul, add = (t if n in parts else None for n, t in zip(("mul", "add"), ghosts, strict=True))
        return [maps[0], filters, mul, add], maps[1]

    pixels = batch * height * width
    hold(
        given, lambda v, f, m, a: reference.apply_filters(v, f, m, a, side),
        moved(
            lambda v, f, m, a: apply_filters(
                v, f, ghost_mul=m, ghost_add=a, kernel_size=side,
                implementation=KERNELS[gpu.type],
            ),
            gpu,
        ),
        {"out": side**2, "values": side**2, "filters": depth, "mul": pixels, "add": pixels},
        dtype=dtype, **ONCE,
    )  # fmt: skip


LAYERS = {
    f"{application}-{norm}": (UnifiedSpatialOp, {"norm": norm, "application": application})
    for application, norm in itertools.product(("window", "neighboring"), NORMS)
} | {"elsa": (ELSA, {"group_width": 4})}


def layer(kind: str, gpu: torch.device) -> nn.Module:
    made, options = LAYERS[kind]
    torch.manual_seed(0)
    terms = {"terms": set(TERMS)} if made is UnifiedSpatialOp else {}
    return made(96, 3, **options, **terms).to(gpu)


def learn(network: nn.Module, maps: torch.Tensor) -> list[torch.Tensor]:
    maps = maps.clone().requires_grad_()
    network.zero_grad()
    network(maps).square().mean().backward()
    return [maps.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_the_same_bits_each_time(kind, gpu):
    network, maps = layer(kind, gpu), torch.randn(4, 28, 28, 96, device=gpu)
    for one, other in zip(learn(network, maps), learn(network, maps), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_under_autocast_is_near_to_float32(kind, gpu):
    network, maps = layer(kind, gpu), torch.randn(2, 14, 21, 96, device=gpu)
    exact = network(maps)
    with torch.autocast(gpu.type, torch.bfloat16):
        rounded = network(maps)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03


def test_sizes_that_are_zero_or_large_end_well(gpu):
    empty = torch.randn(0, 14, 14, 96, device=gpu)
    assert layer("neighboring-softmax", gpu)(empty).shape == empty.shape
    wide = torch.randn(1, 7, 7 * 160, 96, device=gpu)
    assert torch.isfinite(layer("window-softmax", gpu)(wide)).all()
    assert torch.isfinite(layer("neighboring-softmax", gpu)(wide)).all()
