"""What this machine has: the answer of ``lsa doctor``. Looks, changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from lsa_study.data.paths import DataLacks, layout_of_imagenet
from lsa_study.launch.local import visible_gpus
from lsa_study.training.tracking import TRACKERS

DATA_SETS = {
    "cifar10": "cifar10/train.parquet or cifar10/cifar-10-batches-py",
    "imagenet": "imagenet/train/<wnid>/ and imagenet/val/<wnid>/, or parquet shards",
}


def report(results: Path) -> list[tuple[str, str]]:
    """Facts of this machine as (topic, words)."""
    looks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}"),
        ("packages", lambda: _versions("torch", "timm", "triton", "submitit", "pandas")),
        ("trackers", lambda: _versions(*TRACKERS)),
        ("cpu", _cpu),
        ("gpu", _gpus),
        ("kernels", _kernels),
        ("slurm", _slurm),
        ("data", _data),
        ("disk", lambda: _disk(results)),
    ]
    return [(topic, look()) for topic, look in looks]


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

    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}"


def _gpus() -> str:
    gpus = visible_gpus()
    if not gpus:
        return "none: runs use one CPU worker"
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or f"{len(gpus)} seen by the driver, none by torch"


def _kernels() -> str:
    import lsa_kernels

    found = getattr(lsa_kernels, "build_info", None)
    return str(found()) if found else "not built"


def _slurm() -> str:
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH: lsa launch will not work here, lsa run will"
    told = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    answer = subprocess.run(
        ["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=20
    )
    state = (answer.stdout.strip() or answer.stderr.strip()).splitlines()
    return f"{told.stdout.strip()}; {state[0] if state else 'the controller does not answer'}"


def _data() -> str:
    root = os.environ.get("LSA_DATA")
    if root is None:
        return "LSA_DATA is not set: only the toy tier runs (it needs no data)"
    cifar10 = (Path(root) / "cifar10").is_dir()
    found = "found" if cifar10 else f"missing (wants {DATA_SETS['cifar10']})"
    return f"{root}: cifar10 {found}; imagenet {_imagenet(Path(root))}"


def _imagenet(root: Path) -> str:
    try:
        layout = layout_of_imagenet(root)
    except DataLacks as error:
        return str(error)
    if layout is None:
        return f"missing (wants {DATA_SETS['imagenet']})"
    if layout.kind == "folders":
        return "found as folders"
    return f"found as {layout.kind}, {len(layout.train)} + {len(layout.test)} shards"


def _disk(results: Path) -> str:
    here = results if results.exists() else Path()
    return f"{shutil.disk_usage(here).free / 1e9:.0f} GB free for {results}"
