"""What a run is carried out on: device, versions, state of the code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lsa_kernels
import lsa_study
from lsa_study.config.protocol import Train
from lsa_study.config.settings import Runtime
from lsa_study.machine import device_kind, need_bfloat16
from lsa_study.ops.functional import kernels_on

ROOMS = ("config", "ops", "models", "data", "training")
"""Folders of the package whose sources decide what a run computes, beside the kernels'."""
SUFFIXES = (".py", ".cpp", ".h")
TF32_SINCE = (8, 0)
"""The compute capability, that of Ampere."""
PACKAGES = ("torch", "timm", "numpy", "triton", "lsa_study")


def choose_device(runtime: Runtime, *, local_rank: int = 0) -> torch.device:
    """The device the settings ask for; ``auto`` takes a GPU where there is one.

    Raises:
        EnvironmentLacks: a GPU is asked for, or is there, and cannot be used.
    """
    if device_kind(runtime.device) == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def precision(train: Train, device: torch.device) -> torch.dtype:
    """The type of the matrix products: by the setting; on a CPU float32 unless bf16 is asked for.

    Raises:
        EnvironmentLacks: bf16 is asked for on a processor that does not compute in it itself.
    """
    kinds = {"amp": torch.bfloat16, "fp16": torch.float16, "bf16": torch.bfloat16}
    if device.type == "cuda":
        return kinds.get(train.precision, torch.float32)
    if train.precision != "bf16":
        return torch.float32
    need_bfloat16()
    return torch.bfloat16


def precision_name(train: Train, device: torch.device) -> str:
    """What a run records as its precision: tf32 only where the GPU has it."""
    if train.precision == "tf32" and device.type == "cuda":
        return "tf32" if torch.cuda.get_device_capability(device) >= TF32_SINCE else "float32"
    return str(precision(train, device)).removeprefix("torch.")


@contextlib.contextmanager
def tf32(train: Train, device: torch.device) -> Iterator[None]:
    """On a GPU, round the factors of float32 products where the setting asks for it alone."""
    if device.type != "cuda":
        yield
        return
    # By default torch's convolutions round and its matrix products do not.
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = train.precision == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def forget_peak_memory(device: torch.device) -> None:
    """Begin to measure anew: one process may carry out many runs in turn."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes held since ``forget_peak_memory``: tensors on a GPU, the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, make every operation give the same bits each time; on a GPU, allow fast ones."""
    # The module's flags are properties, which type checkers cannot see.
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    with contextlib.ExitStack() as end:
        enabled = torch.are_deterministic_algorithms_enabled()
        end.callback(torch.use_deterministic_algorithms, enabled)
        end.callback(setattr, memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory)
        end.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        torch.use_deterministic_algorithms(device.type == "cpu")
        memory.fill_uninitialized_memory = False
        cudnn.benchmark = device.type == "cuda"
        yield


def code_state() -> tuple[str | None, bool | None]:
    """The commit of the code that runs, and whether it was changed since; None if unknown."""
    package = Path(lsa_study.__file__).parent
    try:
        # Installed in a folder of somebody else's repository, its commit would not be ours.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD").strip()
        changed = _git(package, "status", "--porcelain", "--", ".", ":/kernels")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changed.strip())


def code_digest() -> str:
    """SHA-256 of the sources that compute, names and contents, as they are installed."""
    package, kernels = Path(lsa_study.__file__).parent, Path(lsa_kernels.__file__).parent
    digest = hashlib.sha256()
    for root, folders in ((package, [package / room for room in ROOMS]), (kernels, [kernels])):
        found = [path for folder in folders for path in folder.rglob("*")]
        for path in sorted(path for path in found if path.suffix in SUFFIXES):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root.parent).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def fused_kernels(device: torch.device) -> tuple[str, str]:
    """The fused kernels that ``auto`` takes where they fit, and the same with all that is known.

    The first is equal wherever the same path is taken; the second says where they lie, or why
    there are none.
    """
    whole = kernels_on(device.type)
    return "none" if whole.startswith("no ") else ", ".join(whole.split(", ")[:2]), whole


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def machine(device: torch.device) -> dict[str, Any]:
    """What else may explain a difference between two attempts, as fields of ``Attempt``."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "driver": _driver() if device.type == "cuda" else None,
    }


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
        return shown.stdout.partition("\n")[0].strip()
    return None
