"""The Gluon kernels without a GPU: emulated against the definitions; when they are taken.

They were not run on a GPU: layouts, races and speed are not seen here.
"""

import itertools
import warnings
from unittest import mock

import emulated
import pytest
import torch
from emulated import make
from exactness import BITS, chosen, hold, spoiled, terms_of_eq4

import lsa_kernels
from lsa_kernels import gpu
from lsa_kernels.gpu import probe, tensor_cores
from lsa_study.ops import choices, functional, reference

if reason := gpu.why_missing() or tensor_cores.why_untested():
    pytest.skip(reason, allow_module_level=True)

from lsa_kernels.gpu import halo, tensor_kernels

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
NORMS = ("softmax", "identity", "filter_norm")
WAYS = list(itertools.product(NORMS, ("zero", "mask")))


def check(sizes, terms, norm, border, dtype=torch.bfloat16, spoil=lambda call: call):
    *shape, depth, size = sizes

    def plain(*given):
        return reference.neighboring(lsa_kernels.Eq4Inputs(*given), norm, size, border, depth**-0.5)

    def fused(q, k, v, rel_k, rel_q, bias, use_qk):
        return lsa_kernels.neighboring_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, use_qk=use_qk, norm=norm, size=size,
            border=border,
        )  # fmt: skip

    batch, _, height, width = shape
    hold(
        lambda seed: make(seed, *shape, depth, size**2), chosen(terms, plain),
        spoil(chosen(terms, fused)), terms_of_eq4(depth, size**2, batch * height * width),
        dtype=dtype, lanes=(None,), seeds=range(2),
    )  # fmt: skip


