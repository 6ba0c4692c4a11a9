"""Run the source of Gluon kernels in torch, without a GPU: what they load, multiply and store.

Triton's interpreter does not know Gluon. Here a kernel's own functions run with other globals: the
language is this module's, and arrays are tensors. Shared memory holds NaN until it is written,
copies arrive when they are waited for, whatever is read or written must lie in its tensor, and
nothing is written twice. Layouts and races are not seen.
"""

import types
from collections import deque
from functools import partial

import torch
import triton

PASSED = {
    name: getattr(torch, name)
    for name in ("exp", "log", "where", "reshape", "int16", "int32", "int64", "float32")
}


class Pointer:
    """Places in a tensor's memory."""

    def __init__(self, memory, offset, written):
        self.memory, self.offset, self.written = memory, offset, written
        self.dtype = types.SimpleNamespace(element_ty=memory.dtype)

    @classmethod
    def to(cls, tensor):
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return cls(memory, tensor.storage_offset(), torch.zeros(memory.shape, dtype=torch.bool))

    def __add__(self, other):
        return Pointer(self.memory, self.offset + other, self.written)

    def chosen(self, mask):
        offset, mask = torch.broadcast_tensors(torch.as_tensor(self.offset), torch.as_tensor(mask))
        places = offset[mask]
        assert ((places >= 0) & (places < len(self.memory))).all(), "outside of its memory"
        return mask, places


def load(pointer, mask=True, other=0.0):
    mask, places = pointer.chosen(mask)
    found = torch.full(mask.shape, other, dtype=pointer.memory.dtype)
    found[mask] = pointer.memory[places]
    return found


def store(pointer, numbers, mask=True):
    mask, places = pointer.chosen(mask)
    assert not pointer.written[places].any(), "written by two"
    assert len(places.unique()) == len(places), "written twice"
    pointer.written[places] = True
    pointer.memory[places] = numbers.expand(mask.shape)[mask].to(pointer.memory.dtype)


class Shared:
    """Shared memory."""

    def __init__(self, tensor):
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tensor.shape

    def index(self, at):
        return Shared(self.tensor[at])

    def slice(self, begin, length, dim=0):
        return Shared(self.tensor.narrow(dim, begin, length))

    def permute(self, order):
        return Shared(self.tensor.permute(order))

    def load(self, layout):
        return self.tensor.clone()

    def store(self, numbers):
        assert numbers.dtype == self.dtype
        self.tensor.copy_(numbers)

    def gather(self, places, axis):
        return self.tensor.gather(axis, places)

    def scatter(self, numbers, places, axis):
        assert (
            torch.zeros(self.tensor.shape).scatter_add(axis, places, torch.ones(places.shape)) < 2
        ).all()
        self.tensor.scatter_(axis, places, numbers)


def allocate_shared_memory(kind, shape, layout, value=None):
    room = Shared(torch.full(shape, float("nan") if kind.is_floating_point else -1, dtype=kind))
    if value is not None:
        room.store(value)
    return room


def mma_v2(left, right, total):
    assert (left.dtype, total.dtype) == (right.dtype, torch.float32)
    return total + left.float() @ right.float()


class Copies:
    """Copies that were started, in groups."""

    def __init__(self):
        self.open, self.groups = [], deque()

    def async_load(self, room, pointer, mask):
        self.open.append((room, load(pointer, mask)))

    def commit_group(self):
        self.groups.append(self.open)
        self.open = []

    def wait_group(self, number):
        while len(self.groups) > number:
            for room, numbers in self.groups.popleft():
                room.store(numbers)


def counted(begin, end):
    """Numbers that are not known when a kernel is compiled."""
    return map(torch.tensor, range(begin, end))


def language(at, programs, warps):
    """What ``gl`` is; ``at`` holds the number of the program."""
    return types.SimpleNamespace(
        **PASSED, load=load, store=store, allocate_shared_memory=allocate_shared_memory,
        arange=lambda begin, end, layout: torch.arange(begin, end),
        zeros=lambda shape, kind, layout: torch.zeros(shape, dtype=kind),
        max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), sqrt_rn=torch.sqrt,
        maximum=lambda a, b: torch.maximum(a, torch.as_tensor(b)),
        minimum=lambda a, b: torch.minimum(a, torch.as_tensor(b)),
        cdiv=lambda a, b: -(-a // b), static_range=range, barrier=lambda: None,
        convert_layout=lambda x, layout: x, SliceLayout=lambda dim, layout: None,
        program_id=lambda axis: torch.tensor(at[0]), num_programs=lambda axis: programs,
        num_warps=lambda: warps,
    )  # fmt: skip


def translated(kernel, names, modules):
    """A kernel's function in a copy of its module, whose globals are the emulated ones."""
    function = kernel.fn
    module = modules.get(function.__module__)
    if module is None:
        module = modules[function.__module__] = dict(function.__globals__)
        for name, value in function.__globals__.items():
            if isinstance(value, triton.JITFunction):
                module[name] = translated(value, names, modules)
            elif isinstance(value, triton.language.constexpr):
                module[name] = value.value
        module.update(names)
    return types.FunctionType(function.__code__, module, function.__name__, function.__defaults__)


def start(kernel, programs, warps, *given, **constants):
    """Run all programs of a kernel, one after the other."""

    def pointers(value):
        if isinstance(value, torch.Tensor):
            return Pointer.to(value)
        return tuple(map(pointers, value)) if isinstance(value, tuple) else value

    given, at, copies = pointers(given), [0], Copies()
    gl = language(at, programs, warps)
    names = {"gl": gl, "tl": gl, "async_copy": copies, "mma_v2": mma_v2, "range": counted}
    run = translated(kernel, names, {})
    for at[0] in range(programs):
        run(*given, **constants)
        assert not [*copies.open, *copies.groups], "a copy that nobody waited for"


def spoil(monkeypatch, modules, name, change):
    """Put a function in the place of one that the kernels of these modules call."""
    right = next(getattr(module, name) for module in modules if hasattr(module, name))
    plain = translated(right, {"gl": language([0], 1, 4)}, {})
    for module in modules:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, partial(change, plain))


def make(seed, batch, heads, height, width, depth, offsets):
    """Inputs of Eq. 4 and a gradient of its output."""
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, batch, height, width, heads, depth, generator=draw)
    shapes = [(heads, offsets, depth), (heads, offsets, depth), (heads, offsets)]
    tables = [0.3 * torch.randn(shape, generator=draw) for shape in shapes]
    return [*maps.transpose(-2, -3).transpose(-3, -4), *tables], torch.randn(
        batch, heads, height, width, depth, generator=draw
    )
