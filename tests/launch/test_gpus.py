"""The local queue on pretended GPUs: how many runs at once, on which, and when that is too many."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from lsa_study.config import study
from lsa_study.errors import ConfigError
from lsa_study.launch import local, rehearse
from lsa_study.launch.local import Queue
from lsa_study.launch.process import Child

GB = 10**9


class Recorder:
    """Stands where processes are started: notes the GPU of each, and has each end at once."""

    def __init__(self, jobs):
        self.jobs, self.gpus = jobs, []

    def __enter__(self):
        started.append(self)
        return self

    def __exit__(self, *_):
        pass

    def check_data(self, runs, stop):
        pass

    def train(self, folder, *, gpu, quiet):
        self.gpus.append(gpu)
        folder.change_state("stopped")
        reader, writer = os.pipe()
        os.write(writer, b'{"error": null, "code": 0}\n')
        os.close(writer)
        return Child(0, os.fdopen(reader, encoding="utf-8"))


started: list[Recorder] = []


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two GPUs of 10 GiB and 12 cores; returns what trains the first rows of table 1 there."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(
        '#!/bin/sh\ncase "$1" in -L) echo "GPU 0: A (UUID: a)"; echo "GPU 1: A (UUID: b)";;\n'
        "*) echo 20480; echo 10240;; esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "Server", Recorder)
    monkeypatch.setattr(local, "cores", lambda: 12)
    started.clear()

    def work(jobs, seeds=(0, 1, 2)) -> Recorder:
        runs = study.load_study("table1", only="swin,net1", seeds=seeds).runs()
        Queue(tmp_path, jobs=jobs, console=Console(file=io.StringIO())).work(runs)
        return started[-1]

    work.results = tmp_path
    return work


def rehearsed(results: Path, **peaks):
    rows = {}
    for run in study.load_study("table1", only="swin,net1").runs():
        if run.variant in peaks:
            rows[rehearse.key(run.settings)] = rehearse.Rehearsed(
                variant=run.variant, state="ok", words="", device="A", device_kind="cuda",
                peak_bytes=peaks[run.variant],
            )  # fmt: skip
    rehearse.note(results, "toy", rows)


def test_a_gpu_has_one_run_at_a_time_unless_more_are_asked_for(machine):
    one = machine(None)
    assert (one.jobs, one.gpus[:2]) == (2, ["0", "1"])
    assert len(one.gpus) == 6
    three = machine(3)
    assert three.jobs == 6, "the cores are shared by all of them"
    assert three.gpus == ["0", "1"] * 3


def test_those_that_the_scheduler_gave_are_shared_alike(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert machine(2).gpus == ["5"] * 6


def test_more_runs_than_cores_are_refused(machine):
    with pytest.raises(ConfigError, match=r"--jobs 7: 14 runs at once.*12 there are; give --jobs"):
        machine(7)


def test_so_are_they_without_a_gpu(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine(12).jobs == 12
    with pytest.raises(ConfigError, match="--jobs 13: these runs want a core each of the 12 there"):
        machine(13)


def test_what_was_rehearsed_to_take_more_than_the_smallest_gpu_is_refused(machine):
    rehearsed(machine.results, swin=4 * GB, net1=2 * GB)
    with pytest.raises(
        ConfigError,
        match=r"--jobs 3: .* largest 3 runs take 12.0 GB .* has 10.7 GB; give --jobs 2 at most",
    ):
        machine(3)
    assert machine(2).jobs == 4
    assert machine(3, seeds=(0,)).jobs == 6, "a run of each fits"


def test_what_was_rehearsed_on_a_processor_says_nothing(machine):
    rehearsed(machine.results, swin=40 * GB)
    rows = rehearse.read_rehearsals(machine.results, "toy")
    on_cpu = {name: row.model_copy(update={"device_kind": "cpu"}) for name, row in rows.items()}
    rehearse.note(machine.results, "toy", on_cpu)
    assert machine(3).jobs == 6
