"""Whole networks against timm's, in inference and in training as far as the gradients.

    python benchmarks/network_steps.py [--what swin|compiled|ddf] [--precision float32|bf16]

swin: Swin-T with other layers against timm's Swin-T. compiled: the same by torch.compile, as our
trainer's ``runtime.compile`` does it, against timm's compiled, in training. ddf: ResNet-50 with
DDF in place of its 3 x 3 convolutions against timm's ResNet-50, multiply-adds beside.

Ours are in a process that keeps memory, as our workers do; timm's is in one that does not, as its
script does not, and once more among ours. They take turns. bf16 is autocast.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import timm
import torch
from rounds import Apart, Effort, machine, options, shown, timed, write

from lsa_study import measure
from lsa_study.machine import need_bfloat16
from lsa_study.models import throughput
from lsa_study.models.throughput import Contender

SWIN, RESNET = "swin_tiny_patch4_window7_224", "resnet50"
BASE = "timm"
OURS = {
    "LSA": "lsa_swin_tiny", "Net7-N": "net7_swin_tiny_n", "ELSA": "elsa_swin_tiny",
    "DwConv": "dwconv_swin_tiny",
}  # fmt: skip
COMPILED = ("LSA", "Net7-N", "ELSA")
WHAT = {
    "swin": ({BASE: SWIN}, {"timm, memory kept": SWIN, **OURS}),
    "compiled": ({BASE: SWIN}, {name: OURS[name] for name in COMPILED}),
    "ddf": ({BASE: RESNET}, {"timm, memory kept": RESNET, "DDF": "ddf_resnet50"}),
}
"""timm's networks, and ours."""
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def make(
    names: dict[str, str], batch: int, size: int, mode: str, precision: str, compiled: bool
) -> dict[str, Contender]:
    """Networks on the same images, by name."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    calls = {}
    for name, network in names.items():
        torch.manual_seed(0)
        made = timm.create_model(network, **_sized(network, size))
        chosen = torch.compile(made) if compiled else made
        calls[name] = throughput.step(chosen, images, mode, PRECISIONS[precision])
    return calls


def _sized(network: str, size: int) -> dict[str, int]:
    return {"img_size": size} if "swin" in network and size != 224 else {}


def measured(
    what: str, precision: str, effort: Effort, *, batch: int = 8, size: int = 224
) -> Iterator[dict[str, Any]]:
    """Networks in both modes, anew after each: what was found so far.

    Raises:
        EnvironmentLacks: bf16 is asked for on a processor that does not compute in it itself.
    """
    if precision == "bf16":
        need_bfloat16()
    device = torch.device("cpu")
    found: dict[str, Any] = {
        "machine": machine(device), "what": what, "precision": precision, "batch": batch,
        "size": size, "networks": {},
    }  # fmt: skip
    for names in WHAT[what]:
        for name, network in names.items():
            with torch.device("meta"):
                empty = timm.create_model(network, **_sized(network, size))
            counted = measure.count(empty, (1, 3, size, size))
            found["networks"][name] = {"params": counted.params, "macs": counted.macs}
    compiled = what == "compiled"
    for mode in ("training",) if compiled else throughput.MODES:
        sides = []
        try:
            for names, keep in zip(WHAT[what], (False, True), strict=True):
                sides.append(Apart(make, names, batch, size, mode, precision, compiled, keep=keep))
            together = {name: call for side in sides for name, call in side.contenders.items()}
            times = timed(together, BASE, effort, device)
        finally:
            for side in sides:
                side.end()
        for name, time in times.items():
            found["networks"][name][mode] = time | {"images_per_second": batch / time["median"]}
        show(what, precision, mode, found["networks"])
        yield found


def show(what: str, precision: str, mode: str, networks: dict[str, Any]) -> None:
    """One mode as a table."""
    print(f"\n{what}, {precision}, {mode}\n{'':20}{'GMACs':>7}{'img/s':>8}{'x timm':>20}{'MiB':>8}")
    for name, one in networks.items():
        time = one[mode]
        print(
            f"{name:20}{one['macs'] / 1e9:7.2f}{time['images_per_second']:8.2f}"
            f"{shown(time['speed']):>20}{time['peak_bytes'] / 2**20:8.0f}",
            flush=True,
        )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options(parser, seconds=0.0)
    parser.add_argument("--what", choices=WHAT, default="swin")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    asked = parser.parse_args()
    effort = Effort(asked.seconds, asked.rounds)
    for found in measured(asked.what, asked.precision, effort, batch=asked.batch, size=asked.size):
        write(asked.out, found)


if __name__ == "__main__":
    main()
