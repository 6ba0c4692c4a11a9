"""The fused filters that a stride keeps, against float64 and the definition."""

import warnings

import pytest
import torch
from exactness import hold, hold_for_any_threads, run

import lsa_kernels
from lsa_kernels import build
from lsa_study.ops import reference
from lsa_study.ops.ddf import DDF

pytestmark = pytest.mark.skipif(build.built().path is None, reason=str(build.built().reason))

# Batch, H, W, heads, channels of a head, K, stride, dilation: maps that the stride does not divide,
# channels that fill no vector, maps smaller than the filters, steps that pass over all neighbors.
SHAPES = [
    (2, 6, 9, 1, 20, 3, 2, 1), (1, 14, 13, 2, 8, 5, 2, 1), (2, 7, 8, 3, 4, 3, 3, 2),
    (1, 2, 3, 1, 33, 7, 2, 1), (2, 9, 5, 2, 16, 3, 4, 1), (1, 1, 1, 1, 5, 3, 2, 1),
]  # fmt: skip
TABLES = {"mul": (True, False), "add": (False, True), "both": (True, True), "none": (False, False)}


def make(seed, tables, batch, height, width, heads, depth, size, stride, _):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    rows, columns = -(-height // stride), -(-width // stride)
    channels, taps = heads * depth, size**2
    given = [normal(batch, height, width, channels), normal(batch, rows, columns, heads, taps)]
    given += [normal(batch, channels, taps) if there else None for there in TABLES[tables]]
    return given, normal(batch, rows, columns, channels)


def fused(size, stride, dilation):
    return lambda v, f, mul, add: lsa_kernels.apply_strided(
        v, f, mul=mul, add=add, size=size, stride=stride, dilation=dilation
    )


def plain(size, stride, dilation):
    return lambda v, f, mul, add: reference.apply_filters(v, f, mul, add, size, dilation, stride)


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_rounds_no_worse_than_the_plain_one(sizes, tables):
    batch, height, width, _, depth, size, stride, _ = sizes
    pixels = batch * -(-height // stride) * -(-width // stride)
    terms = {"out": size**2, "values": size**2, "filters": depth, "mul": pixels, "add": pixels}
    steps = sizes[5:]
    hold(lambda seed: make(seed, tables, *sizes), plain(*steps), fused(*steps), terms)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("tables", TABLES)
def test_the_number_of_threads_changes_no_bit(tables):
    sizes = (2, 9, 13, 2, 11, 3, 2, 1)
    tensors, gradient = make(2, tables, *sizes)

    def found():
        given = run(fused(*sizes[5:]), tensors, gradient, torch.float32)
        return [t for t in given if t is not None]

    hold_for_any_threads(found)


@pytest.mark.usefixtures("lanes")
def test_any_strides_of_memory_are_read():
    sizes = (2, 7, 9, 2, 8, 3, 2, 1)
    tensors, gradient = make(1, "mul", *sizes)
    apart = [tensors[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), *tensors[1:]]
    got, want = (run(fused(3, 2, 1), t, gradient, torch.float32) for t in (apart, tensors))
    assert all(a is None or torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_bfloat16_is_rounded_once():
    tensors, _ = make(3, "mul", 2, 8, 8, 1, 16, 3, 2, 1)
    half = [None if t is None else t.bfloat16() for t in tensors]
    got = fused(3, 2, 1)(*half)
    want = plain(3, 2, 1)(*(None if t is None else t.float() for t in half)).bfloat16()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.01, atol=0.01)


def test_an_empty_batch_gives_an_empty_batch():
    tensors, gradient = make(4, "mul", 0, 4, 4, 1, 8, 3, 2, 1)
    out, values, filters, mul, _ = run(fused(3, 2, 1), tensors, gradient, torch.float32)
    assert out.shape == (0, 2, 2, 8)
    assert (values.shape, filters.shape, mul.shape) == ((0, 4, 4, 8), (0, 2, 2, 1, 9), (0, 8, 9))


def test_other_types_are_refused():
    tensors, _ = make(5, "mul", 1, 4, 4, 1, 8, 3, 2, 1)
    wide = [None if t is None else t.double() for t in tensors]
    with pytest.raises(ValueError, match=r"cannot run: inputs are torch\.float64, the"):
        fused(3, 2, 1)(*wide)


def test_torch_takes_it_for_an_operator_of_its_own():
    tensors, _ = make(6, "both", 1, 5, 6, 2, 4, 3, 2, 1)
    tensors[2:] = [table.mT.contiguous() for table in tensors[2:]]
    given = *(t.requires_grad_() for t in tensors), 3, 2, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals here
        torch.library.opcheck(torch.ops.lsa_kernels.strided_filters, given)


def test_the_layer_takes_it(monkeypatch):
    """A strided layer goes through the kernel, and is the definition's to rounding."""
    calls = []
    kernel = lsa_kernels.apply_strided
    monkeypatch.setattr(
        lsa_kernels, "apply_strided", lambda *a, **k: calls.append(k["stride"]) or kernel(*a, **k)
    )
    layer = DDF(12, kernel_size=3, num_heads=2, stride=2)
    x = torch.randn(2, 9, 8, 12)
    got, want = layer(x), layer.double()(x.double())
    assert calls == [2]
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
