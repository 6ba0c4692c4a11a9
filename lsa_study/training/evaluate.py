"""Top-1 and top-5 accuracy on the test set, every image counted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study.config.task import OF_TASK
from lsa_study.data.sets import Datasets
from lsa_study.record import score_of
from lsa_study.training.distributed import ALONE, Distributed
from lsa_study.training.outside import measured


@dataclass
class Report:
    """What a network achieves on the test or the held-out images, at the end of an epoch."""

    epoch: int = 0
    """Counted from 1; 0 means none."""
    loss: float | None = None
    """Mean cross-entropy, without label smoothing; of classification alone, as are the next four.
    """
    acc1: float | None = None
    """Percent, of the reported weights, as are loss and acc5."""
    acc5: float | None = None
    model_acc1: float | None = None
    """Of the trained weights."""
    ema_acc1: float | None = None
    """Of the averaged weights, if there are any."""
    metrics: dict[str, float | str] = field(default_factory=dict)
    """Of the reported weights: those of another task, and of functions from outside a number, or
    why there is none. Where weights are averaged, another task's also of both networks, such as
    ``model_box_ap`` and ``ema_box_ap``."""
    bits: Tensor | None = None
    """(images,) uint8, in the set's order: 1 where the reported weights' top answer is right."""
    image_scores: Tensor | None = None
    """(images,) float32, in the set's order; see ``scores.by_image``."""

    @property
    def score(self) -> float:
        """What epochs are compared by; 0 before the first."""
        return score_of(self.acc1, numbers(self)) or 0.0

    @property
    def shown(self) -> str:
        """The score as text for people, such as ``acc1 81.30 %``."""
        if self.acc1 is not None or not self.metrics:
            return f"acc1 {self.score:.2f} %"
        name = next(first for first, *_ in OF_TASK.values() if first in self.metrics)
        return f"{name} {self.score:.2f}" if numbers(self)[name] is not None else f"no {name}"


def numbers(report: Report) -> dict[str, float | None]:
    """The metrics from outside by name; None where the function gave no number."""
    return {n: None if isinstance(v, str) else v for n, v in report.metrics.items()}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    sets: Datasets,
    batch_size: int,
    *,
    precision: torch.dtype = torch.float32,
    ranks: Distributed = ALONE,
    tick: Callable[[], None] = lambda: None,
    held_out: bool = False,
    metrics: Mapping[str, str] | None = None,
) -> Report:
    """Evaluate a network on all test images; ``tick`` is called after every batch.

    ``held_out``: on those of ``data.validation`` in their place. ``metrics``: import paths by name
    of functions that are asked about all of them at once.
    """
    images = sets.source.held_out if held_out else sets.source.test_images
    top = min(5, sets.source.num_classes)
    device = sets.device
    correct = torch.zeros(images, device=device)
    answers = torch.zeros(images if metrics else 0, sets.source.num_classes + 1, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    training = model.training
    model.eval()

    def look() -> None:
        tests = sets.test(batch_size, rank=ranks.rank, ranks=ranks.count, held_out=held_out)
        for rows, batch, labels in tests:
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = model(batch)
            logits = logits.float()
            hits = logits.topk(top, dim=1).indices == labels[:, None]
            # Summed and divided once: the mean of batch means would weigh a short last batch more.
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += hits.sum()
            correct[rows.to(device)] = hits[:, 0].to(correct.dtype)
            if metrics:
                answers[rows.to(device)] = torch.cat([logits, labels[:, None].to(logits.dtype)], 1)
            tick()

    ranks.all_or_raise(look)
    model.train(training)
    loss, right5 = (ranks.sum(sums) / images).tolist()
    correct = ranks.sum(correct).to("cpu", torch.uint8)
    acc1 = 100 * int(correct.sum()) / images
    answers = ranks.sum(answers).cpu() if metrics else answers
    found = measured(metrics or {}, answers[:, :-1], answers[:, -1].long())
    return Report(loss=loss, acc1=acc1, acc5=100 * right5, metrics=found, bits=correct)
