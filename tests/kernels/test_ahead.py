"""The Gluon kernels compiled without a GPU: by hand, and as a start of them would."""

import ahead
import pytest
import torch
from ahead import NORMS

from lsa_kernels import Eq4Inputs, gpu, operators
from lsa_kernels.gpu import tensor_cores

if reason := gpu.why_missing() or tensor_cores.why_untested():
    pytest.skip(reason, allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

WAYS = [(norm, border) for norm in NORMS for border in ("zero", "mask")][1:]
MOST = {
    "forward_kernel": 7_000, "queries_kernel": 11_000, "keys_kernel": 13_000,
    "window_forward_kernel": 6_000, "window_backward_kernel": 13_000,
}  # fmt: skip
"""Instructions of all warps a tile, at softmax, 7 x 7 and 32 channels."""


OF_SM_80 = 163 * 1024
"""Bytes of shared memory that a program may have there; later GPUs have more."""


def judge(name, folder, stack=0, **options):
    made, warps = ahead.compiled(name, **options)
    found = ahead.count(made, warps, folder)
    print(name, options, found)  # noqa: T201
    assert found.stack <= stack, f"{name} {options} spills: {found}"
    assert found.products >= (64 if options.get("size") == 3 else 256), (
        f"{name} {options} has few matrix instructions: {found}"
    )
    wide = tensor_cores.padded(options.get("depth", 32))
    most = tensor_cores.shared_memory(wide, options.get("cut", 1))
    assert found.shared <= (OF_SM_80 if name.startswith("window") else most)
    # All warps have read the last tile before its place is taken, and see all of the next one.
    assert ahead.waits(made) == ("bar.sync", ["bar.sync"] * 2)
    return found


@pytest.mark.parametrize("name", MOST)
def test_machine_code(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    options = {"area": "shifted"} if name.startswith("window") else {}
    assert judge(name, tmp_path, **options).loop <= MOST[name]


class Driver:
    """As much of a GPU's driver as compiling asks for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Whatever would be started on a GPU is compiled; the shared memory that it takes.

    Triton takes ones and multiples of 16 among the arguments for constants of the code.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setattr(operators, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(tensor_cores, "room_of", lambda device: 227 * 1024)
    shared = []

    def start(kernel, programs, on, *given, **constants):
        options = {
            "num_warps": tensor_cores.warps(kernel, constants["WIDE"]), "enable_fp_fusion": True
        }  # fmt: skip
        made = tensor_cores.kernel_of(kernel).warmup(
            *given, grid=(programs,), **constants, **options
        )
        shared.append(made.metadata.shared)

    monkeypatch.setattr(tensor_cores, "start", start)
    return shared


@pytest.mark.parametrize("sizes", [(2, 3, 16, 9, 32), (1, 1, 1, 1, 24)], ids=str)
def test_what_a_start_would_compile(sizes, compiler):
    batch, heads, height, width, depth = sizes
    q, k, v = torch.zeros(3, batch, height, width, heads, depth).half().transpose(-2, -3)
    tables = torch.zeros(heads, 49, depth), torch.zeros(heads, 49, depth), torch.zeros(heads, 49)
    maps = (t.transpose(-3, -4) for t in (q, k, v))
    x, options = Eq4Inputs(*maps, *tables), ("softmax", 7, "mask", 0.2)
    out, kept, _ = tensor_cores.forward(x, *options, keep=True)
    tensor_cores.backward(out, kept, x, *options)
    assert len(compiler) == 3
    assert max(compiler) <= tensor_cores.shared_memory(32, 1)


@pytest.mark.parametrize("sizes", [(2, 3, 16, 24, 32, 4), (1, 1, 7, 7, 24, 7)], ids=str)
def test_what_a_start_of_windows_would_compile(sizes, compiler):
    batch, heads, height, width, depth, size = sizes
    maps = torch.zeros(3, batch, height, width, heads, depth).half().permute(0, 1, 4, 2, 3, 5)
    shapes = [((2 * size - 1) ** 2, *rest) for rest in ((depth,), (depth,), ())]
    x = Eq4Inputs(*maps, *(torch.zeros(heads, *shape) for shape in shapes))
    excluded = torch.zeros(height // size * width // size, size**2, size**2, dtype=torch.bool)
    options = ("softmax", size, excluded, 0.2)
    out, kept, _ = tensor_cores.window_forward(x, *options, keep=True)
    tensor_cores.window_backward(out, kept, x, *options)
    assert len(compiler) == 2
    assert max(compiler) <= OF_SM_80


FEW_TERMS = [
    ("rel_k", "rel_q", "bias"),
    ("q", "k", "rel_k", "rel_q"),
    ("k", "rel_q"),
    ("q", "rel_k"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *({"norm": norm, "area": border} for norm, border in WAYS),
        *({"architecture": 80, "depth": depth, "dtype": "fp16"} for depth in (16, 24, 32, 64)),
        *({"size": 3, "absent": few, "use_qk": few == FEW_TERMS[0]} for few in FEW_TERMS),
        {"absent": ("kept",)},
        # GPUs of 99 KB a program: a few numbers go through the stack.
        {"architecture": 86, "cut": 2, "stack": 64},
    ],
    ids=str,
)
def test_all_machine_code(options, monkeypatch, tmp_path):
    """Norms and borders, types and architectures, channels, and what may be absent."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for name in ahead.KERNELS if "kept" not in options.get("absent", ()) else ahead.KERNELS[:1]:
        judge(name, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *({"norm": norm, "area": area} for norm in NORMS for area in ("window", "shifted")),
        *({"architecture": 80, "depth": depth, "dtype": "fp16"} for depth in (16, 24, 32)),
        *({"size": 3, "absent": few, "use_qk": few == FEW_TERMS[0]} for few in FEW_TERMS),
        *({"size": size} for size in (4, 5, 6)),
    ],
    ids=str,
)
def test_all_machine_code_of_windows(options, monkeypatch, tmp_path):
    """As of neighborhoods; and all sizes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for name in ahead.WINDOW_KERNELS:
        judge(name, tmp_path, **{"area": "shifted"} | options)
