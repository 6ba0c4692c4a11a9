"""The Triton kernels without a GPU: interpreted against the definitions, compiled ahead of time.

Nothing here says how fast they are, or that a GPU agrees with the interpreter.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from ahead import used
from torch.utils.flop_counter import FlopCounterMode

import lsa_kernels
from lsa_kernels import gpu
from lsa_study import measure

pytestmark = pytest.mark.skipif(gpu.why_missing() is not None, reason=str(gpu.why_missing()))

HERE = Path(__file__).parent
# Few, since a child takes seconds to import torch.
GROUPS = (
    "filter_application window_term_sets window_norms window_memory window_shapes_are_foretold",
    "eq4_term_sets eq4_norms_and_borders eq4_memory eq4_shapes_are_foretold "
    "rounding_faults_are_seen",
)


# A child, since Triton looks at TRITON_INTERPRET when a kernel is defined, and for good.
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_interpreted(group):
    # Pixels off the map divide by zero; nothing of theirs is stored.
    command = [sys.executable, "-W", "error", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        [*command, str(HERE / "interpreted.py"), *group.split()], capture_output=True, text=True,
        check=False, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


OF_MAPS = ("forward_kernel", "queries_kernel", "keys_kernel")
ALL = [
    *(("eq4_kernels", name, False) for name in OF_MAPS),
    ("table_kernels", "neighborhoods_kernel", False),
    *(("filter_kernels", name, False) for name in ("apply_kernel", "filters_kernel")),
    ("filter_kernels", "tables_kernel", False),
    *(("eq4_kernels", name, True) for name in OF_MAPS),
    ("table_kernels", "windows_kernel", True),
]
"""Module, kernel, and whether it works on windows."""
NUMBERS = ("heads", "height", "width", "table_stride", "windows", "together")
KEPT = ("kept", "norms", "rel_k", "rel_q", "bias", "mul", "add")
CONSTANTS = {
    "USE_QK": True, "NORM": "softmax", "MASK": False, "BACK": False, "SIZE": 7, "DOWN": 7,
    "ACROSS": 7, "SIDE": 7.0,
}  # fmt: skip


def compiled(module, name, windows, architecture, dtype, depth):
    """Machine code of a kernel at 7 x 7 taps or pixels, memory aligned as torch does it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lsa_kernels.gpu.tiles import choices

    chosen = choices(depth)[0]
    warps = chosen.pop("num_warps")
    fixed = CONSTANTS | chosen | {"WINDOWS": windows, "DEPTH": depth, "WIDE": depth}
    kernel = getattr(importlib.import_module(f"lsa_kernels.gpu.{module}"), name)
    aligned = [["tt.divisibility", 16]]
    signature, constants, attributes = {}, {}, {}
    for at, argument in enumerate(kernel.arg_names):
        if argument in fixed:
            signature[argument], constants[(at,)] = "constexpr", fixed[argument]
        elif argument == "x":
            excluded = "*i1" if windows else "constexpr"
            signature[argument] = (*(f"*{dtype}",) * 3, *("*fp32",) * 3, excluded)
            attributes.update({(at, i): aligned for i in range(7 if windows else 6)})
            if not windows:
                constants[(at, 6)] = None
        elif argument == "map_strides":
            signature[argument] = (("i32",) * 4,) * 3
            attributes.update({(at, i, j): aligned for i in range(3) for j in range(4)})
        elif argument.endswith("strides"):
            signature[argument] = ("i32",) * 4
            attributes.update({(at, i): aligned for i in range(4)})
        elif argument in NUMBERS:
            signature[argument] = "i32"
        elif argument == "scale":
            signature[argument] = "fp32"
        else:
            wide = argument.removeprefix("to_") in KEPT
            signature[argument], attributes[(at,)] = "*fp32" if wide else f"*{dtype}", aligned
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )


FEW = [ALL[0], ALL[4], ALL[7]]


@pytest.mark.parametrize(
    ("module", "name", "windows"), FEW, ids=["neighboring", "filters", "windows"]
)
def test_machine_code_without_spills(module, name, windows, monkeypatch, tmp_path):
    judge(module, name, windows, 80, "bf16", 32, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "dtype", "depth"),
    [(80, "bf16", 32), (90, "fp32", 32), (80, "fp32", 128)],
)
def test_all_machine_code_without_spills(architecture, dtype, depth, monkeypatch, tmp_path):
    """Both architectures, types and depths; a few of the first are the test above."""
    done = FEW if (architecture, dtype, depth) == (80, "bf16", 32) else []
    for module, name, windows in ALL:
        if (module, name, windows) not in done:
            judge(module, name, windows, architecture, dtype, depth, monkeypatch, tmp_path)


