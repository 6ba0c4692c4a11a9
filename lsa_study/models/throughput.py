"""Throughput of whole networks, interleaved with window attention: the answer of ``lsa bench``."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import lsa_kernels
from lsa_study import measure
from lsa_study.config.names import nearest
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.files import write_json
from lsa_study.machine import cpu_name, device_kind
from lsa_study.ops import functional

LSA = "lsa_swin_tiny"
LAYERS = (
    LSA, "swin_tiny_patch4_window7_224", "dwconv_swin_tiny", "net7_swin_tiny_n", "elsa_swin_tiny",
)  # fmt: skip
"""The networks of the article's Table 7, and timm's own Swin-T."""
MODES = ("inference", "training")

Contender = Callable[[], object]


@dataclass(frozen=True)
class _Timing:
    """Seconds of one call: median, and the quartiles around it; peak extra memory."""

    median: float
    low: float
    high: float
    rounds: int
    peak_bytes: int


def interleaved(
    contenders: Mapping[str, Contender], *, seconds: float, device: torch.device, least: int = 3
) -> dict[str, _Timing]:
    """Time contenders by ``rounds``, ``least`` at least; medians and quartiles."""
    found: dict[str, _Timing] = {}
    for name, times in rounds(contenders, seconds=seconds, device=device, least=least).items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        peak = peak_bytes(contenders[name], device)
        found[name] = _Timing(median, low, high, len(times), peak)
    return found


def rounds(
    contenders: Mapping[str, Contender], *, seconds: float, device: torch.device, least: int = 3
) -> dict[str, list[float]]:
    """Time contenders in turns, A B C A B C, so that what the machine does affects them alike.

    Each is called twice before, apart. Rounds go on for ``seconds`` in all, ``least`` of them at
    least; what each call took is returned in their order.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for call in contenders.values():
        for _ in range(2):
            call()
    wait()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < least:
            for name, call in contenders.items():
                begun = time.perf_counter()
                call()
                wait()
                taken[name].append(time.perf_counter() - begun)
    finally:
        gc.enable()
    return taken


def peak_bytes(call: Contender, device: torch.device) -> int:
    """Most memory a call holds beyond what was there before.

    On a CPU this is what torch's allocator handed out, as its profiler saw it, and the most scratch
    memory of our kernels, as if both came together.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would write to the terminal
    activities = [torch.profiler.ProfilerActivity.CPU]
    lsa_kernels.scratch_bytes()
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    scratch = lsa_kernels.scratch_bytes()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most + scratch


def machine(device: torch.device) -> dict[str, str | int]:
    """What figures must be read with: device, threads, versions, kernels of the device."""
    kernels = functional.kernels_on(device.type)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        kernels = kernels.split(",")[0]
        name = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "kernels": kernels,
    }  # fmt: skip


def bench(
    layers: Sequence[str], *, size: int, batch: int | None, device: str | None, seconds: float,
    results: Path,
) -> dict[str, Any]:  # fmt: skip
    """Time networks in turns on the same images, forward alone and forward with backward.

    bfloat16 by autocast on a GPU, float32 on a CPU. The figures are also written to
    ``benchmarks/networks.json`` under ``results``, where Table 7 finds them.

    Args:
        layers: names of ``lsa_study.models`` or of timm; window attention is always among them.
        size: side of the images, in pixels.
        batch: images at once; None means 128 on a GPU, which is taken where there is one, or 8.
        seconds: how long all networks together are timed in each mode.

    Raises:
        ConfigError: a network is unknown.
        EnvironmentLacks: the device is not here, or the results cannot be written.
    """
    place, number = place_of(device, batch)
    precision = torch.bfloat16 if place.type == "cuda" else torch.float32
    torch.manual_seed(0)
    networks = networks_by_name(layers, size, place)
    images = torch.randn(number, 3, size, size, device=place)
    found: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        counted = measure.count(network, (1, 3, size, size))
        found[name] = {"params": counted.params, "macs": counted.macs}
    for mode in MODES:
        calls = {name: step(one, images, mode, precision) for name, one in networks.items()}
        timed = interleaved(calls, seconds=seconds, device=place)
        for name, taken in timed.items():
            found[name][mode] = asdict(taken) | {"images_per_second": number / taken.median}
    answer = {
        "machine": machine(place),
        "precision": str(precision).removeprefix("torch."),
        "batch": number, "size": size, "networks": found,
    }  # fmt: skip
    write_json(results / "benchmarks" / "networks.json", answer, make_folder=True)
    return answer


def place_of(device: str | None, batch: int | None) -> tuple[torch.device, int]:
    """The device that is asked for, else a GPU where there is one; and how many images at once.

    Raises:
        ConfigError: there is no such device.
        EnvironmentLacks: it is not here.
    """
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {device}: no such device; {nearest(device, ('cpu', 'cuda'))}")
    try:
        place = torch.device(device_kind(device or "auto"))
    except EnvironmentLacks as error:  # its advice is to runs
        said = str(error).replace("--set runtime.device=cpu", "--device cpu")
        raise EnvironmentLacks(said, cause=error.cause) from None
    return place, batch or (128 if place.type == "cuda" else 8)


def networks_by_name(layers: Sequence[str], size: int, place: torch.device) -> dict[str, nn.Module]:
    """Networks of ``lsa_study.models`` or of timm, window attention always among them.

    Raises:
        ConfigError: a network is unknown.
    """
    sized = {} if size == 224 else {"img_size": size}
    found: dict[str, nn.Module] = {}
    for name in dict.fromkeys([LSA, *(layers or LAYERS)]):
        if not timm.is_model(name):
            near = nearest(name, timm.list_models(f"*{name.split('_')[0]}*") or LAYERS)
            raise ConfigError(f"{name}: no such network; {near}")
        found[name] = timm.create_model(name, **sized).to(place)
    return found


def step(network: nn.Module, images: Tensor, mode: str, precision: torch.dtype) -> Contender:
    """One call of a network: inference, or training as far as its gradients."""
    wide = torch.autocast(images.device.type, precision, enabled=precision != torch.float32)

    def infer() -> None:
        with torch.inference_mode(), wide:
            network.eval()(images)

    def train() -> None:
        with wide:
            loss = network.train()(images).float().square().mean()
        loss.backward()
        network.zero_grad()

    return infer if mode == "inference" else train


def bench_text(answer: dict[str, Any]) -> str:
    """The figures as lines for a terminal."""
    machine, networks = answer["machine"], answer["networks"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"{machine['kernels']}; {answer['batch']} x 3 x {answer['size']} x {answer['size']}, "
        f"{answer['precision']}",
        f"{'':30}{'params':>9}{'GMACs':>7}"
        + "".join(f"{mode + ' img/s':>22}{'x LSA':>7}{'MiB':>8}" for mode in MODES),
    ]
    for name, one in networks.items():
        cells = f"{name:30}{one['params'] / 1e6:8.2f}M{one['macs'] / 1e9:7.2f}"
        for mode in MODES:
            timed, of_lsa = one[mode], networks[LSA][mode]["images_per_second"]
            low, high = answer["batch"] / timed["high"], answer["batch"] / timed["low"]
            rate = f"{timed['images_per_second']:.2f} ({low:.2f}-{high:.2f})"
            peak = timed["peak_bytes"] / 2**20
            cells += f"{rate:>22}{timed['images_per_second'] / of_lsa:7.2f}{peak:8.0f}"
        lines.append(cells)
    return "\n".join(lines)
