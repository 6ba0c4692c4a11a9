"""How a run can end before its last epoch."""

from __future__ import annotations

import torch

from lsa_study.errors import EnvironmentLacks


class Diverged(Exception):
    """A loss was not finite: a result. The text says epoch, step and learning rate."""


class Stopped(Exception):
    """Somebody asked to stop; the state is saved."""


class DeviceLacks(EnvironmentLacks):
    """The device that the settings ask for is not here."""

    cause = "node"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a tensor could not be allocated, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
