"""What every operator must bear: odd maps, memory orders, low precision, compilers, bad shapes."""

import re
import warnings

import pytest
import torch

from lsa_kernels import build
from lsa_study import ops
from lsa_study.ops.ddf import apply_decoupled
from lsa_study.ops.functional import apply_filters, spatial_attention

DIM = 12
ALL = ("qk", "q_rk", "rq_k", "bias")


def eq4(*terms, norm="softmax", application="window", **options):
    return lambda: ops.UnifiedSpatialOp(
        DIM, 3, terms=terms, norm=norm, application=application, **options
    )


OPERATORS = {
    "swin": eq4("qk", "bias", shift=3),
    "window_softmax": eq4(*ALL, shift=3),
    "window_identity": eq4(*ALL, norm="identity", size=4, shift=2),
    "window_filter_norm": eq4("q_rk", norm="filter_norm", size=(4, 5), shift=2),
    "neighboring_softmax": eq4(*ALL, application="neighboring"),
    "neighboring_identity": eq4("rq_k", norm="identity", application="neighboring", border="mask"),
    "neighboring_filter_norm": eq4(*ALL, norm="filter_norm", application="neighboring", size=5),
    "neighboring_unfold": eq4(*ALL, application="neighboring", size=3, implementation="unfold"),
    "neighboring_sdc": eq4(
        *ALL, application="neighboring", size=3, border="mask", implementation="sdc"
    ),
    "elsa": lambda: ops.ELSA(DIM, 3, kernel_size=5, group_width=4),
    "elsa_both_ghosts": lambda: ops.ELSA(DIM, 3, kernel_size=3, ghost_mul=1.0),
    "elsa_no_ghost": lambda: ops.ELSA(DIM, 3, kernel_size=3, ghost_add=0.0),
    "elsa_eq7": lambda: ops.ELSA(DIM, 3, variant="eq7", kernel_size=3),
    "dwconv": lambda: ops.DwConv(DIM, num_heads=3),
    "depthwise": lambda: ops.DepthwiseConv(DIM),
    "dwnet": lambda: ops.DwNetShell(DIM, ops.DepthwiseConv(DIM)),
    "dynamic_dwconv": lambda: ops.DynamicDwConv(DIM),
    "ddwconv": lambda: ops.DwNetShell(DIM, ops.DynamicDwConv(DIM, kernel_size=5)),
    "ddwconv_linear": lambda: ops.LinearShell(DIM, ops.DynamicDwConv(DIM, kernel_size=5)),
    "ddf_mul": lambda: ops.DDF(DIM, num_heads=2, kernel_size=3),
    "ddf_add": lambda: ops.DDF(DIM, kernel_size=3, combine="add"),
    "ddf_spatial": lambda: ops.DDF(DIM, kernel_size=3, branches="spatial"),
    "ddf_channel": lambda: ops.DDF(DIM, kernel_size=3, branches="channel"),
    "ddf_batch": lambda: ops.DDF(DIM, kernel_size=3, norm="batch"),
    "ddf_sigmoid": lambda: ops.DDF(DIM, kernel_size=3, norm="sigmoid"),
    "ddf_dilated": lambda: ops.DDF(DIM, num_heads=2, kernel_size=3, dilation=2),
    "ddf_strided": lambda: ops.DDF(DIM, num_heads=2, kernel_size=3, stride=2),
    "ddf_up": lambda: ops.DDFUp(DIM, num_heads=2),
    "conv": lambda: ops.Conv(DIM),
    "conv_strided": lambda: ops.Conv(DIM, stride=2),
    "involution": lambda: ops.Involution(DIM, kernel_size=3, group_channels=4),
    "outlook": lambda: ops.OutlookAttention(DIM, 3),
}
SIDES = {
    "ddf_strided": lambda n: (n + 1) // 2,
    "conv_strided": lambda n: (n + 1) // 2,
    "ddf_up": lambda n: 2 * n,
}
"""Of the maps that come out, where they have another size."""
every_operator = pytest.mark.parametrize("name", OPERATORS)


def made(name):
    """One operator in evaluation mode: its batch norms are the same for every batch."""
    torch.manual_seed(0)
    return OPERATORS[name]().eval()


def shape_out(name, shape):
    side = SIDES.get(name, lambda n: n)
    return shape[0], side(shape[1]), side(shape[2]), shape[3]


def test_no_operator_is_left_out():
    kinds = {type(part) for name in OPERATORS for part in made(name).modules()}
    assert {getattr(ops, name) for name in ops.__all__} <= kinds


@every_operator
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 9), (1, 8, 3), (2, 14, 7)])
def test_any_map_passes_and_every_parameter_learns(name, shape):
    """Odd maps, a single pixel, maps below the area's size, one image alone."""
    op = made(name)
    x = torch.randn(*shape, DIM, requires_grad=True)
    y = op(x)
    assert y.shape == shape_out(name, x.shape)
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, *op.parameters()))


WAYS = {
    "reference": [
        "window_softmax",
        "window_filter_norm",
        "neighboring_softmax",
        "elsa",
        "elsa_eq7",
    ],
    "unfold": ["neighboring_identity", "neighboring_filter_norm", "elsa_both_ghosts"],
    "sdc": ["neighboring_identity"],
    "fused": ["swin", "window_filter_norm", "neighboring_softmax", "elsa_no_ghost"],
}
ANY_WAY = [(name, "auto") for name in OPERATORS]
ANY_WAY += [(name, way) for way, names in WAYS.items() for name in names]


