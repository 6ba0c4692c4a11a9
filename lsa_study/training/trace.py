"""A trace of an attempt's first steps, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lsa_study.files import replacing

WARM_UP = 3
"""Steps that are left out: the first ones allocate, compile and fill caches."""


@contextlib.contextmanager
def trace(path: Path, steps: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Record the block's first steps; it calls what it is given after each of its steps.

    Args:
        path: the file, written once they are all done, or with what there is of fewer.
        steps: how many steps to record after ``WARM_UP``; 0 records nothing.
        device: where the steps run.
    """
    if not steps:
        yield lambda: None
        return

    def write(recorded: profile) -> None:
        with replacing(path) as part:
            recorded.export_chrome_trace(str(part))

    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    recorder = profile(
        activities=[ProfilerActivity.CPU, *gpu], profile_memory=True, on_trace_ready=write,
        schedule=schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
    )  # fmt: skip
    left = WARM_UP + steps

    def step() -> None:
        nonlocal left
        if left:
            recorder.step()
            left -= 1
            if not left:
                recorder.stop()

    recorder.start()
    try:
        yield step
    finally:
        if left:
            recorder.stop()
