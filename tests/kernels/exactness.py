"""How tests of the kernels judge rounding: against float64, beside the plain definition."""

import torch


def run(call, tensors, gradient, dtype):
    """Output and all gradients, in float64."""
    leaves = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
    out = call(*leaves)
    out.backward(gradient.to(dtype))
    found = [out.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]
    return [None if t is None else t.double() for t in found]


def hold(exact, rounded, ours, names):
    """At most twice the plain one's error, or a few units in the last place of the largest."""
    for name, e, p, f in zip(names, exact, rounded, ours, strict=True):
        if e is None:
            assert f is None, name
            continue
        allowed = max(2 * (p - e).abs().max(), 8 * 2**-24 * e.abs().max())
        assert (f - e).abs().max() <= allowed, name


def hold_for_any_threads(find):
    """``find`` gives the same tensors on one thread, on two, and on two again."""
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            found.append(find())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
