"""The lives of a run in tests: how they begin, when they stop, and whether they did the same.

Not in conftest.py: a new process imports it by name, and there are several modules of that name.
"""

import os
import sys

import torch
from safetensors.torch import load_file


def live(target, environment, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))


class StopAfter:
    """Asks to stop when it has been asked so many times."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def without_times(records):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "attempt")}
        for r in records
    ]


def weights_of(folder):
    return load_file(folder.weights)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