@pytest.mark.parametrize("at", range(len(SETS)))
def test_any_terms(at, emulation):
    check((1, 1, 9, 5, 16, 5), SETS[at], *WAYS[at % len(WAYS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("norm", "border"), WAYS)
def test_norms_borders_and_types(norm, border, dtype, emulation):
    """Tiles that are not full; channels that fill no power of two.

    The dispatcher leaves float32 to other kernels. Here it shows what is not rounding.
    """
    check((1, 2, 10, 13, 24, 7), TERMS, norm, border, dtype)


@pytest.mark.parametrize(
    ("norm", "sizes"), [("softmax", (2, 1, 17, 3, 64, 3)), ("filter_norm", (1, 1, 2, 9, 40, 7))]
)
def test_small_shared_memory_and_several_programs(norm, sizes, emulation, monkeypatch):
    """All pairs in two parts, and several shares of the tables' gradients."""
    monkeypatch.setattr(tensor_cores, "room_of", lambda device: 150_000)
    monkeypatch.setattr(tensor_cores, "WALK", 1)
    check(sizes, TERMS, norm, "mask")


def call(tensors, **options):
    q, k, v, *tables = tensors
    named = dict(zip(("rel_k", "rel_q", "rel_bias"), tables, strict=True))
    options = {"norm": "softmax", "size": 7} | options
    return lsa_kernels.neighboring_attention(q, k, v, **named, **options)


def test_memory_is_read_as_it_lies(emulation):
    """Any strides; maps beside float32 tables, as autocast has it; nothing kept; empty maps."""
    tensors, gradient = make(1, 1, 2, 5, 9, 16, 49)
    half = [t.half() if t.dim() == 5 else t for t in tensors]
    want = call(half)
    for view in (torch.Tensor.contiguous, lambda t: t.mT.contiguous().mT):
        assert torch.equal(call([view(t) if t.dim() == 5 else t for t in half]), want)
    shifted = torch.cat([half[2].flatten()[:1], half[2].flatten()])[1:].view(half[2].shape)
    assert torch.equal(call([*half[:2], shifted, *half[3:]]), want)
    leaves = [t.detach().requires_grad_() for t in half]
    call(leaves).backward(gradient.half()[:1, :1, :1, :1, :1].expand_as(want))
    assert [leaf.grad.dtype for leaf in leaves] == [torch.half] * 3 + [torch.float] * 3
    empty = [t.detach()[:0].requires_grad_() if t.dim() == 5 else t for t in half]
    assert call(empty).shape == (0, 2, 5, 9, 16)


def test_either_backward_follows_either_forward(emulation):
    """What is kept is as in ``norms``: the largest and 1 over the sum, or mean and deviation."""
    x = lsa_kernels.Eq4Inputs(*make(2, 1, 1, 9, 5, 16, 9)[0])
    eye = torch.eye(9).view(9, 3, 3)[:, :, :, None]
    keys = torch.nn.functional.conv3d(
        torch.nn.functional.pad(x.k[0], (0, 0, 1, 1, 1, 1))[:, None], eye[:, None]
    ).permute(0, 2, 3, 1, 4)
    rows = [x.rel_k[0], x.rel_q[0]]
    logits = (x.q[0, 0, :, :, None] * (keys[0] + rows[0]) + rows[1] * keys[0]).sum(-1) / 4
    logits += x.rel_bias[0]
    found = {n: tensor_cores.forward(x, n, 3, "zero", 0.25, keep=True)[1][0, 0] for n in NORMS}
    top = logits.amax(-1)
    torch.testing.assert_close(found["softmax"][0], top)
    torch.testing.assert_close(found["softmax"][1], 1 / (logits - top[..., None]).exp().sum(-1))
    torch.testing.assert_close(found["filter_norm"][0], logits.mean(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["filter_norm"][1], logits.std(-1))


FAULTS = {
    "a halo one pixel off": ("positions", lambda right: (right() + 1) % 256),
    "taps not turned": ("table_rows", lambda right, t, side, turned: right(t, side, False)),
    "a tap too many": ("known_taps", lambda right, t, side: right(t, side + 1)),
    "no end of the map": ("on_map", lambda right, y, x, h, w: right(y, x, h + 1, w)),
    "a copy not waited for": (None, None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, emulation, monkeypatch):
    name, change = FAULTS[fault]
    if name is None:
        monkeypatch.setattr(emulated.Copies, "wait_group", lambda self, number: None)
    else:
        emulated.spoil(monkeypatch, (halo, tensor_kernels), name, change)
    with pytest.raises(AssertionError):
        check((1, 1, 9, 10, 16, 5), TERMS, "softmax", "mask")


@pytest.mark.parametrize("at", [0, "gradient"])
def test_lost_bits_are_seen(at, emulation):
    """All of float32's but 14, in what is read first, and on the way back."""
    with pytest.raises(AssertionError, match="may be"):
        check(
            (1, 1, 9, 10, 16, 3), TERMS, "softmax", "mask", torch.float32,
            lambda call: spoiled(call, at, BITS),
        )  # fmt: skip


CASE = tensor_cores.USUAL["neighborhoods"]
WINDOW = tensor_cores.USUAL["windows"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": torch.float32}, "maps are float32, tensor cores multiply bfloat16 and float16"),
        ({"size": 9}, "size=9 does not fit a tile; known: 3, 5, 7"),
        ({"area": "window", "size": 9}, "size=9 does not fit a tile; known: 3, 4, 5, 6, 7"),
        ({"area": "shifted", "depth": 40}, "heads have 40 channels, known: 16 to 32 in steps of 8"),
        ({"depth": 20}, "heads have 20 channels, known: 16 to 64 in steps of 8"),
        ({"depth": 72}, "heads have 72 channels"),
        ({}, None),
    ],
)
def test_what_is_left_to_other_kernels(change, words):
    found = tensor_cores.why_never(CASE._replace(**change))
    assert found == words or words in found


def test_the_newest_triton_is_not_trusted(monkeypatch):
    monkeypatch.setattr(tensor_cores.importlib.metadata, "version", lambda name: "3.99.0")
    found = tensor_cores.why_untested()
    assert found == "triton 3.99.0 is installed, its Gluon was tested in 3.8"


@pytest.mark.parametrize(("capability", "words"), [((7, 5), "older than sm_80"), ((12, 0), None)])
def test_old_gpus_are_left_to_other_kernels(capability, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tensor_cores.why_not_here.cache_clear()
    found = tensor_cores.why_not_here(torch.device("cuda", 7))
    tensor_cores.why_not_here.cache_clear()
    assert found == words or words in found


def fake_maps(dtype=torch.bfloat16):
    q = torch.empty((1, 2, 9, 10, 32), device="cuda", dtype=dtype)
    return lsa_kernels.Eq4Inputs(q, q, q)


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(tensor_cores, "why_not_here", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tensor_cores._proven.cache_clear()
    yield
    tensor_cores._proven.cache_clear()


def test_a_case_is_tried_once_and_a_failure_said_once(untried, monkeypatch):
    tried = []
    monkeypatch.setattr(tensor_cores, "_tried", lambda case, device: tried.append(case) or "broken")
    with torch._subclasses.FakeTensorMode():
        x = fake_maps()
        with pytest.warns(UserWarning, match="for neighborhoods of 7 x 7, .* 1 terms, .*: broken"):
            assert tensor_cores.why_not(x, "softmax", 7, "zero") == "broken"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tensor_cores.why_not(x, "softmax", 7, "zero") == "broken"
            assert "float32" in tensor_cores.why_not(fake_maps(torch.float32), "softmax", 7, "zero")
            mixed = x._replace(k=fake_maps(torch.float16).k)
            assert "different types" in tensor_cores.why_not(mixed, "softmax", 7, "zero")
    assert len(tried) == 1
    assert tensor_cores.why_not(x._replace(v=torch.ones(1)), "softmax", 7, "zero")


SAID = {
    (CASE, WINDOW): "no tensor cores: it is old",
    (WINDOW,): "tensor cores for neighborhoods alone: it is old",
    (CASE,): "tensor cores for windows alone: it is old",
    (): "tensor cores",
}


def test_what_stands_for_all_cases_is_said_in_records(monkeypatch):
    assert gpu.why_no_tensor_cores() == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(choices, "table_of", lambda device: (None, "not measured"))
    asked = []
    for missing, said in SAID.items():
        monkeypatch.setattr(
            tensor_cores,
            "why_not_proven",
            lambda case, device, missing=missing: (
                asked.append((case, device)) or ("it is old" if case in missing else None)
            ),
        )
        assert functional.kernels_on("cuda") == f"Triton kernels, {said}"
    assert asked == [(case, torch.device("cuda", 1)) for case in (CASE, WINDOW)] * 4


def test_nothing_is_tried_while_a_graph_is_captured(untried, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch._subclasses.FakeTensorMode():
        assert "captured" in tensor_cores.why_not(fake_maps(), "softmax", 7, "zero")
    assert not tensor_cores._proven(0)


def test_the_probe_compares_with_the_definition(emulation, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device", lambda device: mock.MagicMock())
    for case in (CASE, CASE._replace(norm="filter_norm", area="mask", depth=24, size=3)):
        with torch.no_grad():
            assert tensor_cores._tried(case, device) is None
    forward = tensor_cores.forward
    monkeypatch.setattr(
        tensor_cores, "forward", lambda *given: (1.2 * forward(*given)[0], *forward(*given)[1:])
    )
    assert "output is off by" in tensor_cores._tried(CASE, device)
    monkeypatch.setattr(tensor_cores, "forward", lambda *given: [][1])
    assert tensor_cores._tried(CASE, device) == "IndexError: list index out of range"


def test_the_probe_holds_the_definition():
    """Its own is the one of the operators."""
    tensors, _ = make(0, 2, 2, 5, 9, 8, 9)
    for terms, (norm, border) in itertools.product((TERMS, TERMS[:1]), WAYS):
        x = chosen(terms, lambda *given: lsa_kernels.Eq4Inputs(*given))(
            *(t.double() for t in tensors)
        )
        want = reference.neighboring(x, norm, 3, border, 0.3)
        torch.testing.assert_close(probe.definition(x, norm, 3, border, 0.3), want)


def test_parts_follow_shared_memory():
    assert tensor_cores.parts(32, 227 * 1024) == tensor_cores.parts(64, 163 * 1024) == 1
    assert tensor_cores.parts(32, 99 * 1024) == 2
    with pytest.raises(ValueError, match="101376 bytes of shared memory, two parts need"):
        tensor_cores.parts(64, 99 * 1024)
