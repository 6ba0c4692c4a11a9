"""How far a run is: everything beside the weights that a later attempt needs to go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor


@dataclass
class Report:
    """What a network achieves on the test set, at the end of an epoch."""

    epoch: int = 0
    """Counted from 1; 0 means none."""
    loss: float = float("nan")
    """Mean cross-entropy, without label smoothing."""
    acc1: float = 0.0
    """Percent, of the reported weights, as are loss and acc5."""
    acc5: float = 0.0
    model_acc1: float = 0.0
    """Of the trained weights."""
    ema_acc1: float | None = None
    """Of the averaged weights, if there are any."""
    bits: Tensor | None = None
    """(images,) uint8, in the set's order: 1 where the reported weights' top answer is right."""


@dataclass
class Progress:
    """Counts are of whole things done: epochs from 0, steps in the running epoch from 0."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the running epoch, over images."""
    epoch_seconds: float = 0.0
    """Training time of the running epoch."""
    seconds: float = 0.0
    """Training and evaluation, all attempts."""
    peak_memory: int = 0
    fingerprint: str = ""
    """Of the data the run began with."""
    start: str | None = None
    """What its weights began from, if not at random."""
    last: Report = field(default_factory=Report)
    best: Report = field(default_factory=Report)
    best_weights: dict[str, Tensor] | None = None
    """Kept where the best epoch is reported."""

    def plain(self) -> dict[str, Any]:
        """As dicts of tensors and plain values, for a checkpoint."""
        return {**vars(self), "last": vars(self.last), "best": vars(self.best)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The reverse of ``plain``."""
        reports = {key: Report(**values[key]) for key in ("last", "best")}
        return cls(**{**values, **reports})
