"""The Gluon kernels of windows without a GPU: emulated against the definition.

They were not run on a GPU: layouts, races and speed are not seen here.
"""

import itertools
from unittest import mock

import emulated
import pytest
import torch
from emulated import make
from exactness import BITS, chosen, hold, spoiled, terms_of_eq4

import lsa_kernels
from lsa_kernels import gpu
from lsa_kernels.gpu import probe, tensor_cores
from lsa_study.ops import reference

if reason := gpu.why_missing() or tensor_cores.why_untested():
    pytest.skip(reason, allow_module_level=True)

from lsa_kernels.gpu import halo, window, window_tensor_kernels

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
NORMS = ("softmax", "identity", "filter_norm")
WAYS = list(itertools.product(NORMS, (0, 1)))
"""Norms, unshifted and shifted."""


def bands(height, width, size, shift):
    return reference.shift_bands(height, width, size, (shift, shift), torch.device("cpu"))


def check(sizes, terms, norm, shift, dtype=torch.bfloat16, spoil=lambda call: call):
    batch, _, height, width, depth, size = sizes
    # By more than a pixel: of two pixels filter norm keeps the order alone.
    excluded = bands(height, width, size, shift * (size // 2))

    def plain(*given):
        return reference.window(lsa_kernels.Eq4Inputs(*given), norm, size, excluded, depth**-0.5)

    def fused(q, k, v, rel_k, rel_q, bias, use_qk):
        return lsa_kernels.window_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, use_qk=use_qk, norm=norm,
            size=(size, size), excluded=excluded,
        )  # fmt: skip

    hold(
        lambda seed: make(seed, *sizes[:5], (2 * size - 1) ** 2), chosen(terms, plain),
        spoil(chosen(terms, fused)), terms_of_eq4(depth, size**2, batch * height * width),
        dtype=dtype, lanes=(None,), seeds=range(2),
    )  # fmt: skip


@pytest.mark.parametrize("at", range(len(SETS)))
def test_any_terms(at, emulation):
    check((1, 1, 5, 10, 16, 5), SETS[at], *WAYS[at % len(WAYS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("norm", "shift"), WAYS)
def test_norms_shifts_and_types(norm, shift, dtype, emulation):
    """Channels that fill no power of two; float32, which the dispatcher leaves to other kernels."""
    check((1, 2, 14, 7, 24, 7), TERMS, norm, shift, dtype)


@pytest.mark.parametrize("size", [3, 4, 6])
def test_other_sizes_and_several_programs(size, emulation, monkeypatch):
    """Several shares of the tables' gradients, the last of fewer windows, across two images."""
    monkeypatch.setattr(tensor_cores, "WALK", 4)
    check((2, 2, size, 3 * size, 32, size), TERMS, "softmax", 1)


def call(tensors, size, **options):
    q, k, v, *tables = tensors
    named = dict(zip(("rel_k", "rel_q", "rel_bias"), tables, strict=True))
    options = {"norm": "softmax", "size": (size, size)} | options
    return lsa_kernels.window_attention(q, k, v, **named, **options)


def test_memory_is_read_as_it_lies(emulation):
    """Any strides; maps beside float32 tables, as autocast has it; nothing kept; empty maps."""
    tensors, gradient = make(1, 1, 2, 5, 10, 16, 81)
    half = [t.half() if t.dim() == 5 else t for t in tensors]
    excluded = bands(5, 10, 5, 2)
    want = call(half, 5, excluded=excluded)
    for view in (torch.Tensor.contiguous, lambda t: t.mT.contiguous().mT):
        same = [view(t) if t.dim() == 5 else t for t in half]
        assert torch.equal(call(same, 5, excluded=view(excluded)), want)
    leaves = [t.detach().requires_grad_() for t in half]
    grad = gradient.half()[:1, :1, :1, :1, :1].expand_as(want)
    call(leaves, 5, excluded=excluded).backward(grad)
    assert [leaf.grad.dtype for leaf in leaves] == [torch.half] * 3 + [torch.float] * 3
    empty = [t.detach()[:0] if t.dim() == 5 else t.detach() for t in half]
    empty = [t.requires_grad_() for t in empty]
    call(empty, 5).sum().backward()
    assert all((leaf.grad == 0).all() for leaf in empty[3:])


@pytest.mark.parametrize("norm", NORMS)
def test_either_backward_follows_either_forward(norm, emulation):
    """What is kept is as in ``norms``: the largest and 1 over the sum, or mean and deviation."""
    x = lsa_kernels.Eq4Inputs(*make(2, 1, 1, 4, 8, 16, 49)[0])
    _, kept, _ = tensor_cores.window_forward(x, norm, 4, None, 0.25, keep=True)
    tiles = x.of_maps(lambda t: reference.to_windows(t, 4))
    logits = reference.pair_logits(tiles, reference.window_offsets(4), 0.25)
    top = logits.amax(-1)
    want = {
        "softmax": (top, 1 / (logits - top[..., None]).exp().sum(-1)),
        "filter_norm": (logits.mean(-1), logits.std(-1)),
        "identity": (torch.zeros_like(top),) * 2,
    }
    for at, right in enumerate(want[norm]):
        found = reference.to_windows(kept[:, :, at, :, :, None], 4)[..., 0]
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


def off_by_one(right, side):
    return (right(side) + 1) % window_tensor_kernels.used_rows(side)


FAULTS = {
    "offsets one off": ("positions", off_by_one),
    "offsets the other way": ("positions", lambda right, side: right(side).T),
    "a pixel too many": ("known_taps", lambda right, t, side: right(t, side + 1)),
    "the next window's pixels": ("on_map", lambda right, y, x, h, w: right(y, x, h + 1, w)),
    "a copy not waited for": (None, None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, emulation, monkeypatch):
    name, change = FAULTS[fault]
    if name is None:
        monkeypatch.setattr(emulated.Copies, "wait_group", lambda self, number: None)
    else:
        emulated.spoil(monkeypatch, (window_tensor_kernels, halo), name, change)
    with pytest.raises(AssertionError):
        check((1, 1, 10, 10, 16, 5), TERMS, "softmax", 1)


def test_a_pair_that_is_not_excluded_is_seen(emulation, monkeypatch):
    forward = tensor_cores.window_forward

    def without(x, norm, size, excluded, *options):
        return forward(x, norm, size, excluded & (torch.rand(excluded.shape) > 0.1), *options)

    monkeypatch.setattr(tensor_cores, "window_forward", without)
    with pytest.raises(AssertionError):
        check((1, 1, 10, 10, 16, 5), TERMS, "softmax", 1)


@pytest.mark.parametrize("at", [0, "gradient"])
def test_lost_bits_are_seen(at, emulation):
    """All of float32's but 14, in what is read first, and on the way back."""
    with pytest.raises(AssertionError, match="may be"):
        check(
            (1, 1, 6, 9, 16, 3), TERMS, "softmax", 1, torch.float32,
            lambda call: spoiled(call, at, BITS),
        )  # fmt: skip


CASE = tensor_cores.USUAL["windows"]


def test_the_probe_compares_with_the_definition(emulation, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device", lambda device: mock.MagicMock())
    others = [{"norm": "filter_norm", "depth": 24, "size": 3}, {"area": "window", "size": 4}]
    for case in (CASE, *(CASE._replace(**other) for other in others)):
        with torch.no_grad():
            assert tensor_cores._tried(case, device) is None
    backward = tensor_cores.window_backward
    monkeypatch.setattr(
        tensor_cores, "window_backward", lambda *given: [1.2 * t for t in backward(*given)]
    )
    assert "dq is off by" in tensor_cores._tried(CASE, device)


def test_the_probe_holds_the_definition():
    """Its own is the one of the operators."""
    tensors, _ = make(0, 2, 2, 8, 12, 8, 49)
    for terms, (norm, shift) in itertools.product((TERMS, TERMS[:1], TERMS[1:]), WAYS):
        x = chosen(terms, lambda *given: lsa_kernels.Eq4Inputs(*given))(
            *(t.double() for t in tensors)
        )
        given = (norm, 4, bands(8, 12, 4, 2 * shift), 0.3)
        torch.testing.assert_close(probe.window_definition(x, *given), reference.window(x, *given))


def test_what_is_asked_of_a_window(monkeypatch):
    asked = []
    monkeypatch.setattr(tensor_cores, "why_not", lambda x, *case: asked.append(case))
    monkeypatch.setattr(tensor_cores, "window_forward", lambda *given: "tensor cores")
    monkeypatch.setattr(window.eq4, "forward", lambda *given: "others")
    x = lsa_kernels.Eq4Inputs(None, None, torch.zeros(1, 1, 8, 8, 16))
    excluded = bands(8, 8, 4, 2)
    found = [
        window.forward(x, mask, "softmax", 4, columns, 0.25, False)
        for mask, columns in ((None, 4), (excluded, 4), (None, 8))
    ]
    assert found == ["tensor cores", "tensor cores", "others"]
    assert asked == [("softmax", 4, "window"), ("softmax", 4, "shifted")]
