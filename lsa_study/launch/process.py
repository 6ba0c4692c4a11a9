"""Every run is a process of its own, forked from a server that has imported torch.

Forking takes milliseconds where importing torch takes seconds. The server itself never computes,
so that OpenMP's threads and CUDA begin in its children alone. When its queue ends, however that
comes, it stops the runs: at a step boundary, with a checkpoint, or after ``GRACE_SECONDS`` by
force. When the server is killed, each run notices and does the same.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

from rich.console import Console

from lsa_study.config.settings import Settings
from lsa_study.config.study import RunSpec
from lsa_study.errors import ConfigError, EnvironmentLacks, LsaError, Refused, cause_of, explained
from lsa_study.launch.track import beside
from lsa_study.machine import cores
from lsa_study.rundir import RunDir
from lsa_study.terminal import Screen, guard_output
from lsa_study.training import StopOnSignals

GRACE_SECONDS = 6.0
"""So long a run may take to end its step and save once its queue is gone."""

POLL_SECONDS = 0.2

REAP_SECONDS = 0.02
"""So often the server looks whether a process has ended."""

PRELOADED = ("lsa_study.training.run", "lsa_study.data.in_memory", "timm.data", "scipy.special")
"""What every run imports; it must start no threads of OpenMP and leave CUDA alone."""


def train(run: RunDir, stop: Callable[[], bool], console: Console) -> str:
    """Train or resume a run here, of the local queue as of a scheduler's job.

    What fails before training can record it is recorded too. Returns the state it was left in.

    Raises:
        Refused: somebody else is writing in its folder.
    """
    from lsa_study import training

    try:
        with beside(run, lambda line: console.print(line, markup=False, highlight=False)):
            return training.train(run, stop=stop, console=console)
    except Refused:
        raise
    except Exception as raw:
        error = explained(raw)
        message = str(error)
        if not isinstance(error, LsaError):
            message = f"{type(error).__name__}: {error}"
            console.print_exception()
        with contextlib.suppress(LsaError):
            run.change_state("failed", cause=cause_of(error), message=message)
        return "failed"


# -- the queue's side ---------------------------------------------------------------------------


@dataclass(eq=False)
class Child:
    """A process that carries out one order."""

    pid: int
    replies: TextIO

    def fileno(self) -> int:
        """Can be read, for ``select``, once the process ends."""
        return self.replies.fileno()

    def ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        return bool(select.select([self], [], [], seconds)[0])

    def wait(self) -> dict[str, Any]:
        """Wait for its end.

        Returns:
            What it reported: ``error``, None or one that is recorded nowhere else with its
            ``exit_code``; empty if it died. ``code``: how it ended, unless the server died too.
        """
        with self.replies:
            lines = [json.loads(line) for line in self.replies if line.endswith("\n")]
        return {key: value for line in lines for key, value in line.items()}

    def stop(self) -> None:
        """Ask it to save and leave at its next step boundary."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and the processes that it started."""
        for end in (os.kill, os.killpg):  # it may not have its group yet
            with contextlib.suppress(ProcessLookupError):
                end(self.pid, signal.SIGKILL)


