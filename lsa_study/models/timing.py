"""Honest timing: contenders interleaved in one process, medians with their spread."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Contender = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the quartiles around it; peak extra memory if known."""

    median: float
    low: float
    high: float
    rounds: int
    peak_bytes: int | None = None


def interleaved(
    contenders: Mapping[str, Contender], *, seconds: float, device: torch.device
) -> dict[str, Timing]:
    """Time contenders in turns, A B C A B C, so that what the machine does meets them alike.

    Each is called twice before, apart. Rounds go on for ``seconds`` in all, three at least.
    """
    for call in contenders.values():
        for _ in range(2):
            call()
    wait(device)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < 3:
            for name, call in contenders.items():
                begun = time.perf_counter()
                call()
                wait(device)
                taken[name].append(time.perf_counter() - begun)
    finally:
        gc.enable()
    peaks = {name: peak_bytes(call, device) for name, call in contenders.items()}
    return {name: _timing(times, peaks[name]) for name, times in taken.items()}


def _timing(times: list[float], peak: int | None) -> Timing:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, len(times), peak)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Contender, device: torch.device) -> int | None:
    """Most memory a call holds beyond what was there before.

    On a CPU this is what torch's allocator handed out, as its profiler saw it; scratch memory that
    a kernel takes by itself is not in it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would write to the terminal
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def machine(device: torch.device) -> dict[str, str | int]:
    """What figures must be read with: device, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512f" in line for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.machine()}, {'AVX-512' if wide else 'AVX2 or less'}"
