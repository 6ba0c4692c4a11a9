"""Files that a reader sees whole or not at all, on disks that may be full or read-only."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lsa_study.errors import EnvironmentLacks

try:
    import fcntl
except ImportError:
    sys.stderr.write("lsa: this needs a POSIX system, such as Linux or macOS; on Windows use WSL\n")
    sys.exit(EnvironmentLacks.exit_code)

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Signs that a terminal obeys, or that are none; line breaks and tabs are harmless."""


def foreign_link(path: str | Path) -> bool:
    """Whether a path is a symbolic link that another user made, to lead us somewhere else."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid())
    return False


def plain_file(path: str, flags: int) -> int:
    """Open a regular file for ``open(opener=...)``: no pipe or device, no link of another user.

    Raises:
        OSError: it is one of these, or cannot be opened.
    """
    if foreign_link(path):
        raise OSError(errno.ELOOP, "is a link that another user made")
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file")
    return descriptor


def read_whole(path: Path) -> bytes | None:
    """What a file holds; None if there is no such file.

    Raises:
        OSError: it is there but cannot be read, or is no file; see ``plain_file``.
    """
    try:
        # A buffer costs a quarter of the time where thousands of small files are read.
        with open(path, "rb", buffering=0, opener=plain_file) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process in the block, of all that name this file; waits for the one before."""
    with open(path, "a", opener=plain_file) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_json(path: Path, data: Mapping[str, Any], *, make_folder: bool = False) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never half."""
    content = json.dumps(data, indent=2, sort_keys=True) + "\n"
    write_whole(path, content, make_folder=make_folder)


def write_whole(path: Path, content: str | bytes, *, make_folder: bool = False) -> None:
    """Write a file by temporary name, fsync and rename.

    Raises:
        EnvironmentLacks: the disk is full or the folder cannot be written; the old file stands.
    """
    with writable(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it is flushed and takes ``path``'s place at the end.

    If the block fails, the old file stands and the temporary one is removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; see ``writable``.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        part.touch(exist_ok=False)  # made anew: nothing that another user put there is followed
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Report a full disk or a folder without permission as ``EnvironmentLacks``."""
    try:
        yield
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free some space or choose another --results folder"
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is none that can be read."""
    try:
        found = json.loads(read_whole(path) or b"")
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def last_lines(path: Path, count: int = 20) -> list[str]:
    """The last lines of a file that hold something; none if it cannot be read."""
    try:
        with open(path, "rb", opener=plain_file) as file:
            file.seek(max(0, path.stat().st_size - 400 * count))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]