@pytest.mark.parametrize(("name", "way"), ANY_WAY)
def test_a_batch_of_0_passes_and_teaches_nothing(name, way):
    """As a layer of torch's: empty outputs and empty gradients of x, zeros for all parameters."""
    op = made(name).train()
    for part in op.modules():
        if hasattr(part, "implementation") and way != "auto":
            part.implementation = way
    x = torch.randn(0, 8, 14, DIM, requires_grad=True)
    try:
        y = op(x)
    except ValueError as error:
        if way == "fused" and build.why_missing():
            pytest.skip(str(error))
        raise
    assert y.shape == shape_out(name, x.shape)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not parameter.grad.any() for parameter in op.parameters())
    assert all(buffer.isfinite().all() for buffer in op.buffers())


@every_operator
def test_images_of_a_batch_do_not_see_each_other(name):
    op, x = made(name), torch.randn(3, 6, 9, DIM)
    torch.testing.assert_close(op(x)[1:2], op(x[1:2]))


@every_operator
def test_memory_orders_are_alike(name):
    """Maps that lie as (B, C, H, W) or as every second pixel of others; gradients too."""
    op, x = made(name), torch.randn(2, 8, 9, DIM)
    orders = {
        "channels first": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "sparse": x.repeat_interleave(2, 2)[:, :, ::2],
    }
    want = op(x)
    (slope,) = torch.autograd.grad(want.square().sum(), op.parameters(), retain_graph=True)[:1]
    for order, other in orders.items():
        got = op(other)
        torch.testing.assert_close(got, want, msg=lambda words, order=order: f"{order}: {words}")
        (found,) = torch.autograd.grad(got.square().sum(), op.parameters())[:1]
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(op.to(memory_format=torch.channels_last)(x), want)


@every_operator
def test_autocast_to_bfloat16(name):
    op, x = made(name), torch.randn(2, 8, 9, DIM)
    want = op(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = op(x)
    assert (got.float() - want).abs().max() <= 0.05 * want.abs().max()
    got.float().square().sum().backward()
    for parameter in op.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_operator
def test_compiles_whole_and_trains_compiled(name):
    """Without a single break of the graph, forward and backward."""
    op, x = made(name), torch.randn(1, 8, 9, DIM)
    want = op(x)
    slopes = torch.autograd.grad(want.square().sum(), op.parameters())
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals here
        got = torch.compile(op, fullgraph=True, backend="aot_eager")(x)
        found = torch.autograd.grad(got.square().sum(), op.parameters())
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-4)


@every_operator
def test_exports(name):
    op, x = made(name), torch.randn(2, 8, 9, DIM)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns about its own internals here
        exported = torch.export.export(op, (x,)).module()
        torch.testing.assert_close(exported(x), op(x))


@every_operator
@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (4, 4, DIM), (2, DIM, 4, 4), (1, 2, 4, 4, DIM)])
def test_wrong_shapes_are_refused_with_both_shapes(name, shape):
    """Other channels, no batch, channels first, one axis too many."""
    words = re.escape(f"x {shape} must be (B, H, W, {DIM})")
    with pytest.raises(ValueError, match=words):
        made(name)(torch.zeros(shape))


def maps(*shape):
    return torch.zeros(1, 2, 6, 6, 4) if not shape else torch.zeros(shape)


NEAR = {"norm": "softmax", "application": "neighboring", "size": 3}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: spatial_attention(maps(1, 2, 6, 5, 4), maps(), maps(), **NEAR),
            ["q (1, 2, 6, 5, 4)", "v (1, 2, 6, 6, 4)"],
        ),
        (
            lambda: spatial_attention(maps(), maps(1, 3, 6, 6, 4), maps(), **NEAR),
            ["k (1, 3, 6, 6, 4)", "v (1, 2, 6, 6, 4)"],
        ),
        (
            lambda: spatial_attention(maps(), maps(), maps(), rel_k=maps(2, 25, 4), **NEAR),
            ["rel_k (2, 25, 4)", "v (1, 2, 6, 6, 4)", "want (2, 9, 4)"],
        ),
        (
            lambda: spatial_attention(maps(), maps(), maps(), rel_bias=maps(9, 2), **NEAR),
            ["rel_bias (9, 2)", "want (2, 9)"],
        ),
        (
            lambda: spatial_attention(
                maps(), maps(), maps(), norm="softmax", application="window", size=4
            ),
            ["v (1, 2, 6, 6, 4) is not whole windows of 4 x 4"],
        ),
        (
            lambda: apply_filters(maps(1, 4, 4, 6), maps(1, 4, 4, 4, 9), kernel_size=3),
            ["filters (1, 4, 4, 4, 9)", "values (1, 4, 4, 6)", "a divisor of 6"],
        ),
        (
            lambda: apply_filters(
                maps(1, 4, 4, 6), maps(1, 4, 4, 2, 9), ghost_add=maps(6, 5, 5), kernel_size=3
            ),
            ["ghost_add (6, 5, 5)", "values (1, 4, 4, 6)", "(6, 3, 3)"],
        ),
        (
            lambda: apply_decoupled(
                maps(1, 4, 4, 6), maps(1, 4, 4, 1, 9), maps(1, 6, 25), combine="mul", kernel_size=3
            ),
            ["channel (1, 6, 25)", "values (1, 4, 4, 6)", "(1, 6, 9)"],
        ),
    ],
)
def test_functions_refuse_wrong_shapes_with_both_shapes(call, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as told:
        call()
    assert all(part in str(told.value) for part in words[1:])
