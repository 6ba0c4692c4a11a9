"""How Triton's kernels are tried before they are taken, with those of a CPU in their place."""

import contextlib
import os
import stat
import threading

import pytest
import torch

import lsa_kernels
from lsa_kernels import cpu, gpu
from lsa_kernels.build import constant_in_graphs
from lsa_kernels.gpu import tried
from lsa_kernels.operators import Kernels

CPU = torch.device("cpu")
OURS = {
    family: Kernels(getattr(cpu, f"{family}_forward"), getattr(cpu, f"{family}_backward"))
    for family in ("neighboring", "window", "filters")
}


@pytest.mark.parametrize("family", OURS)
def test_right_kernels_pass(family):
    assert tried.compare(family, torch.float32, CPU, OURS[family]) is None


def spoiled(result, at):
    found = list(result)
    found[at] = found[at].roll(1, -1)
    return found


@pytest.mark.parametrize("family", OURS)
def test_a_wrong_result_is_named(family):
    ours = OURS[family]
    number = 4 if family == "filters" else 6

    def wrong_output(*given):
        found = ours.forward(*given)
        return found * 1.01 if family == "filters" else (found[0] * 1.01, *found[1:])

    wrong = Kernels(wrong_output, ours.backward)
    assert "the output" in tried.compare(family, torch.float32, CPU, wrong)
    for at in range(number):
        wrong = Kernels(ours.forward, lambda *given, at=at: spoiled(ours.backward(*given), at))
        assert f"gradient {at + 1}" in tried.compare(family, torch.float32, CPU, wrong)
    lost = Kernels(ours.forward, lambda *given: [t * torch.nan for t in ours.backward(*given)])
    assert "gradient 1" in tried.compare(family, torch.float32, CPU, lost)


@pytest.fixture
def pretended(monkeypatch):
    """A GPU for as far as trying goes; its modules are those in ``kernels``."""
    kernels = {}
    monkeypatch.setattr(tried, "_known", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def import_module(name):
        found = kernels[name.rpartition(".")[2]]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(tried.importlib, "import_module", import_module)
    compare = tried.compare
    monkeypatch.setattr(
        tried, "compare", lambda family, dtype, device, given: compare(family, dtype, CPU, given)
    )
    return kernels


def test_a_family_is_tried_once_in_a_process(pretended):
    calls = []

    def forward(*given):
        calls.append(threading.current_thread())
        return cpu.window_forward(*given)

    pretended["window"] = Kernels(forward, cpu.window_backward)
    with torch.no_grad():
        assert [gpu.why_not_tried("window", torch.float32, 0) for _ in "ab"] == [None, None]
    assert len(calls) == 1
    assert calls[0] is not threading.current_thread()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (RuntimeError("Failed to find C compiler\nmore"), "RuntimeError: Failed to find C comp"),
        (ImportError("no Python.h"), "ImportError: no Python.h"),
        (Kernels(lambda *given: cpu.window_forward(*given)[:2], cpu.window_backward), "Error"),
    ],
)
def test_what_fails_is_a_reason_to_do_without(fault, said, pretended):
    pretended["window"] = fault
    with pytest.warns(UserWarning, match="no Triton kernels of window"):
        assert said in gpu.why_not_tried("window", torch.float32, 0)
    assert said in gpu.why_not_tried("window", torch.float32, 0)


def test_nothing_is_tried_while_a_graph_is_captured(pretended, monkeypatch):
    pretended["window"] = OURS["window"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "captured" in gpu.why_not_tried("window", torch.float32, 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert gpu.why_not_tried("window", torch.float32, 0) is None


def test_a_graph_of_torch_compile_keeps_the_answer(monkeypatch):
    monkeypatch.setattr(lsa_kernels.operators, "on_gpu", lambda tensor: True)
    answer = constant_in_graphs(lambda family, dtype, index: f"{family} {dtype}")
    monkeypatch.setattr(gpu, "why_not_tried", answer)

    @torch.compile(backend="eager", fullgraph=True)
    def asked(x):
        return x + 1 if lsa_kernels.operators.why_not_ready(x, family="window") else x

    assert asked(torch.zeros(1)).item() == 1


def test_compiled_programs_lie_on_the_node_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu.tempfile, "gettempdir", lambda: str(tmp_path))
    found = gpu.local_cache()
    assert found.parent == tmp_path
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert os.environ["TRITON_CACHE_DIR"] == str(found)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert str(gpu.local_cache()) == "/elsewhere"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", "/home")
    assert gpu.local_cache() is None
    monkeypatch.delenv("TRITON_HOME")
    found.chmod(0o777)  # others could put programs there
    assert gpu.local_cache() is None
    found.rmdir()
    found.symlink_to(tmp_path)
    assert gpu.local_cache() is None
    assert "TRITON_CACHE_DIR" not in os.environ


def test_tiles_are_timed_where_that_is_asked_for_alone(monkeypatch):
    pytest.importorskip("triton")
    from lsa_kernels.gpu import tiles

    started = []

    class Kernel:
        arg_names = ("height", "width", "WIDE", "DEPTH", "ROWS", "COLUMNS")

        def fn(self):
            """Triton keeps the function here."""

        def __getitem__(self, grid):
            return lambda *given, **options: started.append(options["num_warps"])

    monkeypatch.setattr(gpu, "TILES", {})
    monkeypatch.setattr(tiles, "fastest", lambda calls: len([call() for call in calls]) - 1)
    on, known = torch.zeros(1), [one["num_warps"] for one in tiles.choices(32)]
    assert len(known) == tiles.FEW

    def start():
        started.clear()
        tiles.launch(Kernel(), None, on, 14, 14, WIDE=32, DEPTH=32, UNKNOWN=1)
        return list(started)

    assert start() == known[:1]
    with gpu.timed_tiles() as found:
        assert start() == [*known, known[-1]]
        assert start() == known[-1:]
    assert found == {"fn float32 height=14 width=14 DEPTH=32": 2}
    gpu.prefer_tiles(dict.fromkeys(found, 99))  # as if there had been more
    assert start() == known[:1]
    gpu.prefer_tiles({})
    assert start() == known[:1]
