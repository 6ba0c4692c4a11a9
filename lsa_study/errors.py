"""The errors a user meets, each with the exit code the command line ends with.

Every message reads ``where: what is wrong; what would be right``.
"""

from __future__ import annotations


class LsaError(Exception):
    """Base of all errors that are shown as a message, without a traceback."""

    exit_code = 1


class ConfigError(LsaError, ValueError):
    """What a user wrote is wrong. Holds every mistake found, one line each."""

    exit_code = 2

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class EnvironmentLacks(LsaError):
    """The machine lacks something the command needs: data, a scheduler, space."""

    exit_code = 3


class Refused(LsaError):
    """Going on could spoil results: two writers, another run's folder, two factors at once."""

    exit_code = 4
