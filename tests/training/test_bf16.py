"""bfloat16 as a precision that a study declares, on a CPU too."""

import pytest
import torch
from lives import StopAfter
from safetensors.torch import load_file

from lsa_study import machine
from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.training import environment, train

BF16 = {"train__precision": "bf16"}
CPU = torch.device("cpu")


def processor(monkeypatch, flags):
    content = f"processor : 0\nmodel name : Some CPU\nflags : fpu avx2 {flags}\n".encode()
    monkeypatch.setattr(machine, "read_whole", lambda path: content)


@pytest.mark.parametrize("flags", ["avx512_bf16", "amx_bf16 amx_tile", "bf16"])
def test_processors_that_compute_in_it_are_known(flags, monkeypatch):
    processor(monkeypatch, flags)
    machine.need_bfloat16()


def test_one_that_does_not_refuses_the_run_and_says_so(make_run, monkeypatch):
    processor(monkeypatch, "avx512f")
    with pytest.raises(EnvironmentLacks, match=r"Some CPU does not compute in bfloat16 itself"):
        machine.need_bfloat16()
    folder = make_run("refused", **BF16)
    assert train(folder) == "failed"
    assert folder.status().cause == "node"
    assert "--set train.precision=float32" in folder.status().message


def test_it_is_another_study_and_only_it_means_the_same_everywhere(monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    plain, amp, bf16 = (
        study.load_study(
            "table1", only="swin", overrides=[f"train.precision={one}"]
        ).variants["swin"]
        for one in ("float32", "amp", "bf16")
    )  # fmt: skip
    assert len({one.identity() for one in (plain, amp, bf16)}) == 3
    gpu = torch.device("cuda")
    assert environment.precision(amp.train, CPU) == torch.float32
    assert environment.precision(bf16.train, CPU) == torch.bfloat16
    assert environment.precision(bf16.train, gpu) == torch.bfloat16


def test_it_trains_is_recorded_and_resumes_bitwise(make_run, monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    whole, pieces = make_run("whole", **BF16), make_run("pieces", **BF16)
    exact = make_run("exact")
    assert train(whole) == "done"
    assert whole.result().precision == "bfloat16"
    assert train(pieces, stop=StopAfter(3)) == "stopped"
    assert train(pieces) == "done"
    first, second = load_file(whole.weights), load_file(pieces.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert train(exact) == "done"
    others = load_file(exact.weights)
    assert any(not torch.equal(first[name], others[name]) for name in first)
