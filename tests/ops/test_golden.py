"""Functions against tensors of released and reference implementations, in float64 to 1e-9.

Released modules, filled through ``load_official``, are held in tests/models/test_official.py.
"""

import fnmatch
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsa_study.ops import ELSA
from lsa_study.ops.functional import apply_filters, filter_norm, spatial_attention

TERMS = {
    "swin": {"qk", "b"}, "net1": {"qk"}, "net2": {"qr"}, "net3": {"rk"}, "net4": {"b"},
    "net5": {"qr", "rk"}, "net6": {"qr", "rk", "b"}, "net7": {"qk", "qr", "rk", "b"},
}  # fmt: skip


def leaf(array):
    return torch.from_numpy(array).double().requires_grad_()


def close(got, want, name=""):
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else got
    assert got.shape == want.shape, name
    assert np.abs(got - want).max() <= 1e-9, name


@pytest.mark.golden("eq4_*")
def test_eq4(golden):
    meta, (_, phi, net, norm, last) = golden.meta, golden.name.split("_")
    terms = TERMS[net]
    assert terms == set(meta["terms"])
    area = (
        {"application": "window", "size": meta["window"], "shift": meta["shift"]}
        if phi == "window"
        else {"application": "neighboring", "size": meta["kernel"], "border": last}
    )
    ways = ["auto", "reference"]
    if phi == "neigh":
        ways += ["unfold", "sdc"] if last == "mask" else ["unfold"]
    read = {
        "q": terms & {"qk", "qr"}, "k": terms & {"qk", "rk"}, "v": True,
        "rk": "qr" in terms, "rq": "rk" in terms, "rb": "b" in terms,
    }  # fmt: skip
    for way in ways:
        given = {name: leaf(golden[name]) if used else None for name, used in read.items()}
        y = spatial_attention(
            given["q"], given["k"], given["v"], rel_k=given["rk"], rel_q=given["rq"],
            rel_bias=given["rb"], use_qk="qk" in terms,
            norm="filter_norm" if norm == "filter" else norm, implementation=way, **area,
        )  # fmt: skip
        close(y, golden["y"], way)
        y.backward(torch.from_numpy(golden["gy"]))
        for name, tensor in given.items():
            if tensor is not None:
                close(tensor.grad, golden[f"g{name}"], f"{way}: d{name}")


@pytest.mark.golden("eq7_*")
def test_eq7_with_the_ghost_head(golden):
    meta = golden.meta
    heads, lam, gam = meta["heads"], meta["lam"], meta["gamma"]
    batch, depth = golden["q"].shape[0], golden["q"].shape[-1]
    op = ELSA(heads * depth, heads, variant="eq7", kernel_size=meta["kernel"]).double()
    leaves = {name: leaf(golden[name]) for name in ("q", "k", "v", "rk", "rq", "rb", "mul", "add")}
    op.rel_k, op.rel_q, op.rel_bias = (
        torch.nn.Parameter(leaves[name].detach()) for name in ("rk", "rq", "rb")
    )
    product = (leaves["q"] * leaves["k"]).permute(0, 2, 3, 1, 4).flatten(3)
    maps = op.attention_maps(product)
    close(
        maps.permute(0, 3, 1, 2, 4).reshape(batch, heads, -1, meta["kernel"] ** 2), golden["h_attn"]
    )
    y = apply_filters(
        leaves["v"].permute(0, 2, 3, 1), maps, kernel_size=meta["kernel"],
        ghost_mul=leaves["mul"] ** lam if lam else None,
        ghost_add=gam * leaves["add"] if gam else None,
    ).permute(0, 3, 1, 2)  # fmt: skip
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    for name in ("q", "k", "v"):
        close(leaves[name].grad, golden[f"g{name}"], name)
    for name, parameter in (("rk", op.rel_k), ("rq", op.rel_q), ("rb", op.rel_bias)):
        close(parameter.grad, golden[f"g{name}"], name)
    for name, present in (("mul", lam), ("add", gam)):
        if present:
            close(leaves[name].grad, golden[f"g{name}"], name)
    # Alg. 1 as printed gives channel c to head c mod h, not to contiguous heads.
    printed = maps[:, :, :, torch.arange(golden["v"].shape[1]) % heads]
    y = apply_filters(
        leaves["v"].permute(0, 2, 3, 1), printed, kernel_size=meta["kernel"],
        ghost_mul=leaves["mul"] ** lam if lam else None,
        ghost_add=gam * leaves["add"] if gam else None,
    ).permute(0, 3, 1, 2)  # fmt: skip
    close(y, golden["y_interleaved"])


@pytest.mark.golden("dwconv_c*")
def test_depthwise_convolution_is_a_point_of_eq4(golden):
    """The bias term alone, identity norm, neighboring area, one head per channel."""
    x = leaf(golden["x"])
    weight = leaf(golden["w.weight"])
    v = x.unsqueeze(-1)
    out = spatial_attention(
        None, None, v, rel_bias=weight.flatten(1), use_qk=False, norm="identity",
        application="neighboring", size=7,
    ).squeeze(-1)  # fmt: skip
    bias = leaf(golden["w.bias"])
    y = out + bias[:, None, None]
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    close(weight.grad, golden["gw.weight"])
    close(bias.grad, golden["gw.bias"])
    close(F.conv2d(x, weight, bias, padding=3, groups=12), golden["y"])


@pytest.mark.golden("filternorm_spatial*")
def test_filter_norm(golden):
    meta = golden.meta
    taps = meta["kernel"] ** 2
    x = leaf(golden["x"])
    gain = 2**0.5 / meta["kernel"]
    y = filter_norm(x.unflatten(1, (-1, taps)), dim=2, gain=gain).flatten(1, 2)
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])


RELEASED = (
    "lsa_*",
    "elsa_*",
    "ddfpack_*",
    "ddfup_*",
    "dwconv_*",
    "ddwconv_*",
    "involution_*",
    "outlook_*",
)
"""Files with the weights of a released layer."""


UNHELD = "vil_sdc_*_exact0_*"
"""Vision Longformer's default, whose areas are not centred: no study has it."""


def test_every_golden_file_is_held():
    """Released layers through their layout; all else by a function's test."""
    tests = Path(__file__).resolve().parent.parent
    held: dict[str, set[str]] = {}
    for path in tests.rglob("test_*.py"):
        for marker in re.findall(r"^@pytest\.mark\.golden\((.+)\)", path.read_text(), re.MULTILINE):
            for pattern in re.findall(r'"(.+?)"', marker):
                held.setdefault(pattern, set()).add(path.name)
    for name in (tests / "golden" / "index.txt").read_text().split():
        if fnmatch.fnmatch(name, UNHELD):
            continue
        where = {
            file for glob, files in held.items() if fnmatch.fnmatch(name, glob) for file in files
        }
        assert where, f"no test holds {name}"
        if any(fnmatch.fnmatch(name, glob) for glob in RELEASED):
            assert "test_official.py" in where, f"{name} does not come through load_official"
