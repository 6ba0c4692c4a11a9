"""Machines that are not the one this was written on: a Mac, Windows, failing drivers, quotas."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from lsa_study import machine
from lsa_study.cli import doctor
from lsa_study.errors import EnvironmentLacks

SMALL = ["--set", "train.epochs=1", "--set", "data.train_limit=64", "--set", "data.test_limit=64"]
BROKEN = "Failed to initialize NVML: Driver/library version mismatch"


def lsa(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lsa_study.cli", *map(str, words)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, check=False,
    )  # fmt: skip


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a command of that name first on the PATH."""

    def make(script):
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


def on_path(tmp_path, code):
    """An environment in which new processes of Python begin with this code."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(code)
    return f"{tmp_path}/start:{os.environ.get('PYTHONPATH', '')}"


# -- cores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "number"),
    [("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 6), ("", 6)],
)
def test_cores_are_those_of_the_set_and_the_quota(tmp_path, monkeypatch, quota, number):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.cores() == number


def test_cores_of_a_system_without_cpu_sets(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "none")
    assert machine.cores() == 5


def test_a_run_on_a_system_that_lacks_what_linux_alone_has(tmp_path):
    code = "import os, time\ndel os.sched_getaffinity, os.sched_setaffinity, time.CLOCK_BOOTTIME\n"
    path = on_path(tmp_path, code)
    results = ("--results", tmp_path / "r")
    ran = lsa("run", "table1", "--only", "swin", *SMALL, *results, PYTHONPATH=path)
    assert ran.returncode == 0, ran.stderr
    shown = lsa("doctor", *results, PYTHONPATH=path)
    assert shown.returncode == 0, shown.stderr
    assert f"{os.cpu_count()} cores" in shown.stdout
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "triton" in lines["triton"]
    assert "no gradient of a bias on a CPU" in lines["attention"]


def test_a_user_without_an_entry_and_a_home_can_plan_to_launch(tmp_path):
    code = """
import os, pwd
def getpwuid(number):
    raise KeyError(number)
pwd.getpwuid = getpwuid
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""
    path = on_path(tmp_path, code)
    asked = ("launch", "table1", "--only", "swin", "--dry-run", "--results", tmp_path / "r")
    shown = lsa(*asked, PYTHONPATH=path)
    assert shown.returncode in (0, 3), shown.stderr  # 3 where there is no SLURM
    assert "Traceback" not in shown.stderr


@pytest.mark.real_process
def test_windows_is_refused_in_one_line(tmp_path):
    lacking = "import sys\nfor name in ('fcntl', 'pwd', 'resource'): sys.modules[name] = None\n"
    path = on_path(tmp_path, lacking)
    refused = lsa("plan", "table1", PYTHONPATH=path)
    assert refused.returncode == 3
    (line,) = refused.stderr.splitlines()
    assert line.startswith("lsa: this needs a POSIX system")


# -- GPUs ----------------------------------------------------------------------------------------


def test_gpus_are_those_the_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert machine.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.visible_gpus() == []


def test_gpus_are_those_the_driver_lists(nvidia_smi):
    nvidia_smi("echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA A100 (UUID: GPU-2)'")
    assert machine.visible_gpus() == ["0", "1"]


def test_a_failing_driver_is_no_machine_without_gpus(nvidia_smi, tmp_path):
    nvidia_smi(f"echo '{BROKEN}'; exit 18")
    with pytest.raises(EnvironmentLacks, match=BROKEN) as told:
        machine.visible_gpus()
    assert told.value.cause == "node"
    assert BROKEN in lsa("doctor", "--results", tmp_path).stdout
    asked = ("run", "table1", "--only", "swin", *SMALL, "--results", tmp_path / "r")
    refused = lsa(*asked)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert BROKEN in refused.stderr
    assert "--set runtime.device=cpu" in refused.stderr
    assert not (tmp_path / "r").exists()
    assert lsa(*asked, "--set", "runtime.device=cpu").returncode == 0


def test_a_driver_that_does_not_answer_is_not_waited_for(nvidia_smi, monkeypatch):
    monkeypatch.setattr(machine, "DRIVER_SECONDS", 0.2)
    nvidia_smi("exec sleep 60")
    with pytest.raises(EnvironmentLacks, match="nvidia-smi: no answer in"):
        machine.visible_gpus()


@pytest.mark.parametrize("listed", [True, False])
def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu(nvidia_smi, monkeypatch, listed):
    import torch

    nvidia_smi("echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)'")
    if not listed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old\nsee there")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(EnvironmentLacks, match=r"can use no GPU \(The NVIDIA driver .* too old\)"):
        machine.device_kind("auto")
    assert machine.device_kind("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.device_kind("auto") == "cpu"


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((7, 0), ["7.0, bfloat16 not native", "not usable", "sm_75, sm_80", "CUDA 12.6 (cu126)"]),
        ((7, 5), ["compute capability 7.5, bfloat16 not native"]),
        ((8, 6), ["compute capability 8.6, bfloat16 native"]),
        ((9, 0), ["9.0, bfloat16 native; not usable", "another CUDA"]),
        ((12, 1), ["compute capability 12.1, bfloat16 native"]),
    ],
)
def test_what_a_gpu_can_do_is_said(capability, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_120a", "compute_120"]
    )
    found = doctor.about_gpu(0)
    assert all(part in found for part in words)
    assert ("not usable" in found) == ("not usable" in " ".join(words))


FREED_AND_TAKEN = """
import resource, sys, torch
from lsa_study import machine
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert machine.keep_memory()
def step():
    torch.ones(16 << 20)
for _ in range(16):  # until a gap of every alignment is there
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_of_freed_tensors_is_kept():
    def faults(how):
        found = subprocess.run(
            [sys.executable, "-c", FREED_AND_TAKEN, how], capture_output=True, text=True, check=True
        )
        return int(found.stdout)

    assert faults("kept") < 100 < faults("returned")


def test_memory_is_left_alone_where_there_is_no_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert machine.keep_memory() is False
