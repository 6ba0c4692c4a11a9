"""A trace of a life's first steps, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lsa_study.files import replacing

WARM_UP = 3
"""Steps that are left out: the first ones allocate, compile and fill caches."""


class Trace:
    """Records steps and writes them once they are all done.

    Args:
        path: the file to write.
        steps: how many steps to record after ``WARM_UP``; 0 records nothing.
        device: where the steps run.
    """

    def __init__(self, path: Path, steps: int, device: torch.device) -> None:
        self.left = WARM_UP + steps if steps else 0
        self.path = path
        if self.left:
            activities = [ProfilerActivity.CPU]
            if device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(
                activities=activities, profile_memory=True, on_trace_ready=self._write,
                schedule=schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
            )  # fmt: skip
            self._profile.start()

    def step(self) -> None:
        """Say that a step is done."""
        if self.left:
            self._profile.step()
            self.left -= 1
            if not self.left:
                self._profile.stop()

    def close(self) -> None:
        """Write what there is of a life that had fewer steps."""
        if self.left:
            self.left = 0
            self._profile.stop()

    def _write(self, recorded: profile) -> None:
        with replacing(self.path) as part:
            recorded.export_chrome_trace(str(part))
