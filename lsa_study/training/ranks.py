"""The processes that train one run together: one alone, or several with their sums and votes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def parts(self, accumulate: int) -> tuple[int, range]:
        """Into how many parts a step is cut, and which of them are this process's."""
        return self.count * accumulate, range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        if self.count == 1:
            return wish
        return bool(self.sum(torch.tensor(float(wish))).item())


ALONE = Ranks()
"""One process for the whole run."""
