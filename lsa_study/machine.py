"""What this machine has for a process: cores, processor, GPUs. Needs no torch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import subprocess
from pathlib import Path

from lsa_study.errors import EnvironmentLacks
from lsa_study.files import read_whole

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time that a container may use, and in how many."""

DRIVER_SECONDS = 60.0

CURE = "mend that, or do without a GPU: --set runtime.device=cpu, or an empty CUDA_VISIBLE_DEVICES"


def cores() -> int:
    """How many cores this process may use, by its CPU set and the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # as on macOS
        count = os.cpu_count() or 1
    try:
        used, period = map(int, QUOTA.read_text("utf-8").split())
    except (OSError, ValueError):  # no container, or "max"
        return count
    return max(1, min(count, math.ceil(used / period)))


def cpu_name() -> str:
    """The name of this machine's processor."""
    content = read_whole(Path("/proc/cpuinfo")) or b""
    found = re.search(r"model name\s*: (.+)", content.decode("utf-8", "replace"))
    return found[1].strip() if found else platform.processor() or platform.machine()


def keep_memory() -> bool:
    """Let this process keep memory that tensors gave back, for the next ones; whether it could.

    Else glibc returns every large block to the system, which clears its pages for the next tensor
    of a step. No number changes.
    """
    largest_mapped, trimmed_from = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    return libc is not None and all(
        libc.mallopt(option, size) == 1
        for option, size in ((largest_mapped, 2**30), (trimmed_from, 2**31 - 1))
    )


BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What a processor is said to have that multiplies bfloat16 itself, rather than by float32."""


def bfloat16_units() -> list[str]:
    """Those of ``BFLOAT16`` that this machine's processor has."""
    content = read_whole(Path("/proc/cpuinfo")) or b""
    return [name for name in BFLOAT16 if name.encode() in content.split()]


def need_bfloat16() -> None:
    """See that this machine's processor multiplies bfloat16 itself, rather than by float32.

    Raises:
        EnvironmentLacks: it does not.
    """
    if not bfloat16_units():
        raise EnvironmentLacks(
            f"train.precision='bf16': {cpu_name()} does not compute in bfloat16 itself (it has "
            f"none of {', '.join(BFLOAT16)}); run on a processor that does or on a GPU, or "
            "ask for another study: --set train.precision=float32",
            cause="node",
        )


def visible_gpus() -> list[str]:
    """The GPUs this process may use; raises as ``device_kind`` where their driver fails."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return _gpus()


def gpu_bytes() -> int | None:
    """The memory of this machine's smallest GPU; None where no driver says."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = _ask_driver(asked)
        sizes = [int(line) for line in listed.stdout.split("\n") if line.strip().isdigit()]
        if listed.returncode == 0 and sizes:
            return min(sizes) * 2**20
    return None


def _gpus() -> list[str]:
    """The GPUs that the driver lists; none where there is no driver.

    Raises:
        EnvironmentLacks: the driver fails; its own message is repeated.
    """
    try:
        listed = _ask_driver(["nvidia-smi", "-L"])
    except OSError:
        return []
    except subprocess.TimeoutExpired:
        reason = f"no answer in {DRIVER_SECONDS:.0f} s"
    else:
        if listed.returncode == 0:
            return re.findall(r"(?m)^GPU (\d+):", listed.stdout)
        reason = " ".join(f"{listed.stdout} {listed.stderr}".split())
        reason = reason or f"exit code {listed.returncode}"
    raise EnvironmentLacks(f"nvidia-smi: {reason}; {CURE}", cause="node")


def _ask_driver(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False,
        timeout=DRIVER_SECONDS,
    )  # fmt: skip


def device_kind(asked: str) -> str:
    """``cuda`` or ``cpu`` as asked for; ``auto`` takes a GPU where there is one.

    Raises:
        EnvironmentLacks: a driver fails, or torch cannot use the GPU that is there or asked for.
    """
    import torch

    if asked == "cpu":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if asked == "auto" and not visible_gpus():
        return "cpu"
    _gpus()  # the driver's own message, if it fails, says more than torch's
    reason = "it finds none"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
    raise EnvironmentLacks(f"device {asked}: torch can use no GPU ({reason}); {CURE}", cause="node")
