"""Half precision: definitions sum and weigh in float32, and round once."""

import pytest
import torch

from lsa_kernels import Eq4Inputs
from lsa_study import ops
from lsa_study.ops import dwconv, involution, outlook, reference, unfold
from lsa_study.ops.ddf import apply_decoupled
from lsa_study.ops.functional import apply_filters, spatial_attention

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])


def eq4(norm, application, way, size=7, border="zero"):
    def make(draw):
        offsets = (2 * size - 1) ** 2 if application == "window" else size * size
        return draw(2, 3, 14, 14, 8), draw(2, 3, 14, 14, 8), draw(2, 3, 14, 14, 8), draw(
            3, offsets, 8), draw(3, offsets, 8), draw(3, offsets)  # fmt: skip

    def call(q, k, v, rel_k, rel_q, rel_bias):
        return spatial_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=rel_bias, norm=norm, size=size,
            application=application, border=border, implementation=way,
        )  # fmt: skip

    return make, call


def swin(draw):
    """Few windows, so that torch's own attention computes them."""
    return (*(draw(1, 3, 14, 14, 8) for _ in range(3)), draw(3, 169))


def by_sdpa(q, k, v, rel_bias):
    return spatial_attention(
        q, k, v, rel_bias=rel_bias, norm="softmax", application="window", size=7
    )


def filters(draw):
    weights = draw(2, 9, 9, 3, 49).float().softmax(-1)
    return draw(2, 9, 9, 12), weights, draw(12, 7, 7), draw(12, 7, 7)


def hadamard(way):
    return lambda draw: filters(draw)[:2], lambda v, w: apply_filters(
        v, w, kernel_size=7, implementation=way)  # fmt: skip


def ghosts(way, *, mul):
    def call(values, weights, ghost_mul, ghost_add):
        given = {"ghost_mul": ghost_mul if mul else None, "ghost_add": ghost_add}
        return apply_filters(values, weights, **given, kernel_size=7, implementation=way)

    return filters, call


NORMS = ("softmax", "identity", "filter_norm")
DEFINITIONS = {
    **{f"window {norm}": eq4(norm, "window", "reference") for norm in NORMS},
    **{f"neighboring {norm}": eq4(norm, "neighboring", "reference") for norm in NORMS},
    **{f"unfold {norm}": eq4(norm, "neighboring", "unfold") for norm in NORMS},
    **{f"sdc {norm}": eq4(norm, "neighboring", "sdc", border="mask") for norm in NORMS},
    "torch's attention": (swin, by_sdpa),
    "filters": hadamard("reference"),
    "filters by unfold": hadamard("unfold"),
    "ghost head": ghosts("reference", mul=True),
    "ghost head by unfold": ghosts("unfold", mul=True),
    "added ghost": ghosts("auto", mul=False),
    "decoupled": (
        lambda draw: (draw(2, 9, 9, 12), draw(2, 9, 9, 3, 49), draw(2, 12, 49)),
        lambda v, s, c: apply_decoupled(v, s, c, combine="mul", kernel_size=7, dilation=2),
    ),
    "static filters": (
        lambda draw: (draw(2, 9, 9, 12), draw(12, 7, 7)),
        reference.static_filters,
    ),
    "filters of an image": (
        lambda draw: (draw(2, 9, 9, 12), draw(24, 1, 7, 7), draw(12)),
        dwconv._one_filter_per_image,
    ),
    "involution with a stride": (
        lambda draw: (draw(2, 8, 8, 12), draw(2, 4, 4, 3, 49)),
        lambda x, w: involution._every_few_pixels(x, w, 7, 2),
    ),
    "outlook": (
        lambda draw: (draw(2, 12, 9, 9), draw(2, 5, 5, 3 * 81)),
        lambda v, a: outlook._spread(v, a, 3, 3, 2),
    ),
}


def error(got, exact):
    return (got.double() - exact).square().mean().sqrt()


@HALVES
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_round_once(name, half, autocast):
    """Against float64, at most 1.5 times the error of float32's result rounded at the end."""
    make, call = DEFINITIONS[name]
    torch.manual_seed(0)
    given = make(lambda *shape: torch.randn(shape).to(half))
    exact = call(*(t.double() for t in given))
    rounded = call(*(t.float() for t in given)).to(half)
    with torch.autocast("cpu", half, enabled=autocast):
        got = call(*given)
    assert got.dtype == half
    assert error(got, exact) <= 1.5 * error(rounded, exact)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_gradients_pass_in_the_type_of_their_input(name):
    make, call = DEFINITIONS[name]
    torch.manual_seed(0)
    given = [t.requires_grad_() for t in make(lambda *shape: torch.randn(shape).to(torch.bfloat16))]
    call(*given).square().sum().backward()
    for tensor in given:
        if tensor.grad is not None:
            assert tensor.grad.dtype == tensor.dtype
            assert tensor.grad.isfinite().all()


def test_both_elsa_rows_of_table_4_are_as_exact_under_autocast():
    """Hadamard attention without and with the ghost head, where no kernel runs."""
    found = []
    for ghost in (0.0, 1.0):
        torch.manual_seed(0)
        op = ops.ELSA(24, 3, group_width=4, ghost_add=ghost, implementation="reference")
        op.post_proj = torch.nn.Identity()
        x = torch.randn(2, 14, 14, 24)
        with torch.autocast("cpu", torch.bfloat16):
            got = op(x)
        exact = op.double()(x.double())
        assert got.dtype == torch.bfloat16
        found.append(error(got, exact) / exact.square().mean().sqrt())
    assert max(found) <= 1.25 * min(found)


@pytest.mark.parametrize(
    "op",
    [
        lambda: ops.ELSA(12, 3, variant="eq7", kernel_size=3, implementation="reference"),
        lambda: ops.OutlookAttention(12, 3),
        lambda: ops.DynamicDwConv(12),
        lambda: ops.Involution(12, kernel_size=3, group_channels=4, stride=2),
    ],
    ids=["eq7", "outlook", "dynamic", "involution"],
)
def test_compiles_whole_under_autocast(op):
    torch.manual_seed(0)
    op, x = op().eval(), torch.randn(1, 8, 8, 12)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        want = op(x)
        got = torch.compile(op, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_weights_of_a_norm_are_in_float32():
    """Of bfloat16 maps too; Hadamard attention's and Eq. 4's."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 6, 4).bfloat16().unbind(0)
    weights = reference.neighboring_weights(Eq4Inputs(q, k, v), "softmax", 5, "zero", 0.5)
    assert weights.dtype == torch.float32
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    op = ops.ELSA(12, 3).bfloat16()
    maps = op.attention_maps(torch.randn(1, 6, 6, op.dim_qk).bfloat16())
    assert maps.dtype == torch.float32
    assert unfold.unfold(Eq4Inputs(q, k, v), "softmax", 5, "zero", 0.5).dtype == torch.bfloat16
