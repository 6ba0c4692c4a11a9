"""Time the operators against their peers at the three stages of Swin-T that the article swaps.

    python benchmarks/operators.py [--batch 8] [--seconds 5] [--out FILE]

LSA (SDPA) is softmax window attention by torch's scaled_dot_product_attention. Contenders that
compute the same are compared first. One with other semantics is marked with an asterisk. On a CPU,
torch's FlexAttention has no backward. The roofline of a call is what its multiply-adds take at the
rate of a large matrix product, or its inputs and outputs at the rate of a large copy, whichever is
longer, both measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_study.models import throughput as timing
from lsa_study.ops import functional, reference
from lsa_study.ops.ddf import apply_decoupled

STAGES = ((56, 3), (28, 6), (14, 12))
DEPTH, SIZE = 32, 7
Inputs = list[Tensor]


def projected(batch: int, side: int, heads: int, device: torch.device) -> Inputs:
    """Queries, keys and values as one projection leaves them: views of (B, H, W, 3, h, d)."""
    qkv = torch.randn(batch, side, side, 3, heads, DEPTH, device=device)
    return list(qkv.permute(3, 0, 4, 1, 2, 5).unbind(0))


def attention(application: str, implementation: str) -> Callable[..., Tensor]:
    """Eq. 4 with softmax on (q, k, v, tables...)."""

    def call(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        rel_k, rel_q, bias = (*[None] * (3 - len(tables)), *tables)
        return functional.spatial_attention(
            q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax",
            application=application, size=SIZE, implementation=implementation,
        )  # fmt: skip

    return call


def tables(heads: int, offsets: int, terms: str, device: torch.device) -> Inputs:
    """The parameters that a set of terms reads."""
    made = [torch.randn(heads, offsets, DEPTH, device=device) * 0.1 for _ in range(2)]
    bias = torch.randn(heads, offsets, device=device) * 0.1
    return [*made, bias] if terms == "all" else [bias]


def shifts(q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, rel_q: Tensor, bias: Tensor) -> Tensor:
    """A loop over the 49 shifts, for torch.compile."""
    reach, (height, width) = SIZE // 2, v.shape[2:4]
    keys, values = (F.pad(t, (0, 0, reach, reach, reach, reach)) for t in (k, v))
    offsets = [(dy, dx) for dy in range(SIZE) for dx in range(SIZE)]

    def there(x: Tensor, dy: int, dx: int) -> Tensor:
        return x[:, :, dy : dy + height, dx : dx + width]

    logits = torch.stack(
        [
            ((q + rel_q[:, t, None, None]) * there(keys, *at) + q * rel_k[:, t, None, None]).sum(-1)
            * DEPTH**-0.5
            + bias[:, t, None, None]
            for t, at in enumerate(offsets)
        ],
        -1,
    ).softmax(-1)
    return sum(logits[..., t, None] * there(values, *at) for t, at in enumerate(offsets))


def flexing(side: int, device: torch.device) -> Callable[..., Tensor]:
    """Eq. 4 with q.k and bias by torch's FlexAttention, compiled; the border is masked."""
    reach = SIZE // 2

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        down, right = j // side - i // side, j % side - i % side
        return (down.abs() <= reach) & (right.abs() <= reach)

    compiled = torch.compile(flex_attention)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            down = (j // side - i // side + reach).clamp(0, SIZE - 1)
            right = (j % side - i % side + reach).clamp(0, SIZE - 1)
            return logit + bias[h, down * SIZE + right]

        flat = (t.flatten(2, 3) for t in (q, k, v))
        return compiled(*flat, score_mod=score, block_mask=mask).unflatten(2, (side, side))

    mask = create_block_mask(near, None, None, side**2, side**2, device=device)
    return call


def step(call: Callable[..., Tensor], inputs: Inputs, gradient: Tensor | None) -> timing.Contender:
    """Forward, or forward and backward to every input."""
    if gradient is None:
        return torch.no_grad()(partial(call, *inputs))
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> None:
        torch.autograd.grad(call(*leaves), leaves, gradient)

    return both


def roofline(device: torch.device) -> dict[str, float]:
    """What this machine does at best: operations and bytes a second."""
    side, size = 2048, 1 << 26
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    source, target = (torch.zeros(size, device=device) for _ in range(2))
    calls = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    best = {
        name: timing.interleaved({name: call}, seconds=2.0, device=device)[name].low
        for name, call in calls.items()
    }
    return {
        "flops_per_second": 2 * side**3 / best["product"],
        "bytes_per_second": 2 * 4 * size / best["copy"],
    }


def least(call: timing.Contender, tensors: Inputs, passes: int, peaks: dict[str, float]) -> float:
    """Seconds that a call takes at the roofline; ``tensors`` are read or written once a pass."""
    with FlopCounterMode(display=False) as counter:
        call()
    data = passes * sum(t.numel() * t.element_size() for t in tensors)
    return max(
        counter.get_total_flops() / peaks["flops_per_second"], data / peaks["bytes_per_second"]
    )


def contenders(
    batch: int, side: int, heads: int, device: torch.device, quick: bool, forward: bool
) -> dict:
    """(call, inputs, gradient) by name; all of one group compute the same."""
    channels, taps = heads * DEPTH, SIZE**2
    qkv, gradient = (
        projected(batch, side, heads, device),
        torch.randn(batch, heads, side, side, DEPTH, device=device),
    )
    window, area = (2 * SIZE - 1) ** 2, taps
    # On a GPU ``auto`` leaves these windows to SDPA, which is timed already.
    own = "fused" if device.type == "cuda" else "auto"
    lsa = [*qkv, *tables(heads, window, "bias", device)]
    near = [*qkv, *tables(heads, area, "all", device)]
    full = [*qkv, *tables(heads, window, "all", device)]
    found = {
        "LSA (SDPA)": (_sdpa, lsa, gradient),
        "LSA": (attention("window", own), lsa, gradient),
        "Net7 window, plain": (attention("window", "reference"), full, gradient),
        "Net7 window": (attention("window", "auto"), full, gradient),
        "Net7-N": (attention("neighboring", "auto"), near, gradient),
        "Net7-N, qk + bias": (attention("neighboring", "auto"),
                              [*qkv, *tables(heads, area, "bias", device)], gradient),
        "Net7-N, unfold": (attention("neighboring", "unfold"), near, gradient),
    }  # fmt: skip
    if not quick:
        compiled = torch.compile(shifts)
        found["Net7-N, torch.compile of shifts"] = (compiled, near, gradient)
        found["Net7-N, loop of shifts"] = (shifts, near, gradient)
        found["Net7-N, sliding chunks*"] = (_chunks, near, gradient)
        if forward:
            found["Net7-N, qk + bias, FlexAttention*"] = (
                flexing(side, device),
                [*qkv, near[-1]],
                gradient,
            )
    values = torch.randn(batch, side, side, channels, device=device)
    filters = torch.randn(batch, side, side, heads, taps, device=device).softmax(-1)
    one = torch.randn(batch, side, side, 1, taps, device=device).softmax(-1)
    static = torch.randn(channels, SIZE, SIZE, device=device)
    per_image = torch.randn(batch, channels, taps, device=device)
    flat = torch.randn(batch, side, side, channels, device=device)
    found |= {
        "filters": (_apply("auto"), [values, filters], flat),
        "filters, unfold": (_apply("unfold"), [values, filters], flat),
        "filters + ghost add": (_apply("auto"), [values, filters, static], flat),
        "DDF": (_ddf, [values, one, per_image], flat),
        "static filters": (_static, [values, static], flat),
        "depthwise conv, channels-last": (reference.static_filters, [values, static], flat),
    }
    hidden = channels * 2 // 3  # ELSA's channels of q and k
    product = torch.randn(batch, side, side, hidden, device=device)
    taps_of_four = torch.randn(hidden, 4, SIZE, SIZE, device=device)
    for name, way in (
        ("grouped conv", "auto"),
        ("grouped conv, torch, channels-last", "reference"),
    ):
        found[name] = (_grouped(way), [product, taps_of_four], product)
    return found


def _grouped(implementation: str) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return functional.grouped_conv(x, weight, None, implementation)

    return call


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    given = Eq4Inputs(q, k, v, rel_bias=bias)
    return functional.window_by_sdpa(given, SIZE, None, DEPTH**-0.5)


def _chunks(q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
    rel_k, rel_q, bias = parameters
    return functional.spatial_attention(
        q, k, v, rel_k=rel_k, rel_q=rel_q, rel_bias=bias, norm="softmax", size=SIZE,
        application="neighboring", border="mask", implementation="sdc",
    )  # fmt: skip


def _apply(implementation: str) -> Callable[..., Tensor]:
    def call(values: Tensor, filters: Tensor, add: Tensor | None = None) -> Tensor:
        return functional.apply_filters(
            values, filters, ghost_add=add, kernel_size=SIZE, implementation=implementation
        )

    return call


def _ddf(values: Tensor, filters: Tensor, channel: Tensor) -> Tensor:
    return apply_decoupled(values, filters, channel, combine="mul", kernel_size=SIZE)


def _static(values: Tensor, filters: Tensor) -> Tensor:
    return lsa_kernels.apply_filters(values, None, add=filters.flatten(1), size=SIZE)


def compare(found: dict) -> None:
    """Hold every contender of a group to its first one before anything is timed."""
    groups = (
        ("LSA (SDPA)", "LSA"),
        ("Net7 window", "Net7 window, plain"),
        ("Net7-N", "Net7-N, unfold", "Net7-N, loop of shifts", "Net7-N, torch.compile of shifts"),
        ("filters", "filters, unfold"),
        ("static filters", "depthwise conv, channels-last"),
        ("grouped conv", "grouped conv, torch, channels-last"),
    )
    for first, *others in groups:
        with torch.no_grad():
            call, inputs, _ = found[first]
            want = call(*inputs)
            for other in others:
                if other in found:
                    call, inputs, _ = found[other]
                    worst = (call(*inputs) - want).abs().max().item()
                    if worst > 1e-3:
                        sys.exit(f"{other} differs from {first} by {worst:.2g}; nothing was timed")


COMPILED = ("Net7-N, torch.compile of shifts", "Net7-N, qk + bias, FlexAttention*")


def leave_out_failures(found: dict) -> None:
    """Drop peers that torch cannot compile at this size, and say so."""
    for name in COMPILED:
        if name not in found:
            continue
        call, inputs, _ = found[name]
        try:
            with torch.no_grad():
                call(*inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            print(f"{name}: left out, torch cannot compile it ({reason})")
            del found[name]


# Whose work cannot be counted takes the bound of its like: torch counts a backward of grouped
# convolutions as if they were dense, element-wise products not at all, and compiles nothing while
# it counts.
LIKE = {
    "Net7-N, loop of shifts": "Net7-N",
    "Net7-N, torch.compile of shifts": "Net7-N",
    "Net7-N, qk + bias, FlexAttention*": "Net7-N, qk + bias",
    "depthwise conv, channels-last": "static filters",
    "grouped conv, torch, channels-last": "grouped conv",
}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each stage and mode")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smallest", action="store_true", help="the smallest maps alone")
    parser.add_argument("--quick", action="store_true", help="leave the slow peers out")
    parser.add_argument("--out", type=Path, help="a JSON file")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    stages, peaks = [], roofline(device)
    print(timing.machine(device), lsa_kernels.build_info())
    for side, heads in STAGES[-1:] if chosen.smallest else STAGES:
        for mode in ("forward", "forward+backward"):
            found = contenders(chosen.batch, side, heads, device, chosen.quick, mode == "forward")
            leave_out_failures(found)
            compare(found)
            calls = {
                name: step(call, inputs, gradient if mode != "forward" else None)
                for name, (call, inputs, gradient) in found.items()
            }
            times = timing.interleaved(calls, seconds=chosen.seconds, device=device)
            passes = 1 if mode == "forward" else 2
            bounds = {
                name: least(calls[name], [*inputs, gradient], passes, peaks)
                for name, (_, inputs, gradient) in found.items()
                if name not in LIKE
            }
            bounds |= {name: bounds[like] for name, like in LIKE.items() if name in found}
            found_here = {
                name: asdict(t) | {"roofline": bounds[name] / t.median} for name, t in times.items()
            }
            stages.append({"side": side, "heads": heads, "mode": mode, "times": found_here})
            show(stages[-1])
    print("\nforward+backward, time per pixel of 3 heads")
    scaled = [] if chosen.smallest else scaling(device, chosen.seconds / 4)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"machine": timing.machine(device) | peaks, "batch": chosen.batch, "depth": DEPTH,
             "size": SIZE, "stages": stages, "scaling": scaled}, indent=1,
        )  # fmt: skip
        chosen.out.write_text(text + "\n", encoding="utf-8")


