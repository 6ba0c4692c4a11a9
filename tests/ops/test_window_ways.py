"""Windows: which of three ways ``auto`` takes."""

import pytest
import torch

import lsa_kernels
from lsa_study.ops import functional, reference
from lsa_study.ops.functional import spatial_attention

LANES = lsa_kernels.window_lanes() if not lsa_kernels.build.why_missing() else 16
pytestmark = pytest.mark.skipif(
    lsa_kernels.build.why_missing() is not None, reason="the kernels are not built here"
)


@pytest.fixture
def taken(monkeypatch):
    """Names of the ways that were taken."""
    names = []

    def listen(owner, name):
        way = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: names.append(name) or way(*a, **k))

    listen(lsa_kernels, "window_attention")
    listen(functional, "window_by_sdpa")
    listen(reference, "window")
    return names


def attend(batch, rel_k, implementation="auto", norm="softmax", device="cpu"):
    q, k, v = torch.randn(3, batch, 2, 4, 4, 8, device=device).unbind(0)
    shape = (2, 49, 8) if rel_k else (2, 49)
    table = {"rel_k" if rel_k else "rel_bias": torch.randn(shape, device=device)}
    way = {"norm": norm, "application": "window", "size": 4, "implementation": implementation}
    return spatial_attention(q, k, v, **table, **way)


@pytest.mark.parametrize(
    ("batch", "rel_k", "way"),
    [
        (LANES, False, "window_attention"),
        (LANES // 2, False, "window_by_sdpa"),
        (LANES + 1, False, "window_by_sdpa"),
        (LANES // 2, True, "window_attention"),
        (1, True, "window"),
        (0, True, "window_attention"),
    ],
)
def test_few_windows_leave_lanes_empty(taken, batch, rel_k, way):
    attend(batch, rel_k)
    assert taken == [way]


def test_fused_is_not_weighed(taken):
    attend(1, rel_k=True, implementation="fused")
    assert taken == ["window_attention"]


@pytest.mark.skipif(
    lsa_kernels.gpu.why_missing() is not None, reason=str(lsa_kernels.gpu.why_missing())
)
@pytest.mark.parametrize(
    ("rel_k", "norm", "implementation", "way"),
    [
        (False, "softmax", "auto", "window_by_sdpa"),
        (False, "softmax", "fused", "window_attention"),
        (False, "identity", "auto", "window_attention"),
        (True, "softmax", "auto", "window_attention"),
    ],
)
def test_on_a_gpu_torch_keeps_what_it_computes(taken, rel_k, norm, implementation, way):
    with torch._subclasses.FakeTensorMode():
        out = attend(1, rel_k, implementation, norm, device="cuda")
    assert taken == [way]
    assert out.is_cuda


def test_all_ways_agree():
    torch.manual_seed(0)
    for rel_k in (False, True):
        for batch in (1, LANES):
            state = torch.get_rng_state()
            want = attend(batch, rel_k, "reference")
            torch.set_rng_state(state)
            torch.testing.assert_close(attend(batch, rel_k), want, rtol=0, atol=1e-5)
