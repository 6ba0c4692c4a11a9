"""What this machine has: ``lsa doctor``."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import warnings
from importlib import metadata
from pathlib import Path

import typer

from lsa_study.cli import options as opt
from lsa_study.config.task import NEEDS
from lsa_study.errors import EnvironmentLacks
from lsa_study.machine import bfloat16_units, cores, cpu_name, visible_gpus


def doctor(results: opt.Results = opt.RESULTS) -> None:
    """Show what this machine has: GPUs, kernels, SLURM, data, disk."""
    from lsa_study.launch.track import TRACKERS
    from lsa_study.ops import functional

    here = results if results.exists() else Path()
    for topic, fact in (
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("packages", _versions("torch", "timm", "triton", "submitit", "pandas")),
        ("tasks", _versions(*NEEDS.values())),
        ("trackers", _versions(*TRACKERS)),
        ("cpu", _cpu()),
        ("gpu", _gpus()),
        ("kernels", functional.kernels_on("cpu")),
        ("triton", _triton()),
        ("choices", _choices()),
        ("attention", _attention()),
        ("slurm", _slurm()),
        ("data", _data()),
        ("disk", f"{shutil.disk_usage(here).free / 1e9:.0f} GB free for {results}"),
    ):
        typer.echo(f"{topic:<9} {fact}")


def _versions(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def _cpu() -> str:
    import torch

    units = ", ".join(bfloat16_units())
    return f"{cores()} cores of {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}; " + (
        f"bfloat16 by {units}" if units else "no bfloat16 of its own"
    )


def _gpus() -> str:
    import torch

    try:
        gpus = visible_gpus()
    except EnvironmentLacks as error:
        return str(error)
    if not gpus:
        return "none: runs use one CPU worker"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or f"{len(gpus)} seen by the driver, none by torch"


def _triton() -> str:
    """Whether there are kernels for GPUs, and what each GPU can do."""
    import torch

    import lsa_kernels
    from lsa_study.ops import functional

    reasons = [functional.kernels_on("cuda")]
    if not lsa_kernels.gpu.why_missing():
        where = lsa_kernels.gpu.local_cache()
        reasons.append(f"compiled into {where or 'its own cache: no folder on this node is fit'}")
    if not torch.cuda.is_available():
        reasons.append("not usable: torch sees no GPU")
    for index in range(torch.cuda.device_count()):
        reasons.append(f"GPU {index}: {about_gpu(index)}")
    return "; ".join(reasons)


def about_gpu(index: int) -> str:
    """What a GPU can do of what the kernels and training want.

    Its compute capability, whether it computes in bfloat16 itself, and whether this torch has
    machine code for it.
    """
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    native = "bfloat16 native" if major >= 8 else "bfloat16 not native: give float16 or float32"
    found = f"compute capability {major}.{minor}, {native}"
    built = torch.cuda.get_arch_list()
    if built and not any(_runs(name, (major, minor)) for name in built):
        # Builds for CUDA 12.8 and later left out what is older than sm_75.
        other = "CUDA 12.6 (cu126)" if (major, minor) < (7, 5) else "another CUDA"
        found += f"; not usable: this torch has code for {', '.join(built)} alone; install one "
        found += f"that was built for {other}"
    return found


def _runs(name: str, device: tuple[int, int]) -> bool:
    """Whether this code, sm_XY or compute_XY, runs there: the latter on all younger devices too."""
    kind, _, number = name.partition("_")
    digits = re.sub(r"\D", "", number)
    code = int(digits[:-1]), int(digits[-1])
    return code <= device and (kind == "compute" or code[0] == device[0])


def _choices() -> str:
    """The table of choices of every device: present, when made, what it says."""
    import torch

    from lsa_study.ops import choices

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same reason is in the line
        found = [f"GPU {device.index}: {choices.said(device)}" for device in devices]
        found.append(f"CPU, where auto follows none: {choices.said(torch.device('cpu'))}")
    return "; ".join(found)


def _attention() -> str:
    import torch

    from lsa_study.ops import sdpa

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if kind == "cuda" else torch.float32
    try:
        fixed, learning = (sdpa.way_on(kind, dtype, learns=learns) for learns in (False, True))
    except RuntimeError as error:  # a GPU that this torch cannot use
        return f"unknown: {str(error).splitlines()[0]}"
    return f"windows without a kernel by {fixed}; where the bias learns, by {learning}"


def _slurm() -> str:
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH: lsa launch will not work here, lsa run will"
    version = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    answer = subprocess.run(
        ["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=20
    )
    state = (answer.stdout.strip() or answer.stderr.strip()).splitlines()
    if version.returncode:
        wrong = (version.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return f"sbatch finds no cluster ({wrong}): lsa launch will not work here, lsa run will"
    return f"{version.stdout.strip()}; {state[0] if state else 'the controller does not answer'}"


def _data() -> str:
    from lsa_study.data.paths import DataLacks, layout_of_imagenet

    root = os.environ.get("LSA_DATA")
    if root is None:
        return "LSA_DATA is not set: only the toy tier runs (it needs no data)"
    cifar10 = "missing (wants cifar10/train.parquet or cifar10/cifar-10-batches-py)"
    if (Path(root) / "cifar10").is_dir():
        cifar10 = "found"
    imagenet = "missing (wants imagenet/train/<wnid>/ and imagenet/val/<wnid>/, or parquet shards)"
    try:
        layout = layout_of_imagenet(Path(root))
    except DataLacks as error:
        imagenet = str(error)
    else:
        if layout is not None:
            shards = f", {len(layout.train)} + {len(layout.test)} shards"
            imagenet = f"found as {layout.kind}{'' if layout.kind == 'folders' else shards}"
    return f"{root}: cifar10 {cifar10}; imagenet {imagenet}"
