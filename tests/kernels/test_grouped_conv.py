"""The fused grouped convolution against float64 and torch's own."""

import pytest
import torch
from exactness import BITS, hold, hold_for_any_threads, run, spoiled
from torch.nn import functional as F

import lsa_kernels
from lsa_kernels import build
from lsa_study.ops import dispatch

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

# Batch, H, W, channels, channels of a group, K: channels that fill no vector, several chunks, more
# rows than a task takes, several tasks of one chunk, maps smaller than the filters.
SHAPES = [
    (2, 5, 9, 20, 4, 3), (1, 14, 13, 72, 4, 7), (2, 40, 7, 24, 8, 5), (1, 9, 8, 48, 16, 7),
    (2, 3, 2, 12, 4, 7), (1, 70, 5, 8, 8, 7), (1, 1, 1, 16, 16, 3),
]  # fmt: skip


def make(seed, batch, height, width, channels, group, size):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    x, gradient = (normal(batch, height, width, channels) for _ in range(2))
    return [x, normal(channels, group, size, size), normal(channels)], gradient


def plain(x, weight, bias):
    channels, group, size = weight.shape[:3]
    maps = F.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, padding=size // 2, groups=channels // group
    )
    return maps.permute(0, 2, 3, 1)


def held(sizes, has_bias, spoil=lambda call: call):
    batch, height, width, _, group, size = sizes

    def given(seed):
        (x, weight, bias), gradient = make(seed, *sizes)
        return [x, weight, bias if has_bias else None], gradient

    # The bias is one more term.
    taps, pixels = group * size**2, batch * height * width
    terms = {"out": taps + 1, "x": taps, "weight": pixels, "bias": pixels}
    hold(given, plain, spoil(lsa_kernels.grouped_conv), terms)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_rounds_no_worse_than_the_plain_one(sizes, has_bias):
    held(sizes, has_bias)


@pytest.mark.parametrize("at", [*range(3), "gradient", "out"])
def test_a_rounding_fault_is_seen(at):
    with pytest.raises(AssertionError, match="may be"):
        held(SHAPES[1], True, lambda call: spoiled(call, at, BITS))


@pytest.mark.usefixtures("lanes")
def test_any_strides_are_read_in_place():
    (_, weight, bias), gradient = make(1, 2, 7, 9, 16, 4, 5)
    for x in (torch.randn(2, 16, 7, 9).permute(0, 2, 3, 1), torch.randn(2, 7, 9, 40)[..., 3:19]):
        got, want = (
            run(lsa_kernels.grouped_conv, [t, weight, bias], gradient, torch.float32)
            for t in (x, x.contiguous())
        )
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.usefixtures("lanes")
def test_the_number_of_threads_changes_no_bit():
    tensors, gradient = make(2, 1, 70, 5, 8, 4, 7)
    hold_for_any_threads(lambda: run(lsa_kernels.grouped_conv, tensors, gradient, torch.float32))


@pytest.mark.usefixtures("lanes")
def test_every_element_is_written(monkeypatch):
    tensors, gradient = make(3, 2, 6, 13, 20, 4, 7)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        found = run(lsa_kernels.grouped_conv, tensors, gradient, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in found)


@pytest.mark.usefixtures("lanes")
def test_an_empty_batch_gives_an_empty_batch():
    tensors, gradient = make(4, 0, 4, 4, 8, 4, 3)
    out, _, weight, bias = run(lsa_kernels.grouped_conv, tensors, gradient, torch.float32)
    assert out.shape == (0, 4, 4, 8)
    assert (weight == 0).all()
    assert (bias == 0).all()


@pytest.mark.usefixtures("lanes")
def test_not_a_number_stays_where_its_neighbors_see_it():
    (x, weight, bias), _ = make(5, 1, 9, 9, 8, 4, 3)
    x[0, 4, 4, 1] = float("nan")
    got, want = lsa_kernels.grouped_conv(x, weight, bias), plain(x, weight, bias)
    assert torch.equal(got.isnan(), want.isnan())
    assert got.isnan().sum() == 9 * 4


def test_bfloat16_is_computed_in_float32():
    low = [t.bfloat16() for t in make(6, 1, 6, 6, 16, 4, 7)[0]]
    want = lsa_kernels.grouped_conv(*(t.float() for t in low))
    assert torch.equal(lsa_kernels.grouped_conv(*low), want.bfloat16())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, w, b: (x.double(), w, b), "takes float32 and bfloat16"),
        (lambda x, w, b: (x[..., :8], w, b), "does not keep the 8 channels"),
        (lambda x, w, b: (x, w[:, :3], b), "does not keep the 16 channels"),
        (lambda x, w, b: (x, w[:, :2], b), "groups of 2 channels are not compiled"),
        (lambda x, w, b: (x, w[..., :2], b), r"taps \(3, 2\) are not compiled"),
        (lambda x, w, b: (x, w, b[:8]), r"bias \(8,\) does not fit 16 channels"),
        (lambda x, w, b: (x[0], w, b), r"x \(4, 4, 16\) must be \(B, H, W, C\)"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason(change, words):
    tensors, _ = make(7, 1, 4, 4, 16, 4, 3)
    with pytest.raises(ValueError, match=words):
        lsa_kernels.grouped_conv(*change(*tensors))


def test_what_the_kernel_cannot_take_torch_computes():
    (x, _, bias), _ = make(8, 1, 5, 6, 12, 4, 3)
    weight = torch.randn(12, 6, 3, 3)
    got = dispatch.grouped_conv(x, weight, bias, "auto")
    torch.testing.assert_close(got, plain(x, weight, bias))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.usefixtures("lanes")
def test_torch_accepts_the_operator(has_bias):
    x, weight, bias = (t.requires_grad_() for t in make(9, 1, 5, 6, 8, 4, 3)[0])
    arguments = (x, weight, bias if has_bias else None)
    torch.library.opcheck(torch.ops.lsa_kernels.grouped_conv, arguments)