def ended_by(code: int | None) -> str:
    """How a process ended, as a phrase; None: nobody was there to see it."""
    if code is None:
        return "the loss of its server"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Server:
    """Starts processes while the block runs, and ends those that are left then.

    Args:
        jobs: so many processes share the cores of this machine.
    """

    def __init__(self, jobs: int = 1) -> None:
        threads = max(1, cores() // jobs)
        # Set from the start: torch and the libraries under NumPy read it when they are imported.
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._start()

    def _start(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lsa_study.launch.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env=self.environment, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.process.wait()
        self.channel.close()

    def end(self) -> None:
        """Take no more orders; have what runs stop, by force if it takes ``GRACE_SECONDS``."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def train(self, run: RunDir, *, gpu: str | None = None, quiet: bool = False) -> Child:
        """Train or resume a run in a process of its own.

        Args:
            gpu: the one it may use; None: those that this process may.
            quiet: what it says goes into its log alone.

        Raises:
            LsaError: no process can be started.
        """
        variables = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        return self._order({"train": str(run.root), "variables": variables, "quiet": quiet})

    def check_data(self, runs: Iterable[RunSpec], stop: Callable[[], bool] = lambda: False) -> None:
        """Look whether the data of runs are there and whole, until ``stop`` says to end.

        Raises:
            LsaError: data are missing or damaged.
        """
        # One run for each set of files that they read.
        settings = {run.settings.reads(): run.settings for run in runs}.values()
        look = self._order({"check": [one.model_dump_json() for one in settings]})
        while not look.ended(POLL_SECONDS):
            if stop():
                look.kill()
        report = look.wait()
        if stop() or report.get("error", "") is None:
            return
        if "error" not in report:
            raise LsaError("the process that looked at the data has died; see above")
        kind = {2: ConfigError, 3: EnvironmentLacks}.get(report["exit_code"], LsaError)
        raise kind(report["error"])

    def _order(self, order: Mapping[str, Any]) -> Child:
        if self.process.poll() is not None:  # killed between two runs, as when memory is short
            self.channel.close()
            self._start()
        reader, writer = os.pipe()
        replies = os.fdopen(reader, encoding="utf-8")
        with contextlib.suppress(BrokenPipeError):  # then there is no reply
            socket.send_fds(self.channel, [json.dumps(order).encode() + b"\n"], [writer])
        os.close(writer)
        if not (line := replies.readline()):
            replies.close()
            raise LsaError("the process that starts runs has died; see above")
        return Child(json.loads(line)["pid"], replies)


# -- the server's side --------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    """Fork a process for every order until the other end of the channel closes; then end them."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # what is imported stays: children need not look through it for garbage
    # Python counts threads of libraries too; those sleep until they are called.
    warnings.filterwarnings("ignore", "This process .*multi-threaded", DeprecationWarning)
    alive, held = os.pipe()
    replies: dict[int, int] = {}  # process -> where it and its end are reported
    while True:
        ordered = select.select([channel], [], [], REAP_SECONDS if replies else None)[0]
        _reap(replies)
        if not ordered:
            continue
        text, found, *_ = socket.recv_fds(channel, 1 << 16, 1)
        if not text:
            return _end(replies)
        while not text.endswith(b"\n"):
            text += channel.recv(1 << 16)
        (reply,) = found
        pid = os.fork()
        if pid == 0:
            for descriptor in (channel.fileno(), held, *replies.values()):
                os.close(descriptor)
            _carry_out(json.loads(text), reply, alive)
        replies[pid] = reply
        _report(reply, pid=pid)


def _reap(replies: dict[int, int]) -> None:
    for pid, reply in list(replies.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del replies[pid]
            _report(reply, code=os.waitstatus_to_exitcode(status))
            os.close(reply)


def _end(replies: dict[int, int]) -> None:
    """Stop all processes; kill those that still run after the grace."""
    for pid in replies:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    while replies:
        for pid in replies if time.monotonic() > end else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(REAP_SECONDS)
        _reap(replies)


def _report(reply: int, **facts: Any) -> None:
    with contextlib.suppress(OSError):  # a queue that has gone reads nothing
        os.write(reply, json.dumps(facts).encode() + b"\n")


def _carry_out(order: Mapping[str, Any], reply: int, alive: int) -> NoReturn:
    """Be the process of one order, to the end of the process."""
    code = 1
    try:
        # With what it starts, such as loading processes, it can be killed at once; and Linux shares
        # a busy machine out by session, so that each run of a queue counts as one.
        os.setsid()
        threading.Thread(target=_leave_with_server, args=(alive,), daemon=True).start()
        os.environ.update(order.get("variables", {}))
        report: dict[str, Any] = {"error": None}
        try:
            if "train" in order:
                with StopOnSignals() as stop:
                    shown = Screen(quiet=order["quiet"])
                    train(RunDir(Path(order["train"])), stop, shown)
            else:
                from lsa_study import data

                data.check(*map(Settings.model_validate_json, order["check"]))
        except LsaError as error:
            report = {"error": str(error), "exit_code": error.exit_code}
        # Modules need not be taken down one by one, which takes a good part of a second.
        atexit._run_exitfuncs()
        _report(reply, **report)
        code = 0
    except KeyboardInterrupt:  # it was interrupted twice
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_with_server(alive: int) -> None:
    """Wait for the server to end, then stop this process; in a thread of its own."""
    os.read(alive, 1)  # nothing is ever written: this returns when the server has gone
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    guard_output(needed=False)
    serve(socket.socket(fileno=int(sys.argv[1])))
