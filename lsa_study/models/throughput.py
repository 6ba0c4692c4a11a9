"""Throughput of whole networks, interleaved with window attention: the answer of ``lsa bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lsa_kernels
from lsa_study.errors import ConfigError, LsaError
from lsa_study.files import writable, write_json

LSA = "lsa_swin_tiny"
TIMM = "swin_tiny_patch4_window7_224"
LAYERS = (LSA, TIMM, "dwconv_swin_tiny", "net7_swin_tiny_n", "elsa_swin_tiny")
"""The networks of the article's Table 7, and timm's own Swin-T."""
MODES = ("inference", "training")


class NoDevice(LsaError):
    """The device that was asked for is not here."""

    exit_code = 3


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
        batch: images at once; None means 128 on a GPU, 8 on a CPU.
        device: None means a GPU where there is one.
        seconds: how long all networks together are timed in each mode.
        results: the results folder.

    Raises:
        ConfigError: a network is unknown.
        NoDevice: the device is not here.
    """
    # Imported here, not above: the command line must start without torch.
    import torch

    from lsa_study import measure
    from lsa_study.models import timing

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NoDevice(f"--device {device}: torch finds no GPU here; give cpu")
    names = list(dict.fromkeys([LSA, *(layers or LAYERS)]))
    number = batch or (128 if place.type == "cuda" else 8)
    torch.manual_seed(0)
    networks = {name: _network(name, size).to(place) for name in names}
    images = torch.randn(number, 3, size, size, device=place)
    found: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        counted = measure.count(network, (1, 3, size, size))
        found[name] = {"params": counted.params, "macs": counted.macs}
    for mode in MODES:
        calls = {name: _step(network, images, mode) for name, network in networks.items()}
        timed = timing.interleaved(calls, seconds=seconds, device=place)
        for name, taken in timed.items():
            found[name][mode] = asdict(taken) | {"images_per_second": number / taken.median}
    answer = {
        "machine": timing.machine(place) | {"kernels": lsa_kernels.build_info().split(",")[0]},
        "precision": "bfloat16" if place.type == "cuda" else "float32",
        "batch": number, "size": size, "networks": found,
    }  # fmt: skip
    path = results / "benchmarks" / "networks.json"
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, answer)
    return answer


def _network(name: str, size: int) -> Any:
    import timm

    import lsa_study.models  # noqa: F401  # which tells timm its names

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "elsa_swin_tiny"
        raise ConfigError(f"{name}: no such network; such as {near}")
    sized = {} if size == 224 else {"img_size": size}
    return timm.create_model(name, **sized)


def _step(network: Any, images: Any, mode: str) -> Any:
    import torch

    wide = torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda)

    def infer() -> None:
        with torch.inference_mode(), wide:
            network.eval()(images)

    def train() -> None:
        with wide:
            loss = network.train()(images).float().square().mean()
        loss.backward()
        network.zero_grad()

    return infer if mode == "inference" else train


def as_text(answer: dict[str, Any]) -> str:
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
            peak = (timed["peak_bytes"] or 0) / 2**20
            cells += f"{rate:>22}{timed['images_per_second'] / of_lsa:7.2f}{peak:8.0f}"
        lines.append(cells)
    return "\n".join(lines)
