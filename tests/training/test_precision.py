"""TensorFloat-32: where it is asked for alone, recorded, and put back; see ``gpu`` in conftest."""

import pytest
import torch

from lsa_study.config import study
from lsa_study.training import environment, train

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings(precision):
    overrides = [f"train.precision={precision}"]
    return study.load_study("table1", only="swin", overrides=overrides).variants["swin"]


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_it_is_another_study_on_a_gpu_and_float32_on_a_processor(make_run):
    plain, short = settings("float32"), settings("tf32")
    assert plain.identity() != short.identity()
    assert list(plain.differing(short)) == ["train.precision"]
    assert environment.precision(short.train, GPU) == torch.float32
    folder = make_run(train__precision="tf32", train__epochs=1)
    assert train(folder) == "done"
    if not torch.cuda.is_available():
        assert folder.result().precision == "float32"


@pytest.mark.parametrize(("precision", "short"), [("tf32", True), ("float32", False)])
def test_products_and_convolutions_round_together_while_a_run_lasts(precision, short):
    before = flags()
    with environment.tf32(settings(precision).train, GPU):
        assert flags() == (short, short)
    assert flags() == before
    with environment.tf32(settings(precision).train, CPU):
        assert flags() == before


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "float32"), ((9, 0), "tf32")])
def test_what_an_older_gpu_does_is_recorded(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert environment.precision_name(settings("tf32").train, GPU) == name
    assert environment.precision_name(settings("amp").train, GPU) == "bfloat16"


@pytest.mark.gpu
def test_factors_are_rounded_to_ten_bits(gpu):
    if gpu.type == "cpu" or torch.cuda.get_device_capability(gpu) < environment.TF32_SINCE:
        pytest.skip("has no TensorFloat-32")
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 256, device=gpu).unbind()
    exact = a.double() @ b.double()
    errors = {}
    for precision in ("float32", "tf32"):
        with environment.tf32(settings(precision).train, gpu):
            errors[precision] = ((a @ b).double() - exact).norm() / exact.norm()
    assert errors["float32"] < 1e-6
    assert 1e-5 < errors["tf32"] < 2e-3
