"""The Gluon kernels without a GPU: emulated against the definitions; when they are taken.

They were not run on a GPU: layouts, races and speed are not seen here.
"""

import itertools
import types
import warnings
from functools import partial
from unittest import mock

import emulated
import pytest
import torch
from exactness import BITS, chosen, hold, spoiled, terms_of_eq4

import lsa_kernels
from lsa_kernels import gpu, operators
from lsa_study.ops import reference

if gpu.why_missing() is not None:
    pytest.skip(str(gpu.why_missing()), allow_module_level=True)

from lsa_kernels.gpu import halo, probe, tensor_cores, tensor_kernels

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
NORMS = ("softmax", "identity", "filter_norm")
WAYS = list(itertools.product(NORMS, ("zero", "mask")))
PLENTY = 2**20


def start(kernel, programs, on, *given, **constants):
    warps = tensor_cores.warps(kernel, constants["WIDE"])
    emulated.start(getattr(tensor_kernels, kernel), programs, warps, *given, **constants)


@pytest.fixture
def emulation(monkeypatch):
    """Operators take tensors on a CPU as if they were on a GPU whose kernels are emulated."""
    monkeypatch.setattr(operators, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(tensor_cores, "why_not", lambda *given: None)
    monkeypatch.setattr(tensor_cores, "room_of", lambda device: PLENTY)
    monkeypatch.setattr(tensor_cores, "start", start)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(seed, batch, heads, height, width, depth, offsets):
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, batch, height, width, heads, depth, generator=draw)
    shapes = [(heads, offsets, depth), (heads, offsets, depth), (heads, offsets)]
    tables = [0.3 * torch.randn(shape, generator=draw) for shape in shapes]
    return [*maps.transpose(-2, -3).transpose(-3, -4), *tables], torch.randn(
        batch, heads, height, width, depth, generator=draw
    )


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
