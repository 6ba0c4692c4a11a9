"""Classification: cross-entropy or token labeling, top-1 and top-5 accuracy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study import data, models
from lsa_study.data.sets import Batch, Datasets
from lsa_study.training import token_labeling
from lsa_study.training.distributed import ALONE, Distributed
from lsa_study.training.evaluate import Report, evaluate
from lsa_study.training.tasks.protocol import Task, Tick


class Classification(Task):
    """One class of each image."""

    def sets(self, device: str) -> Datasets:
        """See ``Task``."""
        return data.load(self.settings, device=device)

    def network(self, num_classes: int) -> nn.Module:
        """See ``Task``."""
        model, side = self.settings.model, self.settings.data.image_size
        return models.from_settings(model, image_size=side, num_classes=num_classes)

    def loss(
        self, network: nn.Module, batch: Batch, amp: AbstractContextManager[Any], *, epoch: int,
        part: int,
    ) -> Tensor:  # fmt: skip
        """See ``Task``."""
        train, smoothing = self.settings.train, self.settings.augment.label_smoothing
        if train.tokens is not None:
            with amp:
                answers = token_labeling.answer(
                    network, batch.images, train.tokens,
                    self.settings.seed, "tokens", epoch, batch.step, part=part,
                    group=train.norm_batch or len(batch.images),
                )  # fmt: skip
            return token_labeling.loss(
                answers, batch.targets, batch.tokens, train.tokens, smoothing=smoothing
            )
        with amp:
            logits = network(batch.images)
        # Mixed targets are smoothed already.
        smoothing = 0.0 if batch.targets.ndim == 2 else smoothing
        return F.cross_entropy(logits.float(), batch.targets, label_smoothing=smoothing)

    def evaluate(
        self, network: nn.Module, sets: Datasets, *, precision: torch.dtype = torch.float32,
        ranks: Distributed = ALONE, tick: Tick = lambda: None, held_out: bool = False,
    ) -> Report:  # fmt: skip
        """See ``Task``."""
        asked = self.settings.evaluation
        return evaluate(
            network, sets, asked.batch_size, precision=precision, ranks=ranks, tick=tick,
            held_out=held_out, metrics=asked.metrics,
        )  # fmt: skip
