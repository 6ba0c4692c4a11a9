"""The command line ``lsa``: each command parses, calls one function, prints one answer.

The commands stand in ``run`` (plan, run, launch and what follows a run) and ``results``
(tables, claims, figures, comparisons).
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lsa_study import __version__
from lsa_study.cli import explain, new, results, run, runs
from lsa_study.errors import LsaError, unreadable
from lsa_study.terminal import guard_output

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What limits local self-attention? From experiment files to tables with intervals. "
    "Exit codes: 0 good, 1 some run failed, 2 bad config or usage, 3 the machine lacks something, "
    "4 refused for safety, 130 interrupted.",
)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, before which typer has printed its help or what is wrong with the options."""

    @functools.wraps(command)
    def run_guarded(**given: Any) -> None:
        guard_output(needed=True)
        command(**given)

    return run_guarded


for one in (*run.COMMANDS, *results.COMMANDS, *runs.COMMANDS, *explain.COMMANDS):
    app.command()(_guarded(one))
app.command()(_guarded(new.new))
app.command("eval")(_guarded(results.evaluate))  # the bare word is Python's own
app.command("collect")(_guarded(results.collect_from))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lsa_study {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


class _Interrupted(BaseException):
    """Ctrl-C: no ``except Exception`` takes it, nor does typer, which has its own way to end."""


def main() -> None:
    """Run a command; an error of a user ends with its message and the exit code of its kind."""
    interrupts = list[int]()

    def interrupt(number: int, frame: object) -> None:
        interrupts.append(number)
        raise _Interrupted

    signal.signal(signal.SIGINT, interrupt)
    guard_output(needed=True, help_only=True)
    try:
        try:
            app()
        except PermissionError as error:
            raise (unreadable(error.filename, error) if error.filename else error) from None
        finally:
            sys.stdout.flush()
    except (Exception, _Interrupted) as error:
        if interrupts:  # which pydantic wraps
            sys.stderr.write("lsa: interrupted\n")
            sys.exit(130)
        if not isinstance(error, LsaError):
            raise
        guard_output(needed=False)  # it may hold what stands in files
        for line in str(error).splitlines():
            sys.stderr.write(f"lsa: {line}\n")
        sys.exit(error.exit_code)
