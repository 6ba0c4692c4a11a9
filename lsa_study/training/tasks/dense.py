"""Detection and segmentation: the losses of the networks' heads, AP and mIoU."""

from __future__ import annotations

import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lsa_study.config.task import Classify
from lsa_study.data.dense import load
from lsa_study.data.dense.sets import DenseBatch, DenseSets, TestImage
from lsa_study.data.dense.targets import Target
from lsa_study.models import dense
from lsa_study.training import scores
from lsa_study.training.distributed import ALONE, Distributed
from lsa_study.training.evaluate import Report
from lsa_study.training.seen import strip
from lsa_study.training.tasks.protocol import Task, Tick

SHAPES = {"coco": (1, 1.6), "ade20k": (1, 4)}
"""Height and width of the image whose costs the article counts, relative to ``data.image_size``."""
SHOWN = 4
"""Test images of which pictures are kept."""


class _Dense(Task):
    """A task whose networks know their loss, see ``models.dense``."""

    @property
    def counted(self) -> tuple[int, int]:
        """See ``Task``."""
        data = self.settings.data
        height, width = (round(data.image_size * by) for by in SHAPES.get(data.name, (1, 1)))
        return height, width

    def sets(self, device: str) -> DenseSets:
        """See ``Task``."""
        return load(self.settings, device=device)

    def network(self, num_classes: int) -> nn.Module:
        """See ``Task``."""
        task = self.settings.task
        assert not isinstance(task, Classify)
        return dense.build(dense.Heads.of(task), self.settings.model, num_classes)

    def loss(
        self, network: Any, batch: DenseBatch, amp: AbstractContextManager[Any], *, epoch: int,
        part: int,
    ) -> Tensor:  # fmt: skip
        """See ``Task``."""
        with amp:
            every = network.loss(batch.images, batch.targets)
        return torch.stack([one.float() for one in every.values()]).sum()

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, sets: DenseSets, *, precision: torch.dtype = torch.float32,
        ranks: Distributed = ALONE, tick: Tick = lambda: None, held_out: bool = False,
    ) -> Report:  # fmt: skip
        """See ``Task``."""
        training = network.training
        amp = torch.autocast(sets.device.type, precision, enabled=precision != torch.float32)
        try:
            network.eval()
            with amp:
                return self._tested(network, sets, ranks, tick)
        finally:
            network.train(training)

    @torch.no_grad()
    def seen(self, network: nn.Module, sets: DenseSets) -> bytes:
        """See ``Task``; the truth above, below what is found: as many objects as there are."""
        network.eval()
        tests = list(itertools.islice(sets.test(), SHOWN))
        answers = [self._answer(network, test) for test in tests]
        return strip([test.pixels for test in tests], [test.target for test in tests], answers)

    @abstractmethod
    def _answer(self, network: Any, test: TestImage) -> Target:
        """What is found in a test image, in its own size and on the CPU."""

    @abstractmethod
    def _tested(self, network: Any, sets: DenseSets, ranks: Distributed, tick: Tick) -> Report:
        """Look at all test images."""


class Detection(_Dense):
    """Boxes and masks of objects."""

    _truth: scores.Truth | None = None

    def _answer(self, network: Any, test: TestImage) -> Target:
        view = next(test.views())
        [found] = network.predict([view.image])
        there = len(test.target["boxes"])
        best = found["scores"].argsort(descending=True, stable=True)[:there]
        answer = {key: value[best].cpu() for key, value in found.items()}
        down, across = view.scale
        boxes = answer["boxes"] / torch.tensor([across, down, across, down])
        return answer | {"boxes": boxes}

    def _tested(self, network: Any, sets: DenseSets, ranks: Distributed, tick: Tick) -> Report:
        found: list[scores.Found] = []

        def look() -> None:
            for test in sets.test(rank=ranks.rank, ranks=ranks.count):
                for view in test.views():
                    [answer] = network.predict([view.image])
                    found.extend(scores.found_in(test, answer, view.scale))
                tick()

        ranks.all_or_raise(look)
        self._truth = self._truth or scores.Truth(sets.test_split)
        precision = self._truth.average_precision(_of_all(found, ranks, sets.device))
        return Report(metrics=_known(precision, "has no object in the test images to go by"))


class Segmentation(_Dense):
    """The class of every pixel."""

    def _answer(self, network: Any, test: TestImage) -> Target:
        found = scores.label_map(test, lambda image: network.logits([image])[0])
        return {"labels": found.cpu()}

    def _tested(self, network: Any, sets: DenseSets, ranks: Distributed, tick: Tick) -> Report:
        source = sets.source
        shape = (source.test_images, 2, source.num_classes)
        every = torch.zeros(shape, dtype=torch.int64, device=sets.device)
        logits: Callable[[Tensor], Tensor] = lambda image: network.logits([image])[0]  # noqa: E731

        def look() -> None:
            for test in sets.test(rank=ranks.rank, ranks=ranks.count):
                answer, labels = scores.label_map(test, logits).cpu(), test.target["labels"]
                every[test.index] = scores.overlaps(answer, labels, source.num_classes)
                tick()

        ranks.all_or_raise(look)
        overlap = ranks.sum(every).cpu()
        total = overlap.sum(0)
        metrics = {"miou": scores.mean_iou(total), "pixel_accuracy": scores.pixel_accuracy(total)}
        return Report(
            metrics=_known(metrics, "has no labelled pixel in the test images to go by"),
            image_scores=scores.by_image(overlap) if total.any() else None,
        )


def _known(metrics: Mapping[str, Any], why_not: str) -> dict[str, float | str]:
    """Numbers, and in place of one that is none the reason."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return {name: why_not if math.isnan(one) else one for name, one in numbers.items()}


def _of_all(
    found: list[scores.Found], ranks: Distributed, device: torch.device
) -> list[scores.Found]:
    """What all processes found, as text in bytes: only sums of tensors are exchanged."""
    if ranks.count == 1:
        return found
    mine = torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)
    lengths = torch.zeros(ranks.count, dtype=torch.int64, device=device)
    lengths[ranks.rank] = len(mine)
    lengths = ranks.sum(lengths)
    texts = torch.zeros((ranks.count, int(lengths.max())), dtype=torch.uint8, device=device)
    texts[ranks.rank, : len(mine)] = mine.to(device)
    texts = ranks.sum(texts).cpu()
    every = [json.loads(row[:n].numpy().tobytes()) for row, n in zip(texts, lengths, strict=True)]
    return [one for of_rank in every for one in of_rank]
