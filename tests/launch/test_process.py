"""Runs end with their queue, whatever ends it; and nothing that is printed can end them."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import zygote
from safetensors.numpy import load_file

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.config.settings import Settings
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.process import Server
from lsa_study.launch.retry import retry
from lsa_study.launch.status import status
from lsa_study.rundir import RunDir

SMALL = ("data.train_limit=64", "data.test_limit=16", "train.batch_size=32")
LONG = "train.epochs=30"
"""So long that a signal comes before its end."""


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Called:
    """``lsa run`` of one small run, with the processes that come of it."""

    def __init__(self, results: Path, length: str = LONG) -> None:
        self.results = results
        self.command = [
            sys.executable, "-m", "lsa_study.cli", "run", "table1", "--only", "swin",
            *(word for setting in (*SMALL, length) for word in ("--set", setting)),
            "--results", str(results),
        ]  # fmt: skip
        self.mark = uuid.uuid4().hex[:15]

    def start(self, **how):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", zygote.MARK: self.mark}
        out = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(self.command, env=environment, **{**out, **how})
        return self

    def finish(self):
        """Call it (again) and let it end; returns its exit code and what it said of errors."""
        _, errors = self.start().process.communicate(timeout=180)
        return self.process.returncode, errors.decode()

    @property
    def folder(self) -> RunDir:
        (folder,) = rundir.existing(self.results, "toy").values()
        return folder

    @property
    def pid(self):
        return self.folder.status().pid

    def wait_trained(self, epochs=2):
        wait_for(lambda: len(rundir.existing(self.results, "toy")) == 1)
        wait_for(lambda: len(self.folder.metrics()) >= epochs)

    def processes(self):
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                alive = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
                forked = (path / "comm").read_text().strip() == self.mark
                if alive and (forked or self.mark.encode() in (path / "environ").read_bytes()):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def wait_gone(self, seconds=20.0):
        wait_for(lambda: self.process.poll() is not None and not self.processes(), seconds)
        self.process.communicate()


@pytest.fixture
def called(tmp_path, request):
    one = Called(tmp_path / "results", getattr(request, "param", LONG))
    yield one
    for pid in one.processes():
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ValueError):  # it was read before
        one.process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    one = Called(tmp_path_factory.mktemp("undisturbed"))
    assert one.finish() == (0, "")
    return load_file(one.folder.weights)


def kill(number):
    def end(called):
        called.start()
        called.wait_trained()
        called.process.send_signal(number)

    return end


def close_terminal(called):
    ours, theirs = pty.openpty()

    def login():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started by nohup
        os.login_tty(theirs)

    called.start(stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=login)
    os.close(theirs)
    os.set_blocking(ours, False)
    called.wait_trained()
    os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", [
        pytest.param(kill(signal.SIGKILL), id="kill", marks=pytest.mark.real_process),
        pytest.param(kill(signal.SIGTERM), id="term"),
        pytest.param(kill(signal.SIGHUP), id="hup"),
        pytest.param(close_terminal, id="terminal"),
    ],
)  # fmt: skip
def test_a_run_ends_with_its_queue_and_goes_on_with_it(called, undisturbed, end):
    end(called)
    called.wait_gone()
    assert called.process.returncode in (130, -signal.SIGKILL)
    left = called.folder.status()
    assert (left.state, left.message.partition(",")[0][:14]) == ("stopped", "saved at epoch")
    assert called.folder.last_checkpoint.exists()
    assert called.finish() == (0, "")
    assert called.folder.result().attempts == 2
    weights = load_file(called.folder.weights)
    assert weights.keys() == undisturbed.keys()
    assert all((weights[name] == undisturbed[name]).all() for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_that_does_not_end_is_cut_off(called, number):
    """The run's process is stopped in the middle of its work, so that it cannot save."""
    called.start()
    called.wait_trained()
    os.kill(called.pid, signal.SIGSTOP)
    called.process.send_signal(number)
    called.wait_gone()
    (row,) = status(called.results)
    (expected,) = {signal.SIGKILL: {"lost"}, signal.SIGTERM: {"stopped"}}[number]
    assert row.state == expected
    assert len(retry(called.results, (), Cluster()).local) == 1


