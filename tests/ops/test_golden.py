"""Operators against tensors of the released and reference implementations, in float64 to 1e-9."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsa_study.models.blocks import SpatialBlock
from lsa_study.ops import ELSA, UnifiedSpatialOp
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


def check(golden, module, wrap=lambda x: x, unwrap=lambda y: y):
    """Output, input gradient and the given weight gradients of a module with the file's weights."""
    x = leaf(golden["x"])
    y = unwrap(module(wrap(x)))
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    for name, want in golden.with_prefix("gw.").items():
        close(module.get_parameter(name).grad.reshape(want.shape), want, name)


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


def elsa_of(golden, prefix="w."):
    meta, weights = golden.meta, golden.with_prefix(prefix)
    dim = golden["x"].shape[-1]
    op = ELSA(
        dim, meta["heads"], kernel_size=meta["kernel"], group_width=meta["group_width"],
        ghost_mul=meta["lam"], ghost_add=meta["gamma"], scale=meta["qk_scale"],
        qkv_bias="pre_proj.bias" in weights,
    ).double()  # fmt: skip
    op.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    return op


@pytest.mark.golden("elsa_d*", "elsa_qkscale*")
def test_elsa(golden):
    check(golden, elsa_of(golden))


@pytest.mark.golden("elsa_block*")
def test_elsa_block(golden):
    block = SpatialBlock(golden["x"].shape[-1], elsa_of(golden, "w.attn.")).double()
    weights = {name: torch.from_numpy(a) for name, a in golden.with_prefix("w.").items()}
    block.load_state_dict(weights)
    check(golden, block)


def swin_attention(golden, size, *, prefix="w.", shift=0):
    """Swin's attention as a point of Eq. 4. Its table is indexed by i - j, so it turns over."""
    weights = golden.with_prefix(prefix)
    meta = golden.meta
    op = UnifiedSpatialOp(
        meta["dim"], meta["heads"], terms={"qk", "bias"}, norm="softmax", application="window",
        size=size, shift=shift,
    ).double()  # fmt: skip
    table = weights.pop("relative_position_bias_table")
    weights["rel_bias"] = np.ascontiguousarray(table[::-1].T)
    op.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    return op


@pytest.mark.golden("lsa_window*")
def test_swin_window_attention(golden):
    rows, columns = golden.meta["window"]
    op = swin_attention(golden, (rows, columns))
    x = leaf(golden["x"])
    y = op(x.unflatten(1, (rows, columns))).flatten(1, 2)
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    for name, want in golden.with_prefix("gw.").items():
        if name == "relative_position_bias_table":
            close(op.rel_bias.grad, np.ascontiguousarray(want[::-1].T), name)
        else:
            close(op.get_parameter(name).grad, want, name)


@pytest.mark.golden("lsa_block*")
def test_swin_block_attention_rolls_then_pads(golden):
    meta = golden.meta
    op = swin_attention(golden, 7, prefix="w.attn.", shift=meta["requested_shift"])
    assert meta["effective_window"] == [7, 7]
    check(golden, op)


@pytest.mark.golden("lsa_elsarepo*")
def test_window_attention_of_the_elsa_release(golden):
    """Its projection is ordered v, q, k; its table is indexed by j - i, as ours."""
    weights = golden.with_prefix("w.")
    op = UnifiedSpatialOp(
        golden.meta["dim"], golden.meta["heads"], terms={"qk", "bias"}, norm="softmax",
        application="window", size=7,
    ).double()  # fmt: skip
    order = np.concatenate(np.split(np.arange(3 * golden.meta["dim"]), 3)[1:] +
                           np.split(np.arange(3 * golden.meta["dim"]), 3)[:1])  # fmt: skip
    op.load_state_dict({
        "qkv.weight": torch.from_numpy(weights["pre_proj.weight"][order]),
        "qkv.bias": torch.from_numpy(weights["pre_proj.bias"][order]),
        "rel_bias": torch.from_numpy(weights["rb"]),
        "proj.weight": torch.from_numpy(weights["post_proj.weight"]),
        "proj.bias": torch.from_numpy(weights["post_proj.bias"]),
    })  # fmt: skip
    check(golden, op, lambda x: x.unflatten(1, (7, 7)), lambda y: y.flatten(1, 2))


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
    y = out + torch.from_numpy(golden["w.bias"])[:, None, None]
    close(y, golden["y"])
    y.backward(torch.from_numpy(golden["gy"]))
    close(x.grad, golden["gx"])
    close(weight.grad, golden["gw.weight"])
    close(
        F.conv2d(x, weight, torch.from_numpy(golden["w.bias"]), padding=3, groups=12), golden["y"]
    )


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