SCALED = ("LSA", "Net7 window", "Net7-N", "filters")


def scaling(device: torch.device, seconds: float) -> list[dict]:
    """Forward and backward on more threads, larger maps and larger batches."""
    cases = [("threads", threads, 8, 28) for threads in (1, torch.get_num_threads())]
    cases += [("side", side, 1, side) for side in (14, 28, 56, 112, 224)]
    cases += [("batch", batch, batch, 14) for batch in (1, 4, 16, 64)]
    found = []
    for what, value, batch, side in cases if device.type == "cpu" else cases[2:]:
        before = torch.get_num_threads()
        torch.set_num_threads(value if what == "threads" else before)
        chosen = contenders(batch, side, 3, device, quick=True, forward=False)
        calls = {name: step(*chosen[name]) for name in SCALED}
        times = timing.interleaved(calls, seconds=seconds, device=device)
        torch.set_num_threads(before)
        pixels = batch * side**2
        per_pixel = {name: times[name].median / pixels for name in SCALED}
        found.append({"changed": what, "value": value, "batch": batch, "side": side,
                      "seconds_per_pixel": per_pixel})  # fmt: skip
        cells = "".join(f"{name:>16}{1e9 * t:8.0f} ns" for name, t in per_pixel.items())
        print(f"{what:>8}{value:4d}{cells}")
    return found


def show(stage: dict) -> None:
    """One stage and mode as a table."""
    side, heads, times = stage["side"], stage["heads"], stage["times"]
    lsa = times["LSA (SDPA)"]["median"]
    print(f"\n{side} x {side}, {heads} heads, {stage['mode']}")
    print(f"{'':34}{'ms':>9}{'quartiles':>18}{'LSA /':>8}{'roofline':>10}{'MiB':>8}")
    for name, time in times.items():
        spread = f"{1e3 * time['low']:.1f}-{1e3 * time['high']:.1f}"
        print(
            f"{name:34}{1e3 * time['median']:9.2f}{spread:>18}{lsa / time['median']:8.2f}"
            f"{100 * time['roofline']:9.0f}%{time['peak_bytes'] / 2**20:8.1f}"
        )


if __name__ == "__main__":
    main()
