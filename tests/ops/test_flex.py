"""Neighborhoods by torch's FlexAttention against the definition, in float64 and by rounding."""

import itertools
from unittest import mock

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from lsa_kernels import Eq4Inputs
from lsa_study.models import choose
from lsa_study.ops import UnifiedSpatialOp, choices, flex, reference
from lsa_study.ops.functional import spatial_attention

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [TERMS, ("qk", "bias"), ("q_rk",), ("rq_k", "bias")]
# One tile and several, sides that fill none, an area that reaches over two tiles.
SHAPES = [(9, 10, 7), (16, 8, 3), (5, 3, 7), (9, 13, 11)]


def make(height, width, size, terms, heads=2, depth=6, batch=2):
    draw = torch.Generator().manual_seed(height * width)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    maps = [normal(batch, height, width, heads, depth).permute(0, 3, 1, 2, 4) for _ in range(3)]
    q = maps[0] if {"qk", "q_rk"} & {*terms} else None
    k = maps[1] if {"qk", "rq_k"} & {*terms} else None
    shapes = (heads, size**2, depth), (heads, size**2, depth), (heads, size**2)
    tables = [normal(*s) if t in terms else None for s, t in zip(shapes, TERMS[1:], strict=True)]
    return [q, k, maps[2], *tables], normal(batch, heads, height, width, depth)


def found(way, tensors, gradient, terms, size, border):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    out = way(Eq4Inputs(*leaves, "qk" in terms), "softmax", size, border, 0.4)
    out.backward(gradient)
    return [out.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def nothing(*given):
    """No reason why not; torch cannot compile a mock."""


def backward_on_a_cpu():
    """Torch has one, by its plain mathematics, and refuses to use it."""
    allowed = mock.patch.object(torchs, "_validate_device", nothing)
    ours = mock.patch.object(flex, "why_not_flex", nothing)
    return allowed, ours


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize(
    ("shape", "terms"), [*((s, TERMS) for s in SHAPES), *((SHAPES[0], t) for t in SETS[1:])]
)
def test_output_and_gradients_are_the_definitions(shape, terms, border):
    *_, size = shape
    given = (*make(*shape, terms), terms, size, border)
    allowed, ours = backward_on_a_cpu()
    with allowed, ours:
        got = found(flex.flex, *given)
    for one, right in zip(got, found(reference.neighboring, *given), strict=True):
        assert (one is None) == (right is None)
        if one is not None:
            torch.testing.assert_close(one, right, rtol=0, atol=1e-13)


def test_a_wrong_place_is_seen(monkeypatch):
    right = flex._Place.tap
    monkeypatch.setattr(flex._Place, "tap", lambda self, i, j: 48 - right(self, i, j))
    tensors, _ = make(*SHAPES[0], TERMS)
    x = Eq4Inputs(*tensors)
    with torch.no_grad():
        wrong = flex.flex(x, "softmax", 7, "zero", 0.4)
    want = reference.neighboring(x, "softmax", 7, "zero", 0.4)
    assert (wrong - want).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_rounds_as_the_project_allows(dtype):
    case = choices.Case(
        "neighboring", (7, 7), ("softmax", "zero"), TERMS, 2, (10, 9), 16, 2, dtype, False
    )
    cpu = torch.device("cpu")
    assert choose.why_wrong(case, "flex", *choose.inputs(case, choose.IMAGES, cpu)) is None


@pytest.mark.slow
def test_compiled_code_agrees(monkeypatch):
    """What torch compiles for a CPU; a GPU's is another."""
    monkeypatch.setitem(flex.BACKENDS, "cpu", "inductor")
    flex._compiled.cache_clear()
    try:
        test_it_rounds_as_the_project_allows(torch.float32)
    finally:
        flex._compiled.cache_clear()


def test_what_it_cannot_take_is_refused_with_the_reason():
    layer = UnifiedSpatialOp(
        32, 2, terms=TERMS, norm="identity", application="neighboring", size=3,
        implementation="flex",
    )  # fmt: skip
    maps = torch.randn(1, 4, 5, 32)
    with pytest.raises(ValueError, match="'flex' cannot run: FlexAttention computes a softmax"):
        layer(maps)
    layer.norm = "softmax"
    with pytest.raises(ValueError, match="no backward on a CPU"):
        layer(maps)
    with torch.no_grad():
        got = layer(maps)
        layer.implementation = "reference"
        torch.testing.assert_close(got, layer(maps), rtol=0, atol=1e-5)
    maps = torch.randn(1, 2, 6, 6, 4)
    with pytest.raises(ValueError, match="'flex' does not compute windows"):
        spatial_attention(
            maps, maps, maps, norm="softmax", application="window", size=3, implementation="flex"
        )


def test_an_empty_batch_and_many_shapes_end_well():
    """Torch compiles a function for eight cases, and here each has a function of its own."""
    with torch.no_grad():
        for height, width in itertools.product((1, 2, 3), (1, 2, 9)):
            # One of them is empty.
            batch = 0 if height == width == 2 else 1
            tensors, _ = make(height, width, 3, ("qk",), depth=4, batch=batch)
            out = flex.flex(Eq4Inputs(*tensors), "softmax", 3, "zero", 0.5)
            assert out.shape == tensors[2].shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_on_a_gpu_it_agrees_and_repeats(border, dtype, gpu):
    learns = gpu.type == "cuda"
    case = choices.Case(
        "neighboring", (7, 7), ("softmax", border), TERMS, 3, (14, 11), 32, 2, dtype, learns
    )
    given = choose.inputs(case, choose.IMAGES, gpu)
    assert choose.why_wrong(case, "flex", *given) is None
    call = choose.contender(case, "flex")
    one, other = (choose.results_of(call, *given, learns) for _ in "ab")
    assert all(a is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))
