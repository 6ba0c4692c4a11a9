"""Processes that read and decode images, and stay from pass to pass."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lsa_kernels import pictures
from lsa_study.data import fast_pil
from lsa_study.data.paths import DataLacks

PARENT_POLL_SECONDS = 1.0
"""A worker looks so often whether its parent is still there."""


class Workers:
    """The worker processes of one run; with none of them, this process does the work itself."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self._pinned = device.type == "cuda"
        self._resting: dict[Dataset[Any], tuple[DataLoader[Any], list[Any]]] = {}

    def take(self, images: Dataset[Any], batches: list[Any]) -> Iterator[Any]:
        """What ``images.__getitems__`` gives for each of ``batches``, in order, on the CPU.

        Raises:
            DataLacks: a file cannot be decoded.
            RuntimeError: processes cannot be started, or cannot hand over what they decode.
        """
        # Workers stay from pass to pass and take the batches of the one at hand from a list; a
        # second pass while one is under way has its own.
        if images in self._resting:
            loader, waiting = self._resting.pop(images)
            waiting[:] = batches
        else:
            # Compiled and tried once, before processes are forked, for all of them.
            fast_pil.decodes()
            pictures.as_pillow()
            waiting = batches
            loader = DataLoader(
                images, batch_sampler=waiting, num_workers=self.count, collate_fn=_shared,
                pin_memory=self._pinned, generator=torch.Generator(),
                worker_init_fn=partial(_heed, os.getpid()), persistent_workers=self.count > 0,
            )  # fmt: skip
        try:
            with _signals_blocked():  # the workers, if they are forked here, keep them blocked
                decoded = iter(loader)
            yield from decoded
        except DataLacks as error:
            # A worker's error arrives wrapped in its traceback; its own message stands last.
            raise DataLacks(str(error).rsplit("DataLacks: ", 1)[-1].strip()) from None
        except (EOFError, OSError) as error:  # of what the processes share
            raise RuntimeError(f"shared memory: {error}") from error
        self._resting[images] = loader, waiting


def _shared(batch: Any) -> Any:
    # Torch moves it to shared memory in a thread of its own, where an error, as of a full /dev/shm,
    # is printed and the batch waited for in vain.
    if get_worker_info() is not None:
        for part in _tensors(batch):
            part.share_memory_()  # type: ignore[no-untyped-call]
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    # These reach every process of the terminal or the job; only the main one may act on them. A
    # worker that ends at any moment may hold a lock that the main process then waits for in vain.
    reaching_all = (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    )  # fmt: skip
    before = signal.pthread_sigmask(signal.SIG_BLOCK, reaching_all)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(error: BaseException, _: object) -> None:
    traceback.print_exception(error)
    os._exit(1)


def _heed(parent: int, _: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_leave)  # type: ignore[attr-defined]
    if not hasattr(signal, "sigtimedwait"):  # macOS: SIGTERM ends the worker as it comes
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent has ended, or asks by SIGTERM as torch and Python do."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
