"""The errors a user meets, each with the exit code the command line ends with.

Every message reads ``where: what is wrong; what would be right``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LsaError(Exception):
    """Base of all errors that are shown as a message, without a traceback."""

    exit_code = 1
    cause = "bug"
    """Recorded of a run that ends by it."""


class ConfigError(LsaError, ValueError):
    """What a user wrote is wrong. Holds every mistake found, one line each."""

    exit_code = 2
    cause = "config"

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@contextmanager
def all_at_once(known: Iterable[str] = ()) -> Iterator[list[str]]:
    """Raise mistakes that are known, are collected inside or end the block, as one ConfigError."""
    mistakes = [*known]
    try:
        yield mistakes
    except ConfigError as error:
        if not mistakes:
            raise
        raise ConfigError(*mistakes, *error.mistakes) from None
    if mistakes:
        raise ConfigError(*mistakes)


@contextmanager
def noting(mistakes: list[str]) -> Iterator[None]:
    """Add the mistakes of the block to these, and go on after it."""
    try:
        yield
    except ConfigError as error:
        mistakes += error.mistakes


class EnvironmentLacks(LsaError):
    """The machine lacks something the command needs: data, a scheduler, space."""

    exit_code = 3
    cause = "disk"

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause or self.cause


class Refused(LsaError):
    """Going on could spoil results: two writers, another run's folder, two factors at once."""

    exit_code = 4


def unreadable(path: object, error: OSError) -> EnvironmentLacks:
    """What to say of a file or folder that is there, and that the system does not let us read."""
    reason = error.strerror or error
    return EnvironmentLacks(f"{path}: cannot be read ({reason}); see what it is, and whose")


def explained(error: Exception) -> Exception:
    """The same error, or, where this machine's memory ran out, one that says what would help."""
    text = str(error)
    if isinstance(error, LsaError):
        return error
    if "Too many open files" in text:
        where, lacks = "ulimit -n", "is too low for the files that are open at once"
        cure = "raise it, or set fewer runtime.workers"
    elif "shared memory" in text:
        where, lacks = "/dev/shm", "loading processes cannot hand over their batches by it"
        cure = "give it room (a container: --shm-size=8g), or set runtime.workers=0"
    elif "DataLoader worker" in text and ("Killed" in text or "exited" in text):
        where, lacks = "runtime.workers", "a loading process was killed, most likely for its memory"
        cure = "give the run more memory (a job: --memory), or set fewer workers"
    elif isinstance(error, MemoryError) or any(sign in text for sign in NO_MEMORY):
        where, lacks = "memory", "this machine's ran out"
        cure = "give the run more (a job: --memory), or set fewer runtime.workers"
    else:
        return error
    return EnvironmentLacks(f"{where}: {lacks} ({_last_line(text)}); {cure}", cause="oom-host")


NO_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory")
"""Of torch and of the system, where no MemoryError is raised."""


def _last_line(text: str) -> str:
    # An error of a loading process comes with its traceback before it.
    return (text.strip().splitlines() or ["no more is known"])[-1]


def cause_of(error: BaseException) -> str:
    """What an error that ends a run says of its cause: ``bug`` where it is none of the known."""
    if isinstance(error, LsaError):
        return error.cause
    if isinstance(error, OSError):
        return "disk"
    return "import" if isinstance(error, ImportError) else "bug"
