"""Top-1 and top-5 accuracy on the test set, every image counted once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from lsa_study.data.sets import Sets
from lsa_study.training.distributed import ALONE, Ranks
from lsa_study.training.progress import Report


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    sets: Sets,
    batch_size: int,
    *,
    precision: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    tick: Callable[[], None] = lambda: None,
) -> Report:
    """Evaluate a network on all test images; ``tick`` is called after every batch."""
    images = sets.source.test_images
    top = min(5, sets.source.num_classes)
    device = sets.device
    correct = torch.zeros(images, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    for rows, batch, labels in sets.test(batch_size, rank=ranks.rank, ranks=ranks.count):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model(batch)
        logits = logits.float()
        hits = logits.topk(top, dim=1).indices == labels[:, None]
        # Summed and divided once: the mean of batch means would weigh a short last batch more.
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += hits.sum()
        correct[rows.to(device)] = hits[:, 0].to(correct.dtype)
        tick()
    model.train(training)
    loss, right5 = (ranks.sum(sums) / images).tolist()
    correct = ranks.sum(correct).to("cpu", torch.uint8)
    acc1 = 100 * int(correct.sum()) / images
    return Report(loss=loss, acc1=acc1, acc5=100 * right5, bits=correct)
