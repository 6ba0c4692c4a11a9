"""A detector around ELSA-Swin-T, LSA's and timm's Swin-T, one training step each, in turns.

Run: python benchmarks/detection.py [--height 800] [--width 1280] [--seconds 60] [--threads 2]

All three stand in the same Mask R-CNN, whose losses are of the same boxes. Ratios are against
timm's; seconds of the processor are less moved by what else the machine does than those of a clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lsa_study.files import write_json
from lsa_study.models import MODELS, dense
from lsa_study.models.throughput import interleaved, machine

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "detection.json"
TASK = dense.Heads("mask_rcnn")
CLASSES = 80
THEIRS = "timm"


def networks() -> dict[str, nn.Module]:
    """The detectors by name, with the weights that a seed draws."""
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", strict_img_size=False, num_classes=0, drop_path_rate=0.0
    )
    found: dict[str, nn.Module] = {
        THEIRS: dense.Detector(dense.detection_backbone(theirs), TASK, CLASSES)
    }
    for name in ("lsa_swin_tiny", "elsa_swin_tiny"):
        model = MODELS[name].model_copy(update={"drop_path": 0.0})
        found[name] = dense.build(TASK, model, CLASSES)
    return found


def scene(height: int, width: int, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """Noise with eight objects, from a twentieth to a third of the image's side."""
    torch.manual_seed(0)
    masks = torch.zeros(8, height, width, dtype=torch.uint8)
    boxes = []
    for index, mask in enumerate(masks):
        tall, wide = height * (index + 2) // 30, width * (index + 2) // 30
        top, left = index * (height - tall) // 8, (7 - index) * (width - wide) // 8
        mask[top : top + tall, left : left + wide] = 1
        boxes.append([left, top, left + wide, top + tall])
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32, device=device),
        "labels": torch.arange(1, 9, device=device),
        "masks": masks.to(device),
    }
    return torch.randn(3, height, width, device=device), target


def step(
    network: nn.Module, given: tuple[Tensor, dict[str, Any]], taken: list[float]
) -> Callable[[], None]:
    """Forward and backward; its processor time goes to ``taken``."""
    image, target = given

    def train() -> None:
        torch.manual_seed(0)
        begun = time.process_time()
        loss: Any = network.loss  # type: ignore[operator]
        sum(loss([image], [target]).values()).backward()
        network.zero_grad()
        taken.append(time.process_time() - begun)

    return train


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    given = scene(asked.height, asked.width, device)
    taken: dict[str, list[float]] = {}
    calls = {}
    for name, network in networks().items():
        taken[name] = []
        calls[name] = step(network.to(device).train(), given, taken[name])
    timed = interleaved(calls, seconds=asked.seconds, device=device)
    found: dict[str, Any] = {}
    for name, one in timed.items():
        cpu = statistics.median(taken[name][2:-1])  # without warming up, and without the profiler
        found[name] = {"seconds": one.median, "cpu_seconds": cpu, "peak_bytes": one.peak_bytes}
        found[name] |= {"rounds": one.rounds}
    for one in found.values():
        for key in ("seconds", "cpu_seconds", "peak_bytes"):
            one[f"{key}_of_timm"] = one[key] / found[THEIRS][key]
    answer = {
        "machine": machine(device), "height": asked.height, "width": asked.width, "steps": found,
    }  # fmt: skip
    print(json.dumps(answer, indent=2))
    write_json(asked.out, answer, make_folder=True)


if __name__ == "__main__":
    main()
