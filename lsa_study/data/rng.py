"""Random numbers that depend on what they are for, never on earlier draws.

Every draw of a run has a purpose, such as (seed, "order", epoch) or (seed, "step", epoch, step), so
a resumed run, or one with another number of workers, draws the same.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(*purpose: int | str) -> int:
    """A seed of 63 bits for a purpose; different purposes give unrelated seeds."""
    text = "/".join(map(str, purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(*purpose: int | str) -> torch.Generator:
    """A private CPU generator for a purpose."""
    return torch.Generator().manual_seed(derive(*purpose))


@contextmanager
def seeded_global(*purpose: int | str) -> Iterator[Callable[..., None]]:
    """Seed the global generators for a library that draws from them; put them back afterwards.

    Yields:
        What seeds them anew, for another purpose.
    """

    def seed(*purpose: int | str) -> None:
        number = derive(*purpose)
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.default_generator.manual_seed(number)

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed(*purpose)
        yield seed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def fingerprint(name: str, *content: Any) -> str:
    """A name and 16 hex digits of the SHA-256 of ``content``."""
    digest = hashlib.sha256()
    for piece in content:
        data = piece.encode() if isinstance(piece, str) else memoryview(piece)
        digest.update(f"{memoryview(data).nbytes}:".encode())
        digest.update(data)
    return f"{name}-{digest.hexdigest()[:16]}"
