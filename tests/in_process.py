"""A command of ``lsa`` in this process, for tests that run thousands."""

import contextlib
import signal
import sys

from lsa_study import cli

SECONDS = 20
"""No command of the tests may take longer."""


def overdue(*_):
    raise TimeoutError(f"took over {SECONDS} s")


def answer(folder, command, capfd):
    """Run a command in a folder; gives its exit code, standard output and standard error."""
    before = signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr, sys.argv
    signal.signal(signal.SIGALRM, overdue)
    signal.alarm(SECONDS)
    code = 0
    sys.argv = ["lsa", *command.split()]
    try:
        with contextlib.chdir(folder):
            cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, before[0])
        sys.stdout, sys.stderr, sys.argv = before[1:]
    return code, *capfd.readouterr()
