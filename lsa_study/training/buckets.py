"""Gradients averaged over processes in buckets, while the backward pass still computes others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lsa_study.training.distributed import Distributed

BUCKET_BYTES = 25 * 2**20
"""Of one exchange: large enough that its latency does not count, as torch's own default."""


class Buckets:
    """The gradients of a network, cut into buckets in the order in which backward makes them.

    Every process exchanges the same buckets in the same order, whichever gradient came first, so
    that sums have the same bits at every repetition. The last bucket waits for ``finish``: it also
    holds what is known only then, so that a small network needs one exchange a step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], ranks: Distributed, *, size: int = BUCKET_BYTES
    ) -> None:
        self.ranks = ranks
        self.buckets: list[list[nn.Parameter]] = [[]]
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, Callable[[], None]]] = []
        self._listens = False
        if ranks.count == 1:
            return
        held = 0
        for parameter in reversed([p for p in parameters if p.requires_grad]):
            if held + parameter.numel() * 4 > size and self.buckets[-1]:
                self.buckets.append([])
                held = 0
            held += parameter.numel() * 4
            self.buckets[-1].append(parameter)
            come = partial(self._come, len(self.buckets) - 1)
            parameter.register_post_accumulate_grad_hook(come)  # type: ignore[no-untyped-call]

    @contextmanager
    def sending(self, last: bool) -> Iterator[None]:
        """Inside is a backward pass; in the ``last`` of a step full buckets are sent at once."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._listens = last
        try:
            yield
        finally:
            self._listens = False

    def finish(self, more: Sequence[Tensor]) -> None:
        """Send what is left and replace gradients, and ``more`` tensors, by their means.

        A process that failed on its way here sends zeros, or the gradients it has, for what it has
        not sent, so that no other waits for it for ever.

        Raises:
            PeersLost: another process has gone.
        """
        if self.ranks.count == 1:
            return
        while len(self._sent) < len(self.buckets) - 1:
            self._send(())
        self._send(more)
        sent, self._sent = self._sent, []
        rest = [()] * (len(sent) - 1) + [more]
        for (flat, wait), bucket, others in zip(sent, self.buckets, rest, strict=True):
            wait()
            flat /= self.ranks.count
            sizes = [tensor.numel() for tensor in (*bucket, *others)]
            wanted = [*(parameter.grad for parameter in bucket), *others]
            for tensor, mean in zip(wanted, torch.split(flat, sizes), strict=True):
                if tensor is not None:
                    tensor.copy_(mean.view_as(tensor))

    def _come(self, place: int, _: Tensor) -> None:
        if not self._listens:
            return
        self._missing[place] -= 1
        while (ready := len(self._sent)) < len(self.buckets) - 1 and not self._missing[ready]:
            self._send(())

    def _send(self, more: Sequence[Tensor]) -> None:
        bucket = self.buckets[len(self._sent)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([part.reshape(-1).to(torch.float32) for part in (*parts, *more)])
        self._sent.append((flat, self.ranks.begin_sum(flat)))
