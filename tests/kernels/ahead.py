"""Compile GPU kernels without a GPU, and count what is in the machine code.

``python tests/kernels/ahead.py`` prints the figures of the Gluon kernels. They are counts of
instructions, not times.
"""

import importlib.util
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

NORMS = ("softmax", "filter_norm", "identity")
KERNELS = ("forward_kernel", "queries_kernel", "keys_kernel")
WINDOW_KERNELS = ("window_forward_kernel", "window_backward_kernel")
INPUTS = ("q", "k", "v", "rel_k", "rel_q", "bias")
NUMBERS = ("heads", "height", "width", "windows", "walk")
OF_A_TYPE = {"excluded": "*i1"} | dict.fromkeys(
    ("kept", "norms", "to_rel_k", "to_rel_q", "to_bias"), "*fp32"
)
"""Arguments whose type it is, whatever the maps are."""
ALIGNED = [["tt.divisibility", 16]]


class Count(NamedTuple):
    """What a kernel of Gluon takes."""

    registers: int
    stack: int
    shared: int
    loop: int
    """Instructions of all warps for a tile of 64 pixels, were every branch taken."""
    products: int
    """Matrix instructions among them."""
    barriers: int
    """Of one warp."""


def tool(name, *arguments):
    """What a tool of Triton's own package says."""
    folder = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin"
    return subprocess.run(
        [folder / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def used(made, folder):
    """Registers and bytes of a compiled kernel by name, and its assembly."""
    binary = Path(folder) / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    found = re.findall(r"([A-Z]+):(\d+)", tool("cuobjdump", "-res-usage", str(binary)))
    return {key: int(number) for key, number in found}, tool("cuobjdump", "-sass", str(binary))


def signature(kernel, fixed, dtype, absent):
    """Types of a kernel's arguments, its constants, and what is known of addresses."""
    kinds, constants, attributes = {}, {}, {}
    for at, argument in enumerate(kernel.arg_names):
        name = argument.removeprefix("to_")
        if argument in fixed:
            kinds[argument], constants[(at,)] = "constexpr", fixed[argument]
        elif argument == "x":
            types = [f"*{dtype}"] * 3 + ["*fp32"] * 3
            for i in range(6):
                if INPUTS[i] in absent:
                    types[i], constants[(at, i)] = "constexpr", None
                else:
                    attributes[(at, i)] = ALIGNED
            kinds[argument] = tuple(types)
        elif argument in NUMBERS:
            kinds[argument] = "i32"
        elif argument == "scale":
            kinds[argument] = "fp32"
        elif argument.endswith("steps"):
            kinds[argument] = (("i32",) * 4,) * 3 if argument == "map_steps" else ("i32",) * 4
        elif name in absent:
            kinds[argument], constants[(at,)] = "constexpr", None
        else:
            kinds[argument] = OF_A_TYPE.get(argument, f"*{dtype}")
            attributes[(at,)] = ALIGNED
    return kinds, constants, attributes


def compiled(
    name, architecture=90, dtype="bf16", depth=32, norm="softmax", area="zero", size=7, cut=1,
    absent=(), use_qk=True,
):  # fmt: skip
    """A kernel of Gluon, and its warps; ``absent`` are inputs that are left out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    from lsa_kernels.gpu import tensor_cores

    wide = tensor_cores.padded(depth)
    fixed = {
        "USE_QK": use_qk, "NORM": norm, "MASK": area == "mask", "SIDE": size, "DEPTH": depth,
        "WIDE": wide, "PARTS": cut,
    }  # fmt: skip
    absent = (*absent, "excluded") if area == "window" else absent
    kernel, warps = tensor_cores.kernel_of(name), tensor_cores.warps(name, wide, cut)
    made = triton.compile(
        GluonASTSource(kernel, *signature(kernel, fixed, dtype, absent)),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    return made, warps


def waits(made):
    """What follows in the code on every wait for copies, and what is before the first copy."""
    found = re.findall(
        r"cp\.async\.(?:cg|wait_group)|bar\.sync|ldmatrix|ld\.shared", made.asm["ptx"]
    )
    before = found[found.index("cp.async.cg") - 1]
    return before, [b for a, b in itertools.pairwise(found) if a == "cp.async.wait_group"]


def count(made, warps, folder):
    """Count the instructions of the loop over tiles."""
    usage, assembly = used(made, folder)
    lines = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", assembly, re.M
    )
    lines = [(int(at, 16), name, rest) for at, name, rest in lines]
    back = [(0, 0, 0)]
    for at, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and (to := int(target[1], 16)) < at:
            back.append((at - to, to, at))
    _, begin, end = max(back)
    body = Counter(name.split(".")[0] for at, name, _ in lines if begin <= at <= end)
    return Count(
        usage["REG"], usage["STACK"] + usage["LOCAL"], made.metadata.shared,
        warps * body.total(), warps * body["HMMA"], body["BAR"],
    )  # fmt: skip


def rows():
    """Figures of all norms and areas, then of another type, architecture and depths."""
    yield "kernel, architecture, type, channels, norm, area:", *Count._fields
    for kernels, areas, most in (
        (KERNELS, ("zero", "mask"), 64), (WINDOW_KERNELS, ("window", "shifted"), 24)
    ):  # fmt: skip
        cases = [
            *((90, "bf16", 32, *way) for way in itertools.product(NORMS, areas)),
            (90, "fp16", 32, "softmax", areas[0]), (80, "bf16", 32, "softmax", areas[0]),
            (90, "bf16", 16, "softmax", areas[0]), (90, "bf16", most, "softmax", areas[0]),
        ]  # fmt: skip
        for case, name in itertools.product(cases, kernels):
            with tempfile.TemporaryDirectory() as folder:
                yield name, *case, *count(*compiled(name, *case), folder)


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ", flush=True)  # noqa: T201
