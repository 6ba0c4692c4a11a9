"""Fixtures of the kernels: vectors of either width, and a GPU that is emulated."""

import pytest
import torch
from exactness import LANES, vectors_of

from lsa_kernels import operators

PLENTY = 2**20


@pytest.fixture(params=LANES, ids=lambda number: f"{number} lanes")
def lanes(request):
    """A test with the C++ kernels of 8 floats a vector, then of 16."""
    with vectors_of(request.param):
        yield request.param


@pytest.fixture
def emulation(monkeypatch):
    """Operators take tensors on a CPU as if they were on a GPU whose kernels are emulated."""
    import emulated

    from lsa_kernels.gpu import tensor_cores

    def start(kernel, programs, on, *given, **constants):
        warps = tensor_cores.warps(kernel, constants["WIDE"])
        emulated.start(tensor_cores.kernel_of(kernel), programs, warps, *given, **constants)

    monkeypatch.setattr(operators, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(tensor_cores, "why_not", lambda *given: None)
    monkeypatch.setattr(tensor_cores, "room_of", lambda device: PLENTY)
    monkeypatch.setattr(tensor_cores, "start", start)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
