"""Time the operators against their peers at the three stages of Swin-T that the article swaps.

    python benchmarks/operators.py [--batch 8] [--seconds 8] [--rounds 15] [--out FILE]

Every figure is a multiple of the speed of LSA (SDPA) in the same rounds, with its interval; slow
peers are timed apart from the others, against the same. Contenders that compute the same are
compared first; an asterisk marks other semantics, or windows that are cut already. On a CPU,
torch's FlexAttention has no backward. The roofline of a call is what its multiply-adds take at the
rate of a large matrix product, or its inputs and outputs at the rate of a large copy, whichever is
longer, both measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from contenders import (
    BASE,
    DEPTH,
    LIKE,
    SIZE,
    SLOW,
    STAGES,
    Inputs,
    backend,
    compare,
    contenders,
    leave_out_failures,
)  # fmt: skip
from rounds import Effort, machine, options, shown, timed, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lsa_study.models.throughput import Contender, rounds

SCALED = (BASE, "LSA", "Net7 window", "Net7-N", "filters")
MODES = ("forward", "forward+backward")


def step(call: Callable[..., Tensor], inputs: Inputs, gradient: Tensor | None) -> Contender:
    """Forward, or forward and backward to every input."""
    if gradient is None:
        return torch.no_grad()(partial(call, *inputs))
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> None:
        torch.autograd.grad(call(*leaves), leaves, gradient)

    return both


def roofline(device: torch.device, seconds: float = 2.0) -> dict[str, float]:
    """What this machine does at best: operations and bytes a second."""
    side, size = 2048, 1 << 26
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    source, target = (torch.zeros(size, device=device) for _ in range(2))
    calls = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    best = {name: min(t) for name, t in rounds(calls, seconds=seconds, device=device).items()}
    return {
        "flops_per_second": 2 * side**3 / best["product"],
        "bytes_per_second": 2 * 4 * size / best["copy"],
    }


def least(call: Contender, tensors: Inputs, passes: int, peaks: dict[str, float]) -> float:
    """Seconds that a call takes at the roofline; ``tensors`` are read or written once a pass."""
    with FlopCounterMode(display=False) as counter:
        call()
    data = passes * sum(t.numel() * t.element_size() for t in tensors)
    return max(
        counter.get_total_flops() / peaks["flops_per_second"], data / peaks["bytes_per_second"]
    )


def stage(
    batch: int, at: tuple[int, int], mode: str, slow: bool, effort: Effort,
    peaks: dict[str, float], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """All contenders at one stage (side, heads) in one mode."""
    found = contenders(batch, *at, device, slow=slow, forward=mode == "forward")
    leave_out_failures(found)
    compare(found)
    calls = {
        name: step(call, inputs, gradient if mode != "forward" else None)
        for name, (call, inputs, gradient) in found.items()
    }
    times: dict[str, dict[str, Any]] = {}
    for apart in (False, True):
        names = [name for name in calls if name == BASE or (name in SLOW) == apart]
        if len(names) > 1:
            group = timed({name: calls[name] for name in names}, BASE, effort, device)
            times |= {name: time for name, time in group.items() if name not in times}
    passes = 1 if mode == "forward" else 2
    bounds = {
        name: least(calls[name], [*inputs, gradient], passes, peaks)
        for name, (_, inputs, gradient) in found.items()
        if name not in LIKE
    }
    for name, time in times.items():
        time["roofline"] = bounds[LIKE.get(name, name)] / time["median"]
    chosen = backend(batch, *at, device, learns=mode != "forward")
    return {"side": at[0], "heads": at[1], "mode": mode, "sdpa": chosen, "times": times}


def threads(stages: tuple[tuple[int, int], ...], effort: Effort) -> list[dict[str, Any]]:
    """Forward and backward on all threads as a multiple of the speed on one; on a CPU."""
    device, most, found = torch.device("cpu"), torch.get_num_threads(), []

    def on(number: int, call: Contender) -> Contender:
        def counted() -> None:
            torch.set_num_threads(number)
            call()

        return counted

    for side, heads in stages:
        chosen = contenders(8, side, heads, device, slow=False, forward=False)
        for name in SCALED:
            call = step(*chosen[name])
            pair = {"one": on(1, call), "all": on(most, call)}
            times = timed(pair, "one", effort, device)
            torch.set_num_threads(most)
            found.append({"side": side, "heads": heads, "name": name, "threads": most,
                          "speed": times["all"]["speed"]})  # fmt: skip
            print(f"{side} x {side}, {name}: {most} threads x {shown(found[-1]['speed'])}")
    return found


def scaling(device: torch.device, effort: Effort) -> list[dict[str, Any]]:
    """Forward and backward on larger maps and larger batches."""
    cases = [("side", side, 1, side) for side in (14, 28, 56, 112, 224)]
    cases += [("batch", batch, batch, 14) for batch in (1, 4, 16, 64)]
    found = []
    for what, value, batch, side in cases:
        chosen = contenders(batch, side, 3, device, slow=False, forward=False)
        times = timed({name: step(*chosen[name]) for name in SCALED}, BASE, effort, device)
        pixels = batch * side**2
        per_pixel = {name: times[name]["median"] / pixels for name in SCALED}
        found.append({"changed": what, "value": value, "batch": batch, "side": side,
                      "seconds_per_pixel": per_pixel})  # fmt: skip
        cells = "".join(f"{name:>16}{1e9 * t:8.0f} ns" for name, t in per_pixel.items())
        print(f"{what:>8}{value:4d}{cells}")
    return found


def show(found: dict[str, Any]) -> None:
    """One stage and mode as a table."""
    print(
        f"\n{found['side']} x {found['side']}, {found['heads']} heads, {found['mode']}; "
        f"{BASE} is torch's {found['sdpa']}\n"
        f"{'':34}{'ms':>9}{'quartiles':>18}{'x ' + BASE:>22}{'roofline':>10}{'MiB':>8}"
    )
    for name, time in found["times"].items():
        spread = f"{1e3 * time['low']:.1f}-{1e3 * time['high']:.1f}"
        print(
            f"{name:34}{1e3 * time['median']:9.2f}{spread:>18}{shown(time['speed']):>22}"
            f"{100 * time['roofline']:9.0f}%{time['peak_bytes'] / 2**20:8.1f}",
            flush=True,
        )


def measured(
    batch: int, stages: tuple[tuple[int, int], ...], effort: Effort, device: torch.device,
    *, slow: bool, larger: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """All of it, anew after each stage: what was found so far.

    Args:
        slow: the slow peers too.
        larger: other sizes of maps and batches too.
    """
    torch.manual_seed(0)
    peaks = roofline(device, min(2.0, effort.seconds))
    found: dict[str, Any] = {
        "machine": machine(device) | peaks, "batch": batch, "depth": DEPTH, "size": SIZE,
        "stages": [],
    }  # fmt: skip
    for at in stages:
        for mode in MODES:
            found["stages"].append(stage(batch, at, mode, slow, effort, peaks, device))
            show(found["stages"][-1])
            yield found
    quarter = Effort(effort.seconds / 4, effort.rounds)
    if device.type == "cpu" and torch.get_num_threads() > 1:
        found["threads"] = threads(stages, quarter)
        yield found
    if larger:
        print("\nforward+backward, time per pixel of 3 heads")
        found["scaling"] = scaling(device, quarter)
        yield found


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options(parser, seconds=8.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--smallest", action="store_true", help="the smallest maps alone")
    parser.add_argument("--quick", action="store_true", help="leave the slow peers out")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    print(machine(device))
    stages = STAGES[-1:] if asked.smallest else STAGES
    for found in measured(
        asked.batch, stages, Effort(asked.seconds, asked.rounds), device,
        slow=not asked.quick, larger=not asked.smallest,
    ):  # fmt: skip
        write(asked.out, found)


if __name__ == "__main__":
    main()
