"""Hold the Triton kernels to the plain definitions, in Triton's interpreter, without a GPU.

Run with TRITON_INTERPRET=1 and names of functions below; test_triton.py does. All memory that
torch hands out holds NaN, so that an element which is not written shows.
"""

import itertools
import sys
from functools import partial

import pytest
import torch
import triton.language as tl
from exactness import BITS, chosen, hold, spoiled, terms_of_eq4
from triton.runtime import interpreter

import lsa_kernels
from lsa_kernels import gpu, operators
from lsa_kernels.gpu import filters, tiles
from lsa_kernels.gpu import neighboring as gpu_neighboring
from lsa_kernels.gpu import window as gpu_window
from lsa_study.ops import functional

TERMS = ("qk", "q_rk", "rq_k", "bias")
SETS = [c for n in range(1, 5) for c in itertools.combinations(TERMS, n)]
NORMS = ("softmax", "identity", "filter_norm")
WAYS = list(itertools.product(NORMS, ("zero", "mask")))


def quicken():
    """Let the interpreter patch Triton's language once, not at every call: 3 x faster.

    And ask it once what each type is in NumPy.
    """
    patch, done = interpreter._patch_lang, set()

    def once(function):
        languages = frozenset(id(m) for m in function.__globals__.values() if m in (tl, tl.core))
        if languages not in done:
            done.add(languages)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once
    look_up, known = interpreter._get_np_dtype, {}

    def look_up_once(kind):
        if (name := kind.scalar.name) not in known:
            known[name] = look_up(kind)
        return known[name]

    interpreter._get_np_dtype = look_up_once


def on_gpu():
    """Let the operators believe that these tensors are on a GPU, whose kernels are interpreted."""
    operators.on_gpu = lambda tensor: True


def make(seed, batch, heads, height, width, depth, offsets):
    draw = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(batch, height, width, 3, heads, depth, generator=draw)[:, :, :, i].permute(
            0, 3, 1, 2, 4
        )
        for i in range(3)
    ]
    shapes = [(heads, offsets, depth), (heads, offsets, depth), (heads, offsets)]
    # Small: where softmax takes one key of few alone, gradients are differences of equal numbers.
    tables = [0.3 * torch.randn(shape, generator=draw) for shape in shapes]
    return [*maps, *tables], torch.randn(maps[0].shape, generator=draw)


def as_it_is(call):
    return call


def compare(about, ours, plain, given, terms, dtype=torch.float32):
    # The interpreter takes its time.
    try:
        hold(given, plain, ours, terms, dtype=dtype, lanes=(None,), seeds=range(2))
    except AssertionError as error:
        raise AssertionError(f"{about}: {error}") from None


def check_eq4(sizes, terms, norm, border, dtype=torch.float32, spoil=as_it_is):
    *shape, depth, size = sizes

    def plain(*given):
        return functional.neighboring(*given, norm, size, border, depth**-0.5)

    def fused(q, k, v, rel_k, rel_q, bias, use_qk):
        return lsa_kernels.neighboring_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, use_qk=use_qk, norm=norm, size=size,
            border=border,
        )  # fmt: skip

    about = f"{'+'.join(terms)} {norm} {border} {sizes} {dtype}"
    batch, _, height, width = shape
    compare(
        about, spoil(chosen(terms, fused)), chosen(terms, plain),
        lambda seed: make(seed, *shape, depth, size**2),
        terms_of_eq4(depth, size**2, batch * height * width), dtype,
    )  # fmt: skip


def eq4_term_sets():
    for at, terms in enumerate(SETS):
        check_eq4((1, 1, 5, 7, 8, 3), terms, *WAYS[at % len(WAYS)])


def eq4_norms_and_borders():
    """Several tiles each way, programs a table, heads, images; channels that fill no power of two.

    And a window that is larger than its map.
    """
    gpu_neighboring.SPAN = 40
    check_eq4((1, 2, 9, 5, 5, 3), TERMS, "filter_norm", "mask")
    check_eq4((1, 1, 9, 10, 5, 3), TERMS, "softmax", "zero")
    check_eq4((1, 1, 2, 9, 16, 5), TERMS, "softmax", "mask")
    check_eq4((2, 1, 5, 7, 8, 3), TERMS, "softmax", "zero", torch.bfloat16)
    check_eq4((1, 1, 5, 7, 8, 3), TERMS, "softmax", "zero", torch.float16)


