"""The layers as modules: against timm and loops.

What all of them must bear is in test_every_operator.py.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention

from lsa_study.ops import ELSA, DwConv, UnifiedSpatialOp


def lsa(dim, heads, size, shift=0):
    return UnifiedSpatialOp(
        dim, heads, terms={"qk", "bias"}, norm="softmax", application="window", size=size,
        shift=shift,
    ).double()  # fmt: skip


def take(op, attention):
    """Copy timm's weights; its table is indexed by i - j and lies (offsets, heads)."""
    with torch.no_grad():
        attention.relative_position_bias_table.normal_()
        op.rel_bias.copy_(attention.relative_position_bias_table.flip(0).T)
        op.qkv.load_state_dict(attention.qkv.state_dict())
        op.proj.load_state_dict(attention.proj.state_dict())


def test_lsa_is_timms_window_attention():
    theirs = WindowAttention(16, 4, window_size=7).double()
    op = lsa(16, 4, 7)
    take(op, theirs)
    x = torch.randn(3, 7, 7, 16, dtype=torch.float64)
    want = theirs(x.flatten(1, 2)).unflatten(1, (7, 7))
    torch.testing.assert_close(op(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("height", "width"), [(14, 14), (14, 21), (10, 13), (14, 7), (8, 30)])
def test_lsa_is_timms_shifted_windows_on_any_map(height, width, shift):
    """Rolled first, padded then, the shift dropped on an axis of one window."""
    block = SwinTransformerBlock(
        16, (height, width), num_heads=4, window_size=7, shift_size=shift
    ).double()
    op = lsa(16, 4, 7, shift)
    take(op, block.attn)
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    torch.testing.assert_close(op(x), block._attn(x), rtol=1e-12, atol=1e-12)


def elsa_by_hand(op, x):
    """The released module's formula, pixel by pixel and tap by tap."""
    weights = {name: p.detach().numpy() for name, p in op.named_parameters()}
    size, heads, dim = op.kernel_size, op.num_heads, op.dim
    reach, taps, dq = size // 2, size * size, op.dim_qk
    batch, height, width, _ = x.shape
    both = x @ weights["pre_proj.weight"][:, :, 0, 0].T + weights["pre_proj.bias"]
    product, v = both[..., :dq] * both[..., dq : 2 * dq], both[..., 2 * dq :]
    mul, add = (None if g is None else g.detach().numpy() for g in op.ghost())
    out = np.zeros_like(x)

    def around(y, xx):
        for t, (dy, dx) in enumerate(itertools.product(range(-reach, reach + 1), repeat=2)):
            if 0 <= y + dy < height and 0 <= xx + dx < width:
                yield t, y + dy, xx + dx

    group = weights["attn.0.weight"].shape[1]
    for b, y, xx in np.ndindex(batch, height, width):
        hidden = weights["attn.0.bias"].copy()
        for c in range(dq):
            for t, yy, xxx in around(y, xx):
                near = product[b, yy, xxx, c - c % group : c - c % group + group]
                hidden[c] += weights["attn.0.weight"][c, :, t // size, t % size] @ near
        hidden *= [0.5 * (1 + math.erf(u / math.sqrt(2))) for u in hidden]
        logits = weights["attn.2.weight"][:, :, 0, 0] @ hidden + weights["attn.2.bias"]
        logits = logits.reshape(heads, taps)
        maps = np.exp(logits - logits.max(1, keepdims=True))
        maps /= maps.sum(1, keepdims=True)
        for c in range(dim):
            for t, yy, xxx in around(y, xx):
                tap = maps[c // (dim // heads), t]
                tap = tap if mul is None else tap * mul[c, t // size, t % size]
                tap = tap if add is None else tap + add[c, t // size, t % size]
                out[b, y, xx, c] += tap * v[b, yy, xxx, c]
    return out @ weights["post_proj.weight"].T + weights["post_proj.bias"]


@pytest.mark.parametrize(("mul", "add"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0.5)])
def test_elsa_matches_its_formula(mul, add):
    op = ELSA(6, 2, kernel_size=3, group_width=2, ghost_mul=mul, ghost_add=add).double()
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    for way in ("auto", "unfold", "reference"):
        op.implementation = way
        np.testing.assert_allclose(
            op(x).detach().numpy(), elsa_by_hand(op, x.numpy()), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("mul", "add", "shape"),
    [(0, 0, None), (0, 1, (1, 6, 3, 3)), (1, 0, (1, 6, 3, 3)), (1, 1, (2, 6, 3, 3))],
)
def test_ghost_head_has_a_parameter_only_where_it_is_present(mul, add, shape):
    op = ELSA(6, 2, kernel_size=3, ghost_mul=mul, ghost_add=add)
    assert (None if op.ghost_head is None else tuple(op.ghost_head.shape)) == shape


def test_elsa_gradients_match_finite_differences():
    op = ELSA(4, 2, kernel_size=3, group_width=2, ghost_mul=1, ghost_add=1).double()
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in op.named_parameters()]
    values = [p.detach().requires_grad_() for p in op.parameters()]

    def call(x, *values):
        return torch.func.functional_call(op, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DwConv(6, num_heads=4), "num_heads=4 does not divide dim=6"),
        (lambda: DwConv(6, kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: ELSA(6, 4), "num_heads=4 does not divide dim=6"),
        (lambda: ELSA(6, 2, kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: ELSA(6, 2, variant="eq8"), "variant='eq8' is unknown; known: conv, eq7"),
        (lambda: ELSA(6, 2, ghost_mul=0.5), "ghost_mul=0.5: a fractional power"),
        (lambda: unified(terms={"qk", "kq"}), "give one or more of qk, q_rk, rq_k, bias"),
        (lambda: unified(terms=()), "give one or more of"),
        (lambda: unified(num_heads=4), "num_heads=4 does not divide dim=6"),
        (lambda: unified(size=4), "give an odd size"),
        (lambda: unified(norm="relu"), "norm='relu' is unknown"),
    ],
)
def test_what_cannot_be_built_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def unified(**change):
    options = {"terms": {"qk"}, "norm": "softmax", "application": "neighboring", **change}
    return UnifiedSpatialOp(6, options.pop("num_heads", 2), **options)


def test_only_what_the_terms_read_is_built():
    rows = {
        frozenset({"qk"}): 3, frozenset({"q_rk"}): 2, frozenset({"rq_k"}): 2,
        frozenset({"bias"}): 1, frozenset({"q_rk", "rq_k"}): 3,
    }  # fmt: skip
    for terms, parts in rows.items():
        op = unified(terms=terms)
        assert op.qkv.out_features == parts * 6
        assert (op.rel_k is not None, op.rel_q is not None, op.rel_bias is not None) == (
            "q_rk" in terms, "rq_k" in terms, "bias" in terms
        )  # fmt: skip
