"""Checkpoints that survive a kill at any moment: the last one and the one before it.

They hold tensors and plain values only and are read without unpickling code.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsa_study import files
from lsa_study.errors import EnvironmentLacks, explained
from lsa_study.rundir import RunDir

KEPT = 3
"""Checkpoints that must fit on the disk: the last, the one before, and the one being written."""

PAUSES = (1.0, 4.0, 10.0)
"""Seconds between the attempts to read from a disk that fails."""


def save(run_dir: RunDir, state: dict[str, Any]) -> None:
    """Write ``state`` as the last checkpoint; the one that was last becomes the one before.

    Raises:
        EnvironmentLacks: it cannot be written; the old ones stand.
        Refused: another process writes the run now.
    """
    last = run_dir.last_checkpoint
    with contextlib.ExitStack() as until_renamed, _replacing(last) as part:
        with part.open("wb") as file:
            torch.save(state, file)
        until_renamed.enter_context(run_dir.writing())
        if last.exists():
            last.replace(run_dir.previous_checkpoint)


def load(run_dir: RunDir) -> dict[str, Any] | None:
    """Read the last whole checkpoint; None where nothing is done yet.

    Raises:
        EnvironmentLacks: a file cannot be read, or epochs are done and no checkpoint is whole.
    """
    found = False
    for path in (run_dir.last_checkpoint, run_dir.previous_checkpoint):
        if (content := _read(path)) is None:
            continue
        found = True
        try:
            # torch itself does not compare the checksums it writes.
            if zipfile.ZipFile(io.BytesIO(content)).testzip() is None:
                state: dict[str, Any] = torch.load(
                    io.BytesIO(content), map_location="cpu", weights_only=True
                )
                return state
        except Exception as error:  # zipfile and torch raise a dozen kinds of a damaged file
            if explained(error) is not error:
                raise
    epochs = len(run_dir.metrics())
    # The first epoch is recorded just before its checkpoint is written.
    if found or epochs > 1:
        raise EnvironmentLacks(
            f"{run_dir.last_checkpoint}: is {'damaged' if found else 'missing'}, the one before it "
            f"too, and {epochs} epochs are recorded; bring a copy back, or move the run's folder "
            "away to begin anew"
        )
    return None


def _read(path: Path) -> bytes | None:
    """What a file holds; None if there is none. A disk that fails is asked again."""
    for pause in PAUSES:
        with contextlib.suppress(OSError):
            return files.read_whole(path)
        time.sleep(pause)
    try:
        return files.read_whole(path)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be read ({error.strerror}, {len(PAUSES) + 1} times); nothing was "
            "trained. Mend the disk, then call the same again"
        ) from error


def save_weights(run_dir: RunDir, weights: dict[str, Tensor]) -> None:
    """Write the final weights as safetensors, whole or not at all; raises as ``save`` does."""
    from safetensors.torch import save as pack

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    with run_dir.writing(), _replacing(run_dir.weights) as part:
        part.write_bytes(pack(plain))


def remove(run_dir: RunDir) -> None:
    """Remove the checkpoints of a run that has its result."""
    parts = run_dir.last_checkpoint.parent.glob("*.part")
    for path in (run_dir.last_checkpoint, run_dir.previous_checkpoint, *parts):
        path.unlink(missing_ok=True)


def need_space(run_dir: RunDir, checkpoint_bytes: int) -> None:
    """Check before training that the disk will hold the checkpoints.

    Raises:
        EnvironmentLacks: it will not.
    """
    free = shutil.disk_usage(run_dir.root).free
    if free < KEPT * checkpoint_bytes:
        raise EnvironmentLacks(
            f"{run_dir.root}: only {free / 1e6:,.1f} MB free, {KEPT} checkpoints of "
            f"{checkpoint_bytes / 1e6:,.1f} MB must fit; free space, then call the same again"
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    try:
        # What a killed process left half written would otherwise fill the disk, attempt by attempt.
        for stale in path.parent.glob(f"{path.name}.*.part"):
            stale.unlink(missing_ok=True)
        with files.replacing(path) as part:
            yield part
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentLacks(
            f"{path}: cannot be written ({reason}; {free / 1e6:,.1f} MB free); the checkpoint "
            "before it stands, nothing else is lost. Free space, then call the same again"
        ) from error
    # A rename is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
