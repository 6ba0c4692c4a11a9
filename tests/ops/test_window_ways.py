"""Windows: which of three ways ``auto`` takes."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_study.ops import functional, reference, sdpa
from lsa_study.ops.functional import spatial_attention

LANES = 16 if lsa_kernels.build.why_missing() else lsa_kernels.window_lanes(1, tables=False)
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


def attend(batch, rel_k, implementation="auto", norm="softmax", device="cpu", learns=False):
    q, k, v = torch.randn(3, batch, 2, 4, 4, 8, device=device).unbind(0)
    shape = (2, 49, 8) if rel_k else (2, 49)
    table = {"rel_k" if rel_k else "rel_bias": torch.randn(shape, device=device)}
    table = {name: value.requires_grad_(learns) for name, value in table.items()}
    way = {"norm": norm, "application": "window", "size": 4, "implementation": implementation}
    return spatial_attention(q, k, v, **table, **way)


@pytest.mark.parametrize(
    ("batch", "rel_k", "way"),
    [
        (LANES, False, "window_attention"),
        (LANES // 2, False, "window_by_sdpa"),
        (LANES + 1, False, "window_by_sdpa"),
        (1, True, "window_attention"),
        (0, False, "window_attention"),
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


def test_where_the_bias_learns_torch_has_math_alone_and_the_definition_serves(taken):
    assert attend(1, rel_k=False, learns=True).requires_grad
    assert taken == ["window"]
    reason = "torch's fused attention has no gradient of a bias on a CPU"
    v, bias = torch.zeros(1, 2, 4, 4, 8), torch.zeros(2, 49, requires_grad=True)
    assert sdpa.why_not_fused(v, bias) == reason
    assert sdpa.way_on("cpu", torch.float32, learns=True) == f"the plain definition: {reason}"
    with torch.no_grad():
        assert sdpa.why_not_fused(v, bias) is None
    tiles = torch.randn(1, 2, 16, 8)
    mask = torch.zeros(1, 2, 16, 16, requires_grad=True)
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        F.scaled_dot_product_attention(tiles, tiles, tiles, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("learns", [False, True], ids=["inference", "frozen bias"])
def test_torch_serves_windows_by_its_fused_attention(dtype, autocast, shift, learns):
    """Flash on a CPU, with a float32 bias beside maps of any type, and the definition's numbers."""
    torch.manual_seed(0)
    maps = torch.randn(3, 1, 2, 8, 12, 8).to(dtype).unbind(0)
    q, k, v = (t.requires_grad_(learns) for t in maps)
    x = Eq4Inputs(q, k, v, rel_bias=torch.randn(2, 49))
    excluded = reference.shift_bands(8, 12, 4, (shift, shift), None)
    ways = (torch.profiler.ProfilerActivity.CPU,)
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.profiler.profile(activities=ways) as profile,
    ):
        got = functional.rolled_window(x, "softmax", 4, excluded, 0.4, "auto")
    names = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    want = reference.window(x, "softmax", 4, excluded, 0.4)
    assert got.dtype == dtype
    atol = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got, want, rtol=0, atol=atol)
    assert sdpa.way_on("cpu", dtype, learns=False) == "torch's flash attention"


def test_all_ways_agree():
    torch.manual_seed(0)
    for rel_k in (False, True):
        for batch in (1, LANES):
            state = torch.get_rng_state()
            want = attend(batch, rel_k, "reference")
            torch.set_rng_state(state)
            torch.testing.assert_close(attend(batch, rel_k), want, rtol=0, atol=1e-5)