def eq4_memory():
    """Views are read as they lie; nothing is kept where no gradient is asked for; empty maps."""
    (q, k, v, *_), _ = make(1, 1, 2, 5, 7, 4, 9)
    options = {"norm": "softmax", "size": 3}
    want = lsa_kernels.neighboring_attention(q, k, v, **options)
    for view in (torch.Tensor.contiguous, lambda t: t.mT.contiguous().mT):
        got = lsa_kernels.neighboring_attention(view(q), view(k), view(v), **options)
        assert torch.equal(got, want), "another layout changes the output"
    leaf = v.detach().requires_grad_()
    lsa_kernels.neighboring_attention(q, k, leaf, **options).sum().backward()
    again = v.detach().requires_grad_()
    lsa_kernels.neighboring_attention(q, k, again, **options).backward(torch.ones_like(v))
    assert torch.equal(leaf.grad, again.grad), "a gradient of stride 0 is read otherwise"
    arguments = (q, k, v, None, None, None, True, "softmax", 3, "zero", 0.5)
    assert torch.ops.lsa_kernels.neighboring(*arguments, False)[1].numel() == 0
    tensors, _ = make(5, 0, 2, 4, 4, 8, 9)
    leaves = [t.detach().requires_grad_() for t in tensors]
    q, k, v, rel_k, rel_q, bias = leaves
    lsa_kernels.neighboring_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, **options
    ).sum().backward()
    assert all((leaf.grad == 0).all() for leaf in leaves[3:])


def eq4_shapes_are_foretold():
    """What torch.compile is told about the operators on a GPU is what they give."""
    tensors, gradient = make(2, 1, 2, 3, 5, 4, 9)
    options = (True, "softmax", 3, "zero", 0.5)
    tensors = [t.half() if t.dim() == 5 else t for t in tensors]
    for keep in (True, False):
        arguments = (*tensors, *options, keep)
        same(torch.ops.lsa_kernels.neighboring, arguments)
    out, kept, _ = torch.ops.lsa_kernels.neighboring(*tensors, *options, True)
    same(
        torch.ops.lsa_kernels.neighboring_backward,
        (gradient.half(), kept, out, *tensors, *options),
    )


def same(operator, arguments):
    real = operator(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = operator(
            *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
        )
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype), (r, f)


def some_excluded(seed, height, width, size):
    """Any pairs of any windows, but no pixel from itself: a swapped or a dropped mask shows."""
    pixels = size[0] * size[1]
    draw = torch.Generator().manual_seed(seed)
    shape = (height // size[0] * (width // size[1]), pixels, pixels)
    return (torch.rand(shape, generator=draw) < 0.2) & ~torch.eye(pixels, dtype=torch.bool)


def check_windows(sizes, terms, norm, masked, dtype=torch.float32, spoil=as_it_is):
    *shape, depth, size = sizes
    offsets = (2 * size[0] - 1) * (2 * size[1] - 1)
    excluded = some_excluded(0, *shape[2:], size) if masked else None

    def plain(*given):
        return functional.window(*given, norm, size, excluded, depth**-0.5)

    def fused(q, k, v, rel_k, rel_q, bias, use_qk):
        return lsa_kernels.window_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, use_qk=use_qk, norm=norm, size=size,
            excluded=excluded,
        )  # fmt: skip

    about = f"{'+'.join(terms)} {norm} {'masked ' if masked else ''}{sizes} {dtype}"
    batch, _, height, width = shape
    compare(
        about, spoil(chosen(terms, fused)), chosen(terms, plain),
        lambda seed: make(seed, *shape, depth, offsets),
        terms_of_eq4(depth, size[0] * size[1], batch * height * width), dtype,
    )  # fmt: skip


WINDOW_WAYS = list(itertools.product(NORMS, (False, True)))


def window_term_sets():
    for at, terms in enumerate(SETS):
        check_windows((1, 1, 2, 3, 32, (2, 3)), terms, *WINDOW_WAYS[at % len(WINDOW_WAYS)])


def window_norms():
    """Several windows each way, images, heads, shares and tiles of a window."""
    check_windows((1, 1, 4, 3, 33, (2, 3)), TERMS, "filter_norm", masked=True)
    check_windows((2, 1, 2, 3, 33, (2, 3)), TERMS, "softmax", masked=True, dtype=torch.bfloat16)
    check_windows((1, 1, 2, 3, 33, (2, 3)), TERMS, "softmax", masked=True, dtype=torch.float16)
    gpu_window.SPAN = 8
    check_windows((1, 1, 4, 6, 33, (2, 3)), TERMS, "identity", masked=True)
    tiles.SHAPES = ((2, 2),)
    check_windows((1, 2, 3, 2, 66, (3, 2)), TERMS, "softmax", masked=True)


def window_memory():
    """Views are read as they lie, maps beside tables of another type; empty maps."""
    size, excluded = (2, 3), some_excluded(1, 4, 3, (2, 3))
    tensors, gradient = make(1, 1, 1, 4, 3, 4, 15)
    q, k, v, *tables = tensors
    options = {"norm": "softmax", "size": size, "excluded": excluded}
    want = lsa_kernels.window_attention(q, k, v, **options)
    for view in (torch.Tensor.contiguous, lambda t: t.mT.contiguous().mT):
        got = lsa_kernels.window_attention(view(q), view(k), view(v), **options)
        assert torch.equal(got, want), "another layout changes the output"
    mask = excluded.mT.contiguous().mT
    got = lsa_kernels.window_attention(q, k, v, **options | {"excluded": mask})
    assert torch.equal(got, want), "another layout of the mask changes the output"
    # As autocast has it: maps in half precision, parameters in single.
    leaves = [t.detach().requires_grad_() for t in (*(t.half() for t in (q, k, v)), *tables)]
    names = ("rel_k", "rel_q", "rel_bias")
    named = dict(zip(names, leaves[3:], strict=True))
    lsa_kernels.window_attention(*leaves[:3], **named, **options).backward(gradient.half())
    assert [leaf.grad.dtype for leaf in leaves] == [torch.half] * 3 + [torch.float] * 3
    empty = [t.detach().requires_grad_() for t in make(5, 0, 1, 4, 3, 4, 15)[0]]
    named = dict(zip(names, empty[3:], strict=True))
    lsa_kernels.window_attention(*empty[:3], **named, **options).sum().backward()
    assert all((leaf.grad == 0).all() for leaf in empty[3:])


