"""The processes that train one run together: one alone, or several with their sums and votes.

Every process holds the whole network, computes its parts of every step and averages gradients with
the others, so all stay equal bit by bit. Processes find each other by the variables that torchrun
sets: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as torch_distributed

from lsa_study.errors import EnvironmentLacks, LsaError

Value = TypeVar("Value")


class PeersLost(EnvironmentLacks):
    """Another process of this run has gone."""


@dataclass(frozen=True)
class Distributed:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """This process among those on its machine."""

    @property
    def first(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def parts(self, accumulate: int) -> tuple[int, range]:
        """Into how many parts a step is cut, and which of them are this process's."""
        return self.count * accumulate, range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over all processes.

        Raises:
            PeersLost: another process has gone.
        """
        if self.count > 1:
            with _peers():
                torch_distributed.all_reduce(tensor)
        return tensor

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to replace ``tensor`` by its sum over all processes; returns what waits for it."""
        with _peers():
            work = torch_distributed.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _peers():
                work.wait()

        return wait

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        for tensor in tensors if self.count > 1 else ():
            with _peers():
                torch_distributed.broadcast(tensor, 0)

    def equal(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all processes hold the same tensors, by the sums of their bits."""
        if self.count == 1:
            return True
        sums = torch.stack(
            [t.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64) for t in tensors]
        )
        most = sums.clone()
        with _peers():
            torch_distributed.all_reduce(sums, torch_distributed.ReduceOp.MIN)
            torch_distributed.all_reduce(most, torch_distributed.ReduceOp.MAX)
        return torch.equal(sums, most)

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        return wish if self.count == 1 else self.totals(wish)[0] > 0

    def totals(self, *figures: float) -> list[float]:
        """The sums of figures over all processes, in one exchange that no GPU takes part in."""
        return self.sum(torch.tensor(figures, dtype=torch.float64)).tolist()

    def all_or_raise(self, work: Callable[[], Value]) -> Value:
        """Do ``work`` in every process; if it fails in one, the same error is raised in all.

        So no process waits for ever for another that has given up.
        """
        if self.count == 1:
            return work()
        error: Exception | None = None
        try:
            value = work()
        except Exception as caught:
            error = caught
        if self.any(error is not None):
            self.raise_any(error)
        return value

    def raise_any(self, error: Exception | None) -> NoReturn:
        """Raise in every process what was raised in one of them: its own, or the first of others'.

        All call this together, once they know that there is one.
        """
        if isinstance(error, torch.OutOfMemoryError | MemoryError | FloatingPointError):
            sent: Exception | None = type(error)(str(error))
        elif error is None or isinstance(error, LsaError):
            sent = error
        else:  # errors of libraries may not be picklable; their messages are
            sent = RuntimeError(f"in another process: {type(error).__name__}: {error}")
        errors: list[Exception | None] = [None] * self.count
        with _peers():
            torch_distributed.all_gather_object(errors, sent)
        raise error or next(other for other in errors if other is not None)


ALONE = Distributed()
"""One process for the whole run."""


@contextmanager
def join() -> Iterator[Distributed]:
    """Meet the other processes of this run, if there are any.

    Raises:
        PeersLost: they do not come.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    # NCCL wants a GPU for each process.
    own = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and own else "gloo"
    with _peers():
        torch_distributed.init_process_group(backend, rank=rank, world_size=count)
    try:
        yield Distributed(rank, count, local)
    finally:
        torch_distributed.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeersLost(
            f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: lost the other "
            f"processes of this run ({reason}); call the same again, the last checkpoint stands",
            cause="node",
        ) from error
