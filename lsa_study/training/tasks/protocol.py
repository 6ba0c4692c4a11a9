"""The protocol of tasks; the loop, checkpoints and processes know no other difference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lsa_study.config.settings import Settings
from lsa_study.training.distributed import ALONE, Distributed
from lsa_study.training.evaluate import Report

Tick = Callable[[], None]


class Task(ABC):
    """What a network is to do in a run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def counted(self) -> tuple[int, int]:
        """Height and width of the image whose costs are counted."""
        side = self.settings.data.image_size
        return side, side

    @abstractmethod
    def sets(self, device: str) -> Any:
        """The training and the test images, handed over on ``device``.

        Raises:
            DataLacks: files are missing, incomplete or damaged.
        """

    @abstractmethod
    def network(self, num_classes: int) -> nn.Module:
        """The network, its weights drawn from torch's global generator."""

    @abstractmethod
    def loss(
        self, network: nn.Module, batch: Any, amp: AbstractContextManager[Any], *, epoch: int,
        part: int,
    ) -> Tensor:  # fmt: skip
        """The loss of one part of a step; the network's forward pass goes on within ``amp``."""

    def seen(self, network: nn.Module, sets: Any) -> bytes | None:
        """A JPEG of what the network finds in a few test images; None where that is no picture."""
        return None

    @abstractmethod
    def evaluate(
        self, network: nn.Module, sets: Any, *, precision: torch.dtype = torch.float32,
        ranks: Distributed = ALONE, tick: Tick = lambda: None, held_out: bool = False,
    ) -> Report:  # fmt: skip
        """What the network achieves on all test images; ``tick`` is called now and then.

        ``held_out``: on those of ``data.validation`` in their place.
        """
