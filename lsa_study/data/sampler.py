"""Which images make which step, and which of them this process computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lsa_study.data import rng
from lsa_study.errors import ConfigError

MIX_GROUP = 128
"""So many images share one draw of mixup or cutmix: the article's batch of one GPU."""


@dataclass(frozen=True)
class MicroBatch:
    """The images of one step that are computed at once: a part of the effective batch."""

    step: int
    """Counted from 0 in the epoch."""
    positions: Tensor
    """Places in the step's effective batch."""
    indices: Tensor
    """The training images at these places."""
    groups: tuple[tuple[int, int, int], ...]
    """Mixing groups as (number, first, end) of the rows here; rows mirror their partners."""


@dataclass(frozen=True)
class EpochSampler:
    """The order of one epoch's images, cut into steps and parts.

    A step's effective batch is cut into ``parts`` (processes x accumulation steps); this process
    computes ``mine``. The order and every draw depend on (seed, epoch, step) alone, so the images
    of a step are the same however it is cut and wherever a run resumes. Images that fill no
    whole step are left out, unless there is no whole step at all.
    """

    images: int
    batch_size: int
    seed: int
    epoch: int
    """Counted from 0."""
    first_step: int = 0
    parts: int = 1
    mine: range = range(1)
    paired: bool = False
    """Images will be mixed in pairs, so a part must hold both of a pair."""
    together: int | None = None
    """Images of a group of batch norm: each so many rows are the same however a step is cut."""

    def __post_init__(self) -> None:
        unit = self._unit
        parts = f"{self.parts} parts{' of pairs for mixup or cutmix' if self.paired else ''}"
        if self.images < unit:
            raise ConfigError(
                f"{self.images} training images cannot be cut into {parts}; raise data.train_limit"
            )
        if self.batch % unit:
            raise ConfigError(
                f"train.batch_size = {self.batch} cannot be cut into {parts} (processes x "
                f"runtime.accumulate); give a multiple of {unit}"
            )

    @property
    def _unit(self) -> int:
        return self.parts * (2 if self.paired else 1)

    @property
    def batch(self) -> int:
        """Images of a step: the effective batch, or all there are."""
        if self.images >= self.batch_size:
            return self.batch_size
        return self.images - self.images % self._unit

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return max(1, self.images // self.batch_size)

    def shares(self) -> Iterator[MicroBatch]:
        """This process's parts, step by step from ``first_step``."""
        order = torch.randperm(self.images, generator=rng.generator(self.seed, "order", self.epoch))
        cuts = [self._cut(part) for part in self.mine]
        for step in range(self.first_step, self.steps):
            batch = order[step * self.batch : (step + 1) * self.batch]
            for positions, groups in cuts:
                yield MicroBatch(step, positions, batch[positions], groups)

    def _cut(self, part: int) -> tuple[Tensor, tuple[tuple[int, int, int], ...]]:
        if not self.paired:
            size = self.batch // self.parts
            return torch.arange(part * size, (part + 1) * size), ((0, 0, size),)
        # timm mixes a batch with its own reverse: a part takes images from the front of a group
        # and their partners from its back, so that its own reverse is the group's.
        width = MIX_GROUP if self.batch % MIX_GROUP == 0 else self.batch
        pairs = self.batch // 2 // self.parts
        unit = pairs if self.together is None else math.lcm(self.together, 2) // 2
        rows: list[Tensor] = []
        groups: list[tuple[int, int, int]] = []
        first, end, filled = part * pairs, (part + 1) * pairs, 0
        while first < end:
            group, inside = divmod(first, width // 2)
            count = min(end - first, width // 2 - inside, unit - first % unit)
            front = group * width + torch.arange(inside, inside + count)
            back = group * width + (width - 1 - torch.arange(inside, inside + count)).flip(0)
            rows += [front, back]
            groups.append((group, filled, filled + 2 * count))
            first, filled = first + count, filled + 2 * count
        return torch.cat(rows), tuple(groups)
