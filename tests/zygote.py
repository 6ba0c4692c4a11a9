"""Commands of the package in tests, forked from one process that has imported it.

Importing torch takes five seconds of a core, a fork milliseconds. While tests run,
``subprocess.Popen`` is the class below: ``python -m lsa_study...`` becomes a fork of the zygote
with arguments, folder, environment and files of its own, and so do the processes that it starts.
Everything else starts as ever, and all does under the mark ``real_process``.

One zygote serves all workers of pytest-xdist. It has one thread and runs no region of OpenMP.
"""

import array
import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

ADDRESS = "LSA_TEST_ZYGOTE"
MARK = "LSA_TEST"
"""A name for a process and all that come of it: /proc shows no environment that was set later."""

IMPORTED = (
    "lsa_study.cli", "lsa_study.launch.process", "lsa_study.training.run",
    "lsa_study.training.evaluate_released", "lsa_study.models.ablation_check",
    "lsa_study.models.throughput", "lsa_study.data.in_memory", "lsa_study.analysis.html",
    "lsa_study.analysis.plots", "timm.data", "scipy.special", "pandas", "pyarrow.parquet", "pytest",
)  # fmt: skip
Real = subprocess.Popen
FIRST = dict(os.environ)
"""The environment before any test changes it."""


class Popen(Real):
    """A process; forked from the zygote if it runs a module of the package."""

    _reply = None

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env,
                       startupinfo, creationflags, shell, *rest):  # fmt: skip
        if shell or preexec_fn is not None or not forkable(args):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env,
                                   startupinfo, creationflags, shell, *rest)  # fmt: skip
            return
        pipes, session = rest[:6], rest[11]
        ends = (pipes[0], pipes[3], pipes[5])
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        variables = os.environ if env is None else env
        asked = {
            "args": [os.fsdecode(word) for word in args],
            "folder": os.fsdecode(Path.cwd() if cwd is None else cwd),
            "variables": {os.fsdecode(k): os.fsdecode(v) for k, v in variables.items()},
            "descriptors": [0, 1, 2, *pass_fds],
            "session": session,
        }
        text = json.dumps(asked).encode() + b"\n"
        self._reply = socket.socket(socket.AF_UNIX)
        self._reply.connect(address())
        socket.send_fds(self._reply, [text[:1]], [*streams, *pass_fds])
        self._reply.sendall(text[1:])
        number = self._reply.recv(8)
        assert number, "the zygote has died"
        self.pid = int.from_bytes(number, "big")
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags):
        if self._reply is None:
            return super()._try_wait(wait_flags)
        self._reply.setblocking(not wait_flags & os.WNOHANG)
        try:
            status = self._reply.recv(8)
        except BlockingIOError:
            return 0, 0
        self._reply.close()
        assert status, "the zygote has died"
        return self.pid, int.from_bytes(status, "big")

    def _internal_poll(self, _deadstate=None, **kept):
        if self._reply is not None:
            kept["_waitpid"] = lambda pid, flags: self._try_wait(flags)
        return super()._internal_poll(_deadstate, **kept)


def forkable(args):
    """Whether a command is ``python -m`` of a module of the package, or of the tests' ``lives``."""
    if isinstance(args, (str, bytes)) or len(args) < 3:
        return False
    package = str(args[2]).partition(".")[0]
    return [*args[:2]] == [sys.executable, "-m"] and package in ("lsa_study", "lives")


@functools.cache
def address():
    """Where the zygote of these tests listens; starts it if nobody has."""
    if ADDRESS not in os.environ:
        folder = tempfile.mkdtemp(prefix="zygote-")
        os.environ[ADDRESS] = f"{folder}/socket"
        listening = socket.create_server(os.environ[ADDRESS], family=socket.AF_UNIX, backlog=64)
        number = listening.fileno()
        # It ends when its standard input does: when this process has ended, however that comes.
        process = Real(
            [sys.executable, __file__, str(number)], stdin=subprocess.PIPE, pass_fds=[number],
            env={**FIRST, ADDRESS: os.environ[ADDRESS], "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parent,
        )  # fmt: skip
        listening.close()
        atexit.register(end, process, folder)
    return os.environ[ADDRESS]


def end(process, folder):
    process.stdin.close()
    process.wait()
    Path(folder, "socket").unlink()
    Path(folder).rmdir()


# -- the zygote's side --------------------------------------------------------------------------


def serve(listening):
    """Fork a process for everybody who connects, and tell how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is for those who ask
    for name in IMPORTED:
        importlib.import_module(name)
    address()  # keeps it for children whose environment lacks it
    gc.freeze()
    # Python counts threads of libraries too; those sleep until they are called.
    warnings.filterwarnings("ignore", "This process .*multi-threaded", DeprecationWarning)
    inherited = len(list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))))
    del sys.path[: 1 + inherited]
    found = selectors.DefaultSelector()
    found.register(0, selectors.EVENT_READ)
    found.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in found.select():
            if key.fileobj == 0:
                for other in found.get_map().values():
                    if other.data:
                        os.kill(other.data[0], signal.SIGKILL)
                return
            if key.fileobj is listening:
                pid, reply = fork(listening)
                found.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, reply))
            else:
                pid, reply = key.data
                found.unregister(key.fileobj)
                os.close(key.fileobj)
                with reply, contextlib.suppress(OSError):  # who asked may have gone
                    reply.sendall(os.waitpid(pid, 0)[1].to_bytes(8, "big"))


def fork(listening):
    """Fork the process that somebody asks for; gives its id and where to tell its end."""
    reply, _ = listening.accept()
    room = socket.CMSG_LEN(16 * array.array("i").itemsize)
    text, ancillary, *_ = reply.recvmsg(1, room)
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    while not text.endswith(b"\n"):
        text += reply.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        become(json.loads(text), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        reply.sendall(pid.to_bytes(8, "big"))
    return pid, reply


def become(asked, descriptors):
    """Be the process that was asked for, to its end."""
    code = 1
    try:
        prepare(asked, descriptors)
        code = run_main(asked["args"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def prepare(asked, descriptors):
    """Have what a new interpreter finds when it starts."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 1000) for descriptor in descriptors]
    os.closerange(3, 1000)
    for descriptor, number in zip(high, asked["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if asked["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started by nohup
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["variables"])
    if mark := os.environ.get(MARK):
        Path("/proc/self/comm").write_text(mark)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    added = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [asked["folder"], *added]
    sys.orig_argv, sys.argv = asked["args"], asked["args"][2:]
    subprocess.Popen = Popen
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    threads = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    if int(threads) != 1:
        sys.modules["torch"].set_num_threads(int(threads))


def run_main(args):
    """Run a module as ``__main__``; gives the exit code."""
    spec = importlib.util.find_spec(args[2])
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{args[2]}.__main__")
    sys.argv[0] = spec.origin
    main = sys.modules["__main__"] = importlib.util.module_from_spec(spec)
    main.__name__ = "__main__"
    code = 0
    try:
        exec(spec.loader.get_code(spec.name), vars(main))
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)  # noqa: T201
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code or 0


if __name__ == "__main__":
    import zygote  # under its name, for those who import it in a fork

    with socket.socket(fileno=int(sys.argv[1])) as listening:
        zygote.serve(listening)
