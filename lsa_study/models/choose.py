"""Measure which way computes what networks need fastest on a device: ``lsa bench --choose``.

Networks are run once to see which cases they ask for; each is then computed by every way that can,
on random maps. A way that does not agree with the plain definition is left out, and named.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_kernels.build import BuildError
from lsa_study.errors import EnvironmentLacks
from lsa_study.files import replacing, write_json
from lsa_study.models import throughput
from lsa_study.ops import choices, functional, reference
from lsa_study.ops.choices import Case

ROUNDS = 15
SECONDS = 0.25
"""Of timing for a case, or as long as that many rounds take."""
SLOW = 5.0
"""How many times as long as the fastest a way may take in a first look to be timed with it."""
EVEN = 1.03
"""By so little faster is not faster: the first of ``choices.WAYS`` is chosen."""
DTYPES = {"cuda": (torch.bfloat16, torch.float16, torch.float32), "cpu": (torch.float32,)}
IMAGES = 2
"""That ways are compared on, and networks are asked with."""

Call = Callable[..., Tensor]


def choose(
    layers: Sequence[str], *, size: int, batch: int | None, device: str | None, seconds: float,
    results: Path,
) -> dict[str, Any]:  # fmt: skip
    """Measure what these networks need on this device, and write it where ``auto`` looks.

    The table is written after every case, beside what it held of others; the same figures go to
    ``benchmarks/choices.json`` under ``results``.

    Args:
        layers: as of ``throughput.bench``; so are size, batch and device.
        seconds: after so many no further case is begun.

    Raises:
        ConfigError: a network is unknown.
        EnvironmentLacks: the device is not here or fails, or the table cannot be written.
    """
    end = time.monotonic() + seconds
    place, number = throughput.place_of(device, batch)
    networks = throughput.networks_by_name(layers, size, place)
    # Window attention, which is always among them, comes last.
    cases = asked(reversed(networks.values()), size, number, place)
    facts = choices.made_for(place)
    try:
        path = choices.path_of(facts)
    except BuildError as error:
        raise EnvironmentLacks(f"lsa bench --choose: {error}") from None
    found, late = _known(path, facts), cases
    # Once at least, however short the time.
    while late and (late == cases or time.monotonic() < end):
        case, *late = late
        found[str(case)] = measured(case, place)
        _write(path, facts, found)
    choices.forget()
    answer = {
        "machine": throughput.machine(place), "batch": number, "size": size, "table": str(path),
        "cases": {str(case): found[str(case)] for case in cases if case not in late},
        "late": [str(case) for case in late],
    }  # fmt: skip
    write_json(results / "benchmarks" / "choices.json", answer, make_folder=True)
    return answer


def asked(networks: Iterable[nn.Module], size: int, batch: int, device: torch.device) -> list[Case]:
    """The cases that networks ask for in inference and training, for batches of so many."""
    given = list(networks)
    images = torch.randn(IMAGES, 3, size, size, device=device)
    with choices.listening() as cases:
        for dtype in DTYPES[device.type]:
            for network in given:
                narrow = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
                with narrow, torch.inference_mode():
                    network.eval()(images)
                with narrow:
                    network.train()(images)
    alike = choices.alike(batch)
    return list(dict.fromkeys(case._replace(batch=alike) for case in cases))


def measured(case: Case, device: torch.device) -> dict[str, Any]:
    """What came of one case: the way that is chosen, times by way, and who was left out why."""
    left_out: dict[str, str] = {}
    tensors, gradient = inputs(case, case.batch, device)
    calls: dict[str, throughput.Contender] = {
        way: partial(results_of, contender(case, way), tensors, gradient, case.learns)
        for way in choices.WAYS[case.form]
    }
    first: dict[str, float] = {}
    for way, call in calls.items():
        # Tiles are timed at the size of the case, and then compared.
        with _noted(left_out, way, device), _tiles_timed(device):
            timed = throughput.interleaved({way: call}, seconds=0.0, device=device)
            first[way] = timed[way].low
    small = inputs(case, IMAGES, device)
    for way in [*first]:
        with _noted(left_out, way, device):
            if way != "reference" and (reason := why_wrong(case, way, *small)):
                left_out[way] = reason
    right = {way: first[way] for way in first if way not in left_out}
    for way in right:
        if (times := right[way] / min(right.values())) > SLOW:
            left_out[way] = f"takes {times:.1f} times as long as the fastest"
    kept = {way: calls[way] for way in right if way not in left_out}
    if not kept:
        return {"way": "reference", "seconds": {}, "left_out": left_out}
    timings = throughput.interleaved(kept, seconds=SECONDS, device=device, least=ROUNDS)
    fastest = min(one.median for one in timings.values())
    chosen = next(way for way, one in timings.items() if one.median <= EVEN * fastest)
    times_of = {way: asdict(one) for way, one in timings.items()}
    return {"way": chosen, "seconds": times_of, "left_out": left_out}


@contextlib.contextmanager
def _noted(left_out: dict[str, str], way: str, device: torch.device) -> Iterator[None]:
    """Leave a way out that fails.

    Raises:
        EnvironmentLacks: the device fails since; nothing that is measured after that would count.
    """
    try:
        yield
    except Exception as error:  # whatever it is, there are other ways
        left_out[way] = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        try:
            torch.zeros(1, device=device).item()
        except RuntimeError:
            raise EnvironmentLacks(
                f"lsa bench --choose: {device} fails since {way} was tried ({left_out[way]}); "
                "start again without it, or give --device cpu",
                cause="node",
            ) from error


def inputs(case: Case, batch: int, device: torch.device) -> tuple[list[Tensor | None], Tensor]:
    """Random inputs of a case, and a gradient of its output.

    Maps are as one projection leaves them; parameters are float32, as under autocast.
    """
    draw = torch.Generator(device).manual_seed(0)
    height, width = case.map_size
    taps, heads, depth = case.size[0] * case.size[1], case.heads, case.depth

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    if case.form == "filters":
        values, grad = (normal(batch, height, width, heads * depth, dtype=case.dtype) for _ in "vg")
        weights = normal(batch, height, width, heads, taps).softmax(-1).to(case.dtype)
        ghosts = [normal(heads * depth, *case.size) if n in case.terms else None
                  for n in ("mul", "add")]  # fmt: skip
        return [values, weights, *ghosts], grad
    qkv = normal(batch, height, width, 4, heads, depth, dtype=case.dtype)
    q, k, v, grad = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
    offsets = taps
    if case.form == "window":
        offsets = (2 * case.size[0] - 1) * (2 * case.size[1] - 1)
    shapes = (heads, offsets, depth), (heads, offsets, depth), (heads, offsets)
    tables = [0.1 * normal(*s) if n in case.terms else None
              for n, s in zip(("q_rk", "rq_k", "bias"), shapes, strict=True)]  # fmt: skip
    reads_q, reads_k = {"qk", "q_rk"} & {*case.terms}, {"qk", "rq_k"} & {*case.terms}
    return [q if reads_q else None, k if reads_k else None, v, *tables], grad.contiguous()


def contender(case: Case, way: str) -> Call:
    """What computes a case's inputs by a way, or raises a ValueError that says why it cannot."""
    if case.form == "filters":
        return lambda values, filters, mul, add: functional.apply_filters(
            values, filters, ghost_mul=mul, ghost_add=add, kernel_size=case.size[0],
            implementation=way,
        )  # fmt: skip
    norm, border = case.options
    plain = norm == "softmax" and {"qk"} <= {*case.terms} <= {"qk", "bias"}
    scale = case.depth**-0.5

    def eq4(q: Any, k: Any, v: Tensor, rel_k: Any, rel_q: Any, rel_bias: Any) -> Tensor:
        if way == "sdpa" and not plain:
            raise ValueError("torch's attention computes a softmax of q.k and a bias alone")
        x = Eq4Inputs(q, k, v, rel_k, rel_q, rel_bias, "qk" in case.terms)
        if case.form == "window":
            shifts = (case.size[0] // 2, case.size[1] // 2) if border == "shifted" else (0, 0)
            excluded = reference.shift_bands(*case.map_size, case.size, shifts, v.device)
            return functional.rolled_window(x, norm, case.size, excluded, scale, way)
        return functional.neighboring(x, norm, case.size[0], border, scale, way)

    return eq4


def results_of(
    call: Call, tensors: Sequence[Tensor | None], gradient: Tensor, learns: bool
) -> list[Tensor | None]:
    """The output, and where wanted the gradients of all inputs."""
    with torch.set_grad_enabled(learns):
        leaves = [None if t is None else t.detach().requires_grad_(learns) for t in tensors]
        out = call(*leaves)
        if not learns:
            return [out]
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(out, given, gradient.to(out.dtype)))
        return [out.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def why_wrong(
    case: Case, way: str, tensors: Sequence[Tensor | None], gradient: Tensor
) -> str | None:
    """Say which result of a way is further from float64 than rounding explains, or None.

    The root mean square of its errors may be twice the plain definition's, or, if that is more,
    twice that of sums one term after the other: how far results move where every input is off by
    half a unit in its last place, times the square root of an eighth of the terms.
    """
    plain = contender(case, "reference")
    wide = [None if t is None else t.double() for t in tensors]
    unit = torch.finfo(case.dtype).eps / 2
    draw = torch.Generator(gradient.device).manual_seed(1)

    def nudged(t: Tensor) -> Tensor:
        noise = torch.rand(t.shape, generator=draw, device=t.device, dtype=t.dtype)
        return t * (1 + unit * (2 * noise - 1))

    off = [None if t is None else nudged(t) for t in wide]
    exact = results_of(plain, wide, gradient.double(), case.learns)
    moved = results_of(plain, off, nudged(gradient.double()), case.learns)
    rounded = results_of(plain, tensors, gradient, case.learns)
    found = results_of(contender(case, way), tensors, gradient, case.learns)
    sums = 3 * case.depth + 3 * case.size[0] * case.size[1]
    pixels = IMAGES * case.map_size[0] * case.map_size[1]
    for at, want in enumerate(exact):
        others = (rounded[at], moved[at], found[at])
        if want is None or any(t is None for t in others):
            continue
        plain_error, response, error = (
            (t.double() - want).square().mean().sqrt().item() for t in others if t is not None
        )
        terms = sums + (pixels if at > len(exact) - 3 else 0)
        allowed = 2 * max(plain_error, (terms / 8) ** 0.5 * response)
        if not error <= allowed:
            name = "the output" if at == 0 else f"gradient {at}"
            return f"wrong: {name} is off by {error:.2g} on average, may be {allowed:.2g}"
    return None


def _tiles_timed(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Let our kernels on a GPU time their tiles, which they do nowhere else."""
    if device.type == "cuda":
        return lsa_kernels.gpu.timed_tiles()
    return contextlib.nullcontext()


def _known(path: Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """The cases of the table that is there, if it can be read."""
    with contextlib.suppress(ValueError):
        if choices.read(path, facts) is not None:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"]
            return found
    return {}


def _write(path: Path, facts: Mapping[str, str], cases: Mapping[str, Any]) -> None:
    content = {
        "format": choices.FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_for": dict(facts), "cases": dict(cases), "tiles": dict(lsa_kernels.gpu.TILES),
    }  # fmt: skip
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise EnvironmentLacks(
            f"{path} cannot be written ({error.strerror or error}); set LSA_KERNELS_CACHE to a "
            "folder of your own"
        ) from error


def choose_text(answer: dict[str, Any]) -> str:
    """What was chosen, as lines for a terminal."""
    machine = answer["machine"]
    lines = [f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"]
    for case, one in answer["cases"].items():
        times = ", ".join(
            f"{way} {1000 * timed['median']:.3g} ms ({1000 * timed['low']:.3g}-"
            f"{1000 * timed['high']:.3g}, {timed['rounds']} rounds)"
            for way, timed in one["seconds"].items()
        )
        lines.append(f"{case}: {one['way']}; {times or 'nothing timed'}")
        lines += [f"    {way} left out: {reason}" for way, reason in one["left_out"].items()]
    lines += [f"{case}: no time was left" for case in answer["late"]]
    return "\n".join([*lines, f"written to {answer['table']}"])
