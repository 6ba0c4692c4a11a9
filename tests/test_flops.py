"""torch's FLOP counter as a witness: fused operators, and filters applied element by element."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import lsa_kernels
from lsa_study import measure, ops
from lsa_study.measure import count
from lsa_study.ops.ddf import apply_decoupled
from lsa_study.ops.functional import spatial_attention
from lsa_study.ops.reference import apply_filters as apply_reference

DIM, HEADS, SIZE = 12, 3, 5
MAP = (2, 6, 9, DIM)
PIXELS = 2 * 6 * 9
ONCE = PIXELS * DIM * SIZE**2
"""Multiply-adds to apply K x K filters to a map once."""

MISSING = lsa_kernels.why_not_neighboring(None, None, torch.zeros(1, 1, 3, 3, 1), size=3)
built = pytest.mark.skipif(MISSING is not None, reason=f"no fused kernels: {MISSING}")


def products(call, custom_mapping=None):
    """Multiply-adds that torch counts while something runs, by operator."""
    with FlopCounterMode(display=False, custom_mapping=custom_mapping) as counter:
        call()
    return {
        str(name).removeprefix("aten."): found // measure.FLOPS_PER_PRODUCT
        for name, found in counter.get_flop_counts()["Global"].items()
    }


def total(call):
    return sum(products(call).values())


def test_no_kernel_is_without_formula():
    """A kernel torch cannot count would make a network look cheaper than it is."""
    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    kernels = {name for name in known if name.startswith("lsa_kernels::")}
    assert kernels == {f"lsa_kernels::{name}" for name in measure.KERNEL_FLOPS}
    assert {getattr(torch.ops.lsa_kernels, name) for name in measure.KERNEL_FLOPS} <= set(
        flop_registry
    )


TERMS = [("qk", "bias"), ("q_rk",), ("rq_k",), ("bias",), ("qk", "q_rk", "rq_k", "bias")]


@built
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
def test_fused_neighborhoods_cost_what_the_definition_costs(terms):
    """Forward as the closed formula says; with backward, as the definition's matrix products."""
    shape, offsets = (2, HEADS, 6, 9, 4), SIZE**2

    def run(implementation):
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        rel_bias = torch.zeros(HEADS, offsets, requires_grad=True)
        rel_k, rel_q = (torch.randn(HEADS, offsets, 4, requires_grad=True) for _ in range(2))
        spatial_attention(
            q, k, v, use_qk="qk" in terms, rel_k=rel_k if "q_rk" in terms else None,
            rel_q=rel_q if "rq_k" in terms else None,
            rel_bias=rel_bias if "bias" in terms else None, norm="softmax",
            application="neighboring", size=SIZE, implementation=implementation,
        ).sum().backward()  # fmt: skip

    fused, defined = (products(lambda w=way: run(w)) for way in ("fused", "reference"))
    assert set(fused) == {"lsa_kernels.neighboring", "lsa_kernels.neighboring_backward"}
    assert sum(fused.values()) == sum(defined.values())
    op = ops.UnifiedSpatialOp(
        DIM, HEADS, terms=terms, norm="softmax", application="neighboring", size=SIZE,
        implementation="fused",
    )  # fmt: skip
    with torch.no_grad():
        assert total(lambda: op(torch.randn(MAP))) == count(op, MAP).macs_raw


LAYERS = {
    **{
        f"elsa_{mul}{add}": lambda mul=mul, add=add: ops.ELSA(
            DIM, HEADS, kernel_size=SIZE, group_width=4, ghost_mul=mul, ghost_add=add
        )
        for mul, add in itertools.product((0, 1), repeat=2)
    },
    "dwconv": lambda: ops.DwConv(DIM, num_heads=HEADS, kernel_size=SIZE),
    "ddf_mul": lambda: ops.DDF(DIM, num_heads=HEADS, kernel_size=SIZE),
    "ddf_add": lambda: ops.DDF(DIM, kernel_size=SIZE, combine="add"),
    "involution": lambda: ops.Involution(DIM, kernel_size=SIZE, group_channels=4),
}


@built
@pytest.mark.parametrize("name", LAYERS)
def test_fused_filters_are_counted_in_the_articles_convention(name):
    """With formulas for fused filters, torch sees what it misses element by element."""
    op = LAYERS[name]().eval()
    seen = products(lambda: op(torch.randn(MAP)))
    assert "lsa_kernels.filters" in seen
    with torch.no_grad():
        assert total(lambda: op(torch.randn(MAP))) == count(op, MAP).macs


@built
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_strided_filters_are_counted_where_the_stride_keeps_a_pixel(combine):
    op = ops.DDF(DIM, num_heads=HEADS, kernel_size=SIZE, stride=2, combine=combine)
    seen = products(lambda: op(torch.randn(MAP, requires_grad=True)).sum().backward())
    assert seen["lsa_kernels.strided_filters_backward"] == 2 * seen["lsa_kernels.strided_filters"]
    with torch.no_grad():
        assert total(lambda: op(torch.randn(MAP))) == count(op, MAP).macs


@built
def test_a_fused_backward_pass_costs_twice_the_forward_pass():
    op = ops.DwConv(DIM, num_heads=HEADS, kernel_size=SIZE)
    seen = products(lambda: op(torch.randn(MAP, requires_grad=True)).sum().backward())
    assert seen["lsa_kernels.filters"] == ONCE
    assert seen["lsa_kernels.filters_backward"] == 2 * ONCE


def elementwise(*shapes, out_shape, **_):
    """One operation per number; the counter's two per product belong to matrix products."""
    return measure.FLOPS_PER_PRODUCT * torch.Size(out_shape).numel()


ELEMENTWISE = {torch.ops.aten.mul: elementwise, torch.ops.aten.add: elementwise}


@pytest.mark.parametrize(("mul", "add"), [*itertools.product((False, True), repeat=2)])
def test_filters_and_ghosts_multiply_and_add_as_often_as_counted(mul, add):
    """The definition, number by number: one product to apply, one more step per ghost matrix."""
    ghost = torch.randn(DIM, SIZE, SIZE)
    values, filters = torch.randn(MAP), torch.randn(*MAP[:3], HEADS, SIZE**2)
    seen = products(
        lambda: apply_reference(
            values, filters, ghost if mul else None, ghost if add else None, SIZE
        ),
        ELEMENTWISE,
    )
    sums_over_taps = ONCE
    found = count(LAYERS[f"elsa_{int(mul)}{int(add)}"](), MAP)
    assert seen["mul"] + seen["add"] - sums_over_taps == found.macs - found.macs_raw


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_decoupled_filters_multiply_and_add_as_often_as_counted(combine):
    values, spatial = torch.randn(MAP), torch.randn(*MAP[:3], HEADS, SIZE**2)
    channel = torch.randn(2, DIM, SIZE**2)
    tables = (channel, None) if combine == "mul" else (None, channel)
    seen = products(lambda: apply_reference(values, spatial, *tables, SIZE), ELEMENTWISE)
    found = count(LAYERS[f"ddf_{combine}"](), MAP)
    assert seen["mul"] + seen["add"] - ONCE == found.macs - found.macs_raw == 2 * ONCE
    want = apply_reference(values, spatial, *tables, SIZE)
    got = apply_decoupled(values, spatial, channel, combine=combine, kernel_size=SIZE)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