@pytest.mark.slow
def test_a_run_notices_that_its_server_was_killed(called):
    called.start()
    called.wait_trained()
    server = int(Path(f"/proc/{called.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(server, signal.SIGKILL)
    called.wait_gone()
    assert called.process.returncode == 1
    assert called.folder.status().state == "stopped"
    assert called.finish() == (0, "")


@pytest.mark.slow
def test_a_second_interrupt_is_the_users_doing(called):
    """The first waits for the step; the second ends it. Neither looks like a lack of memory."""
    called.start()
    called.wait_trained()
    os.kill(called.pid, signal.SIGSTOP)
    for _ in range(2):
        called.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    called.wait_gone()
    assert called.process.returncode == 130
    (row,) = status(called.results)
    assert (row.state, row.cause) == ("stopped", "interrupted")
    assert row.message == "left at once; the last checkpoint stands"
    assert [run.identity for run in retry(called.results, (), Cluster()).local] == [row.identity]
    assert called.finish() == (0, "")


@pytest.mark.slow
def test_a_hangup_means_nothing_under_nohup(called):
    called.command.insert(0, "nohup")
    called.start()
    called.wait_trained()
    called.process.send_signal(signal.SIGHUP)
    assert called.process.wait(120) == 0
    assert called.folder.result().attempts == 1


@pytest.mark.slow
@pytest.mark.parametrize("output", ["full", "closed", "pipe"])
@pytest.mark.parametrize("called", ["train.epochs=4"], indirect=True, ids=["short"])
def test_output_that_nobody_takes_ends_no_run(called, output):
    called.command += ["--set", "runtime.log_seconds=0.01"]
    if output == "closed":
        called.command = ["sh", "-c", 'exec "$@" >&-', "sh", *called.command]
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full, os.fdopen(writer, "wb") as pipe:
        called.start(stdout={"full": full, "pipe": pipe}.get(output))
    _, errors = called.process.communicate(timeout=180)
    assert (called.process.returncode, errors) == (0, b"")
    assert called.folder.result().outcome == "done"


@pytest.mark.real_process
def test_a_command_whose_output_is_its_answer_says_so():
    command = [sys.executable, "-m", "lsa_study.cli", "plan", "table1", "--json"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "lsa: standard output: cannot be written (No space left on device)\n"
    head = subprocess.run(
        f"{' '.join(command)} | head -c 1", shell=True, capture_output=True, text=True, check=False
    )
    assert (head.stdout, head.stderr) == ("{", "")


class Watched(Server):
    def _order(self, order):
        self.asked = [Settings.model_validate_json(one) for one in order["check"]]
        return super()._order(order)


def test_the_data_of_each_task_are_looked_at():
    """Scenes to detect and scenes to label are read otherwise."""
    few = ["data.train_limit=4", "data.test_limit=2"]
    runs = [
        run
        for name in ("table9", "table10")
        for run in study.load_study(name, tier="toy", seeds=[0], overrides=few).runs()[:2]
    ]
    assert len({run.settings.data for run in runs}) == 1
    with Watched() as server:
        server.check_data(runs)
        assert [one.task.kind for one in server.asked] == ["detect", "segment"]


def test_the_data_of_all_runs_are_looked_at(tmp_path):
    """Of Table 6 once with label maps and once without; what is missing is an error here."""
    runs = study.load_study("table6", tier="paper", overrides=[f"data.root={tmp_path}"]).runs()
    with Watched() as server:
        with pytest.raises(EnvironmentLacks, match=str(tmp_path)):
            server.check_data(runs)
        assert sorted(one.train.tokens is not None for one in server.asked) == [False, True]
        server.check_data(study.load_study("table1", only="swin").runs())