def window_shapes_are_foretold():
    """As of neighborhoods."""
    tensors, gradient = make(2, 1, 1, 2, 3, 4, 15)
    options = (None, True, "softmax", 2, 3, 0.5)
    tensors = [t.half() if t.dim() == 5 else t for t in tensors]
    for keep in (True, False):
        same(torch.ops.lsa_kernels.window, (*tensors, *options, keep))
    out, kept, _ = torch.ops.lsa_kernels.window(*tensors, *options, True)
    same(torch.ops.lsa_kernels.window_backward, (gradient.half(), kept, out, *tensors, *options))


def weigh(values, weights, mul, add, heads, size):
    """The definition, for tables of all images or of each."""
    batch, height, width, channels = values.shape
    if weights is None:
        weights = values.new_zeros(batch, height, width, heads, size**2)

    def of(table, image):
        if table is None:
            return None
        return (table if table.dim() == 2 else table[image]).view(channels, size, size)

    return torch.cat(
        [
            functional.apply_reference(
                values[i : i + 1], weights[i : i + 1], of(mul, i), of(add, i), size
            )
            for i in range(batch)
        ]
    )


def check_filters(sizes, tables, shared, *, dynamic=True, dtype=torch.float32, spoil=as_it_is):
    batch, height, width, channels, heads, size = sizes

    def given(seed):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=draw)

        lead = () if shared else (batch,)
        mul, add = (
            normal(*lead, channels, size**2) if name in tables else None for name in ("mul", "add")
        )
        values = normal(batch, channels, height, width).permute(0, 2, 3, 1)
        weights = normal(batch, heads, size**2, height, width).permute(0, 3, 4, 1, 2)
        tensors = [values, weights if dynamic else None, mul, add]
        return tensors, normal(batch, height, width, channels)

    taps, pixels = size**2, batch * height * width
    terms = {"out": taps, "dvalues": taps, "dfilters": channels // heads}
    compare(
        f"{sizes} {tables} {'shared' if shared else 'per image'} {dynamic} {dtype}",
        spoil(lambda *tensors: torch.ops.lsa_kernels.filters(*tensors, heads, size)),
        lambda *tensors: weigh(*tensors, heads, size),
        given, terms | dict.fromkeys(("dmul", "dadd"), pixels), dtype,
    )  # fmt: skip


def filter_application():
    """Blocks of channels, several tiles and spans, tables shared and per image, static filters."""
    filters.WIDEST = 4
    both = ("mul", "add")
    check_filters((1, 9, 10, 6, 2, 3), (), shared=True)
    check_filters((1, 5, 10, 6, 2, 3), ("mul",), shared=True)
    check_filters((1, 9, 5, 6, 2, 3), ("add",), shared=True)
    filters.SPAN = 20
    check_filters((2, 9, 3, 6, 1, 3), both, shared=True)
    check_filters((2, 5, 7, 6, 1, 3), both, shared=False)
    check_filters((1, 3, 5, 6, 3, 5), both, shared=True)
    check_filters((2, 5, 7, 6, 2, 3), ("add",), shared=True, dynamic=False)
    for dtype in (torch.bfloat16, torch.float16):
        check_filters((1, 5, 7, 4, 2, 3), both, shared=True, dtype=dtype)
    empty = torch.zeros(0, 5, 7, 6), torch.zeros(0, 5, 7, 2, 9), torch.ones(6, 9), None
    assert filters.forward(*empty, 2, 3).shape == (0, 5, 7, 6)
    assert (filters.backward(empty[0], *empty, 2, 3)[2] == 0).all()


def rounding_faults_are_seen():
    """In what is read first, and on the way back."""
    checks = (
        partial(check_eq4, (1, 1, 2, 3, 8, 3), TERMS, "softmax", "mask"),
        partial(check_windows, (1, 1, 2, 3, 32, (2, 3)), TERMS, "softmax", masked=True),
        partial(check_filters, (1, 3, 5, 6, 2, 3), ("mul", "add"), shared=True),
    )
    for check, at in itertools.product(checks, (0, "gradient")):
        with pytest.raises(AssertionError, match="may be"):
            check(spoil=lambda call, at=at: spoiled(call, at, BITS))


def main():
    assert gpu.why_missing() is None, gpu.why_missing()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    quicken()
    on_gpu()
    for name in sys.argv[1:]:
        globals()[name]()


if __name__ == "__main__":
    main()