def judge(module, name, windows, architecture, dtype, depth, monkeypatch, folder):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
    made = compiled(module, name, windows, architecture, dtype, depth)
    usage, assembly = used(made, folder)
    areas = "windows" if windows else "neighborhoods"
    about = f"{module}.{name} {areas} sm_{architecture} {dtype} {depth} channels"
    print(f"{about}: {usage['REG']} registers, {made.metadata.shared} B shared")  # noqa: T201
    # A spill goes to the stack.
    assert usage["STACK"] == usage["LOCAL"] == 0, f"{about} spills: {usage}"
    # Channels are read 16 bytes at a time, not one by one.
    assert "LDG.E.128" in assembly, about


def cuda_like(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device="cuda", dtype=dtype)


def test_inputs_on_a_gpu_are_accepted_and_shapes_foretold():
    with torch._subclasses.FakeTensorMode():
        q = cuda_like(2, 3, 5, 7, 8).requires_grad_()
        table = cuda_like(3, 49, 8, dtype=torch.float32)
        assert lsa_kernels.why_not_neighboring(q, q, q, size=7) is None
        out = lsa_kernels.neighboring_attention(q, q, q, rel_k=table, norm="softmax", size=7)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, torch.bfloat16, "cuda")


def test_windows_on_a_gpu_are_accepted_counted_and_foretold():
    assert measure  # which tells torch the formulas
    with torch._subclasses.FakeTensorMode():
        q = cuda_like(2, 3, 8, 6, 8).requires_grad_()
        table = cuda_like(3, 35, 8, dtype=torch.float32)
        excluded = cuda_like(4, 12, 12, dtype=torch.bool)
        options = {"norm": "softmax", "size": (4, 3), "excluded": excluded}
        assert "size=(17, 1)" in lsa_kernels.why_not_window(q, q, q, size=(17, 1))
        apart = lsa_kernels.why_not_window(q, q, q, excluded=excluded.cpu(), size=(4, 3))
        with FlopCounterMode(display=False) as counter:
            out = lsa_kernels.window_attention(q, q, q, rel_k=table, **options)
    assert "not together" in apart
    assert (out.shape, out.dtype, out.device.type) == (q.shape, torch.bfloat16, "cuda")
    products = 3 * q.numel() * 12
    assert counter.get_total_flops() == measure.FLOPS_PER_PRODUCT * products


@pytest.mark.parametrize(
    "why_not",
    [
        partial(lsa_kernels.why_not_neighboring, size=3),
        partial(lsa_kernels.why_not_window, size=(3, 3)),
    ],
    ids=["neighboring", "window"],
)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k: (q.double(), k.double()), "takes float32, bfloat16 and float16"),
        (lambda q, k: (q, torch.empty_like(k, device="cpu")), "not together"),
        (lambda q, k: (q.to("meta"), k), "the Triton one on CUDA"),
        (lambda q, k: (cuda_like(1, 1, 3, 3, 129), k), "heads have 129 channels"),
        (lambda q, k: (cuda_like(1, 1, 2**14, 2**13, 32), k), "spans 2**31 numbers or more"),
    ],
)
def test_what_it_cannot_take_is_refused(why_not, change, words):
    with torch._subclasses.FakeTensorMode():
        q, k = change(cuda_like(1, 1, 3, 3, 4), cuda_like(1, 1, 3, 3, 4))
        assert words in why_not(q, k, q)


def test_triton_is_looked_up_once_in_a_process(monkeypatch):
    """Every call of an operator on a GPU asks."""
    asked = []
    find = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: asked.append(name) or find(name)
    )
    gpu._missing.cache_clear()
    with torch._subclasses.FakeTensorMode():
        q = cuda_like(1, 3, 5, 7, 8)
        for _ in range(3):
            assert lsa_kernels.why_not_neighboring(q, q, q, size=3) is None
    assert asked == ["triton"]


def test_without_triton_the_reason_is_said():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.metadata as m; version = m.version\n"
        "def missing(name):\n"
        "    if name == 'triton': raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = missing\n"
        "from lsa_kernels import gpu; print(gpu.why_missing())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "triton is not installed\n"
