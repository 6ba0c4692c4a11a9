"""One writer to a folder, though hosts share names, clocks differ and numbers come again."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from lsa_study.errors import ConfigError, Refused
from lsa_study.files import locked, read_whole, write_json
from lsa_study.record import AnyRecord, Writer

STALE_SECONDS = 600.0
"""A writer that cannot be seen from here and has been silent this long is taken for dead."""


@dataclass(frozen=True, slots=True)
class OwnedFolder:
    """A folder that one process at a time writes in; ``owner.json`` says which."""

    root: Path
    token: str = field(default="", compare=False, repr=False)
    """The ownership by which this process writes here; see ``claim``."""

    def claim(self, job: str | None) -> Self:
        """Become the one writer, under ``locked``; gives the folder to write by.

        What is written by it is refused once somebody else has taken the folder over, as from a
        process that was taken for dead.

        Raises:
            Refused: somebody else is writing here now.
        """
        path = self.root / "owner.json"
        read_whole(path)  # an owner that cannot be read is not nobody
        if (other := self.writer()) is not None:
            raise Refused(
                f"{self.root.name}: is being written by {other.host} (process {other.pid}, job "
                f"{other.job or '-'}, {self.silence():.0f} s ago); wait for it, or cancel it"
            )
        mine = replace(self, token=secrets.token_hex(8))
        me = Writer(
            host=socket.gethostname(), pid=os.getpid(), job=job, start=time.time(),
            token=mine.token, machine=_machine(), process=_process(os.getpid()),
        )  # fmt: skip
        write_json(path, me.as_json())
        return mine

    def leave(self) -> None:
        """Give up being the writer, if this process still is."""
        with contextlib.suppress(Refused), self.writing():
            (self.root / "owner.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody takes the folder over while the block runs.

        Raises:
            Refused: somebody has before.
        """
        if not self.token:
            yield
            return
        with self.locked():
            owner = self.record(Writer, self.root / "owner.json")
            if owner is None or owner.token != self.token:
                by = f"{owner.host} (process {owner.pid})" if owner else "another process"
                raise Refused(
                    f"{self.root.name}: was taken over by {by} while this process was silent; "
                    "this one writes no more"
                )
            yield

    def writer(self) -> Writer | None:
        """Who writes here now; None when nobody does any more.

        Of a process that can be seen from here the process table says it; all others count by the
        time since they last wrote, since hosts and containers may share a name.
        """
        owner = self.record(Writer, self.root / "owner.json")
        if owner is None:
            return None
        if owner.machine is not None and owner.machine == _machine():
            alive = owner.process is not None and owner.process == _process(owner.pid)
        else:
            alive = self.silence() < STALE_SECONDS
        return owner if alive else None

    def silence(self) -> float:
        """Seconds since the writer last wrote, by the clock of the folder's own file system."""
        times = []
        for name in ("owner.json", "status.json"):
            with contextlib.suppress(OSError):
                times.append((self.root / name).stat().st_mtime)
        now, lock = time.time(), self.root / ".lock"
        with contextlib.suppress(OSError):  # somebody who may only read here has no other clock
            os.utime(lock, follow_symlinks=False)
            now = lock.lstat().st_mtime
        return max(0.0, now - max(times, default=float("-inf")))

    def locked(self, tracker: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Be the one that changes the owner, or a tracker's copy; waits for the one before."""
        return locked(self.root / f"{'' if tracker is None else '.' + tracker}.lock")

    def record(self, kind: type[AnyRecord], path: Path) -> AnyRecord | None:
        """What a file records; None if it is not there, or damaged."""
        with contextlib.suppress(OSError, ConfigError):
            return kind.read(read_whole(path) or b"")
        return None


@functools.cache
def _machine() -> str | None:
    """The boot and the process table of this process; None where the system does not say them."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{sys.platform} {socket.gethostname()}" if sys.platform == "darwin" else None


def _process(pid: int) -> str | None:
    """When a process began, in the system's own form; None if there is none of this number."""
    if sys.platform == "darwin":
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        shown = subprocess.run(asked, capture_output=True, text=True, check=False)
        return shown.stdout.strip() or None
    with contextlib.suppress(OSError, IndexError):
        # Ticks since the boot: the 22nd field, counted after the name, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[19]
    return None
