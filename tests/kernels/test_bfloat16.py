"""The C++ kernels on bfloat16: read as it lies, summed in float32, rounded where it is written."""

import pytest
import torch
import torch.nn.functional as F
from exactness import hold, hold_for_any_threads, terms_of_eq4

import lsa_kernels
from lsa_kernels import Eq4Inputs, build
from lsa_study.ops import reference

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

LOW = torch.bfloat16


def normal(seed, *shapes):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def eq4(offsets, *, heads=2, height=6, width=18, depth=11):
    """Maps of 11 channels a head, of which eight are taken at once, with gaps between them."""

    def make(seed):
        given = normal(seed, (3, 2, height, width, heads, depth + 1), (2, heads, offsets, depth),
                       (heads, offsets), (2, height, width, heads, depth))  # fmt: skip
        q, k, v = given[0][..., :depth].permute(0, 1, 4, 2, 3, 5)
        return [q, k, v, *given[1], given[2]], given[3].permute(0, 3, 1, 2, 4)

    return make


def neighboring(q, k, v, rel_k, rel_q, bias):
    return lsa_kernels.neighboring_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax", size=5
    )


def window(q, k, v, rel_k, rel_q, bias):
    return lsa_kernels.window_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax", size=(3, 2)
    )


def filters(values, weights, mul, add):
    return lsa_kernels.apply_filters(values, weights, mul=mul, add=add, size=3)


def make_filters(seed):
    *given, gradient = normal(
        seed, (2, 5, 9, 22), (2, 5, 9, 2, 9), (22, 9), (22, 9), (2, 5, 9, 22)
    )  # fmt: skip
    return given, gradient


def make_maps(seed):
    *given, gradient = normal(seed, (2, 5, 9, 24), (24, 8, 3, 3), (24,), (2, 5, 9, 24))
    return given, gradient


CALLS = {
    "neighboring": (neighboring, eq4(25)),
    "window": (window, eq4(15)),
    "filters": (filters, make_filters),
    "grouped_conv": (lsa_kernels.grouped_conv, make_maps),
}
EVERY = pytest.mark.parametrize("name", CALLS)


def plain_neighboring(*given):
    return reference.neighboring(Eq4Inputs(*given), "softmax", 5, "zero", 11**-0.5)


def plain_window(*given):
    return reference.window(Eq4Inputs(*given), "softmax", (3, 2), None, 11**-0.5)


def plain_filters(values, weights, mul, add):
    return reference.apply_filters(values, weights, mul, add, 3)


def plain_conv(x, weight, bias):
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=3)
    return maps.permute(0, 2, 3, 1)


PLAIN = {
    "neighboring": (plain_neighboring, terms_of_eq4(11, 25, 2 * 6 * 18)),
    "window": (plain_window, terms_of_eq4(11, 6, 2 * 6 * 18)),
    "filters": (
        plain_filters,
        {"out": 18, "values": 18, "filters": 22, "mul": 2 * 5 * 9, "add": 2 * 5 * 9},
    ),
    "grouped_conv": (plain_conv, {"out": 72, "x": 72, "weight": 2 * 5 * 9, "bias": 2 * 5 * 9}),
}


@EVERY
def test_rounds_no_worse_than_the_plain_one(name):
    ours, make = CALLS[name]
    plain, terms = PLAIN[name]
    hold(make, plain, ours, terms, dtype=LOW)


def run(call, tensors, gradient, kinds):
    """Output and all gradients, of tensors whose strides stay as they are."""
    leaves = [t.detach().to(kind).requires_grad_() for t, kind in zip(tensors, kinds, strict=True)]
    out = call(*leaves)
    out.backward(gradient.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@EVERY
@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "mixed"])
@pytest.mark.usefixtures("lanes")
def test_is_float32_rounded_once(name, mixed):
    """Bit for bit, gradients too; where types are mixed each result has that of its own input."""
    call, make = CALLS[name]
    tensors, gradient = make(3)
    kinds = [torch.float32 if mixed and at % 2 else LOW for at in range(len(tensors))]
    rounded = [t.to(kind).float() for t, kind in zip(tensors, kinds, strict=True)]
    # The values say what the output is.
    first = kinds[2] if name in ("neighboring", "window") else kinds[0]
    want = run(call, rounded, gradient.to(first).float(), [torch.float32] * len(tensors))
    got = run(call, tensors, gradient, kinds)
    for ours, exact, kind in zip(got, want, [first, *kinds], strict=True):
        assert ours.dtype == kind
        assert torch.equal(ours, exact.to(kind))


@EVERY
@pytest.mark.usefixtures("lanes")
def test_the_number_of_threads_changes_no_bit(name):
    call, make = CALLS[name]
    tensors, gradient = make(4)
    hold_for_any_threads(lambda: run(call, tensors, gradient, [LOW] * len(tensors)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@EVERY
@pytest.mark.usefixtures("lanes")
def test_torch_accepts_the_operator(name):
    tensors, _ = CALLS[name][1](5)
    maps = 3 if name in ("neighboring", "window") else 2 if name == "filters" else 1
    leaves = [
        t.to(LOW if at < maps else torch.float32).requires_grad_() for at, t in enumerate(tensors)
    ]
    more = {
        "neighboring": (True, "softmax", 5, "zero", 0.5, True),
        "window": (None, True, "softmax", 3, 2, 0.5, True),
        "filters": (2, 3),
        "grouped_conv": (),
    }
    torch.library.opcheck(getattr(torch.ops.lsa_kernels, name), (*leaves, *more[name]))


@pytest.mark.parametrize("channels", [8, 48], ids=["one by one", "eight at once"])
@pytest.mark.usefixtures("lanes")
def test_a_result_is_rounded_as_torch_rounds_it(channels):
    """Ties to even, up to infinity, down to numbers below the least; NaN stays NaN."""
    inf, below = float("inf"), 2.0**-133
    special = [
        0.0, -0.0, inf, -inf, float("nan"), 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8,
        1 + 2.0**-8 + 2.0**-23, 3.4028235e38, -3.4028235e38, 3.3895314e38, below / 2, below / 2 * 3,
        below / 2 + 2.0**-149, 1.1754942e-38,
    ]  # fmt: skip
    nan = torch.tensor([0x7F800001, 0x7FFFFFFF]).to(torch.int32).view(torch.float32)
    for seed in range(20):
        (more,) = normal(seed, (channels,))
        bias = torch.cat([torch.tensor(special), nan, more])[-channels - seed :][:channels]
        # Products of -0: a bias of -0 stays that.
        x, weight = torch.zeros(1, 1, 1, channels, dtype=LOW), -torch.zeros(channels, 4, 3, 3)
        got = lsa_kernels.grouped_conv(x, weight, bias)[0, 0, 0]
        want = bias.to(LOW)
        assert torch.equal(got.isnan(), want.isnan())
        there = ~want.isnan()
        # As integers: 0 and -0 are equal numbers.
        assert torch.equal(got[there].view(torch.int16), want[there].view(torch.int16))


def test_a_map_of_another_type_is_read_in_float32():
    tensors, _ = eq4(25)(6)
    maps = [t.to(LOW).to(kind) for t, kind in zip(tensors, (torch.float16, LOW, LOW), strict=False)]
    want = neighboring(*(t.to(LOW).float() for t in tensors[:3]), None, None, None)
    assert torch.equal(neighboring(*maps, None, None, None), want.to(LOW))
