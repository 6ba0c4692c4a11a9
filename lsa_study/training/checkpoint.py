"""Checkpoints that survive a kill at any moment: the last one and the one before it.

They hold tensors and plain values only and are read without unpickling code.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lsa_study.errors import EnvironmentLacks
from lsa_study.rundir import RunDir

KEPT = 3
"""Checkpoints that must fit on the disk: the last, the one before, and the one being written."""


def save(run_dir: RunDir, state: dict[str, Any]) -> None:
    """Write ``state`` as the last checkpoint; the one that was last becomes the one before.

    Raises:
        EnvironmentLacks: it cannot be written; the old ones stand.
    """
    last, previous = run_dir.last_checkpoint, run_dir.previous_checkpoint

    def keep_previous() -> None:
        if last.exists():
            last.replace(previous)

    _write(last, lambda file: torch.save(state, file), keep_previous)


def load(run_dir: RunDir) -> dict[str, Any] | None:
    """Read the last whole checkpoint; None where there is none."""
    for path in (run_dir.last_checkpoint, run_dir.previous_checkpoint):
        try:
            # torch itself does not compare the checksums it writes.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                continue
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError,
                zipfile.BadZipFile):  # fmt: skip
            continue
        return state
    return None


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors, whole or not at all.

    Raises:
        EnvironmentLacks: they cannot be written.
    """
    from safetensors.torch import save as pack

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    _write(path, lambda file: file.write(pack(plain)), lambda: None)


def remove(run_dir: RunDir) -> None:
    """Remove the checkpoints of a run that has its result."""
    for path in (run_dir.last_checkpoint, run_dir.previous_checkpoint):
        path.unlink(missing_ok=True)
    for part in run_dir.last_checkpoint.parent.glob("*.part"):
        part.unlink(missing_ok=True)


def need_space(run_dir: RunDir, checkpoint_bytes: int) -> None:
    """Check before training that the disk will hold the checkpoints.

    Raises:
        EnvironmentLacks: it will not.
    """
    free = shutil.disk_usage(run_dir.root).free
    if free < KEPT * checkpoint_bytes:
        raise EnvironmentLacks(
            f"{run_dir.root}: only {free / 1e9:.2f} GB free, {KEPT} checkpoints of "
            f"{checkpoint_bytes / 1e9:.2f} GB must fit; free space, then call the same again"
        )


def num_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(num_bytes, state.values()))
    return sum(map(num_bytes, state)) if isinstance(state, list | tuple) else 0


def _write(
    path: Path, write: Callable[[BinaryIO], object], before_rename: Callable[[], None]
) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # What a killed process left half written would otherwise fill the disk, life by life.
        for stale in path.parent.glob(f"{path.name}.*.part"):
            stale.unlink(missing_ok=True)
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentLacks(
            f"{path}: cannot be written ({words}; {free / 1e9:.2f} GB free); the checkpoint "
            "before it stands, nothing else is lost. Free space, then call the same again"
        ) from error
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    # A rename is on the disk only when its folder is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
