"""The errors a user meets, each with the exit code the command line ends with.

Every message reads ``where: what is wrong; what would be right``.
"""

from __future__ import annotations


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


def cause_of(error: BaseException) -> str:
    """What an error that ends a run says of its cause: ``bug`` where it is none of the known."""
    if isinstance(error, LsaError):
        return error.cause
    if isinstance(error, MemoryError):
        return "oom-host"
    return "import" if isinstance(error, ImportError) else "bug"
