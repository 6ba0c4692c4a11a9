"""Batch norm that does not depend on how a step is cut into processes and parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm:
    r"""The batch norms of a network; a step moves their running statistics once.

    .. math:: r \leftarrow (1 - m)\, r + m \, \frac{1}{n} \sum_g s_g

    over the statistics s_g of the n groups of images in the step, m the layer's momentum. A group
    is a part of the step, or ``images`` images of it: what one GPU of the article's runs held. Then
    a step gives the same, whatever its processes and parts.

    Args:
        images: of a group, ``train.norm_batch``, of which a part is a multiple (``config.parts``);
            None for whole parts, as layers compute them.
    """

    def __init__(self, network: nn.Module, *, images: int | None) -> None:
        self.layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        if images is not None:
            for layer in self.layers:
                _compute_in_groups(layer, images)

    @contextmanager
    def step(self) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """A step: inside, each of its parts, with its backward pass, is in a ``with part():``."""
        statistics = self.running
        before = [tensor.clone() for tensor in statistics]
        sums = [torch.zeros_like(tensor) for tensor in statistics]
        counts = [n for layer in self.layers if (n := layer.num_batches_tracked) is not None]
        old_counts = [count.clone() for count in counts]
        parts = 0

        @contextmanager
        def part() -> Iterator[None]:
            nonlocal parts
            for tensor, old in zip(statistics, before, strict=True):
                tensor.copy_(old)
            yield
            for tensor, total in zip(statistics, sums, strict=True):
                total += tensor
            parts += 1

        yield part
        for tensor, total in zip(statistics, sums, strict=True):
            tensor.copy_(total / parts)
        for count, old in zip(counts, old_counts, strict=True):
            count.copy_(old + 1)

    @property
    def running(self) -> list[Tensor]:
        """All running statistics, to be averaged over processes."""
        both = [(layer.running_mean, layer.running_var) for layer in self.layers]
        return [tensor for pair in both for tensor in pair if tensor is not None]


def _compute_in_groups(layer: _BatchNorm, images: int) -> None:
    whole = layer.forward

    def forward(x: Tensor) -> Tensor:
        if not layer.training or len(x) <= images:
            return whole(x)
        kept = dict(layer.named_buffers())
        outs, moved = [], []
        for group in torch.split(x, images):
            # Own copies for each: backward wants the statistics as forward left them.
            buffers = {name: tensor.clone() for name, tensor in kept.items()}
            outs.append(functional_call(layer, buffers, (group,)))
            moved.append(buffers)
        with torch.no_grad():
            for name in ("running_mean", "running_var"):
                kept[name].copy_(torch.stack([one[name] for one in moved]).mean(0))
        return torch.cat(outs)

    layer.forward = forward  # type: ignore[method-assign, assignment]
