"""Checkpoints under torn files, full disks and strange content."""

import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsa_study.errors import EnvironmentLacks
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    return RunDir(tmp_path)


def state(number: int, size: int = 1000) -> dict:
    return {"model": {"weight": torch.full((size,), float(number))}, "progress": {"epoch": number}}


def test_the_last_is_read_and_the_one_before_is_kept(folder):
    assert checkpoint.load(folder) is None
    for number in (1, 2, 3):
        checkpoint.save(folder, state(number))
    assert checkpoint.load(folder)["progress"] == {"epoch": 3}
    folder.last_checkpoint.unlink()
    assert checkpoint.load(folder)["progress"] == {"epoch": 2}
    assert sorted(p.name for p in (folder.root / "checkpoint").iterdir()) == ["previous.pt"]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_torn_checkpoint_gives_way_to_the_one_before(folder, keep):
    checkpoint.save(folder, state(1))
    checkpoint.save(folder, state(2))
    content = folder.last_checkpoint.read_bytes()
    folder.last_checkpoint.write_bytes(content[: int(keep * len(content))])
    assert checkpoint.load(folder)["progress"] == {"epoch": 1}


def test_flipped_bits_are_noticed(folder):
    checkpoint.save(folder, state(1))
    checkpoint.save(folder, state(2))
    content = bytearray(folder.last_checkpoint.read_bytes())
    place = bytes(content).index(torch.full((100,), 2.0).numpy().tobytes())
    content[place + 10] ^= 0xFF
    folder.last_checkpoint.write_bytes(bytes(content))
    assert checkpoint.load(folder)["progress"] == {"epoch": 1}


def test_a_checkpoint_cannot_run_code(folder, tmp_path):
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save({"model": Trap()}, folder.last_checkpoint)
    folder.previous_checkpoint.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(EnvironmentLacks, match=r"last\.pt: is damaged"):
        checkpoint.load(folder)
    assert not marker.exists()


def test_a_disk_that_fails_for_a_while_costs_a_while(folder, monkeypatch):
    checkpoint.save(folder, state(1))
    checkpoint.save(folder, state(2))
    monkeypatch.setattr(checkpoint, "PAUSES", (0.01, 0.01))
    content, errors = folder.last_checkpoint.read_bytes(), [OSError(116, "Stale file handle")]

    def read(path):
        if errors:
            raise errors.pop()
        return content

    monkeypatch.setattr(checkpoint.files, "read_whole", read)
    assert checkpoint.load(folder)["progress"] == {"epoch": 2}
    errors += [OSError(5, "Input/output error")] * 3
    with pytest.raises(EnvironmentLacks, match=r"last\.pt: cannot be read \(Input/output error, 3"):
        checkpoint.load(folder)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_epochs_that_are_done_are_not_trained_anew(folder, damage):
    """The first one is recorded just before its checkpoint is written."""
    folder.log_metrics({"epoch": 1, "attempt": 1})
    assert checkpoint.load(folder) is None
    for number in (1, 2):
        checkpoint.save(folder, state(number))
    folder.log_metrics({"epoch": 2, "attempt": 1})
    for path in (folder.last_checkpoint, folder.previous_checkpoint):
        damage(path)
    with pytest.raises(EnvironmentLacks, match="2 epochs are recorded; bring a copy back"):
        checkpoint.load(folder)


def test_too_little_memory_for_a_checkpoint_is_no_damage(folder, monkeypatch):
    checkpoint.save(folder, state(1))
    checkpoint.save(folder, state(2))

    def load(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        checkpoint.load(folder)


def test_a_full_disk_leaves_the_old_one_intact(folder):
    """The kernel refuses the write half way, as a full disk does."""
    checkpoint.save(folder, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with pytest.raises(EnvironmentLacks, match=r"cannot be written .* Free space") as told:
            checkpoint.save(folder, state(2, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(folder.last_checkpoint) in str(told.value)
    assert checkpoint.load(folder)["progress"] == {"epoch": 1}
    assert [p.name for p in (folder.root / "checkpoint").iterdir()] == ["last.pt"]


KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys, torch
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint
original = torch.save
def half(state, file):
    original(state, file)
    file.truncate(file.tell() // 2)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
checkpoint.save(RunDir(pathlib.Path(sys.argv[1])), {"progress": {"epoch": 2}})
"""


def test_a_kill_while_writing_leaves_the_old_one_and_its_rest_is_cleared(folder):
    checkpoint.save(folder, state(1))
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder.root)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert checkpoint.load(folder)["progress"] == {"epoch": 1}
    assert len(list((folder.root / "checkpoint").glob("*.part"))) == 1
    checkpoint.save(folder, state(3))
    assert list((folder.root / "checkpoint").glob("*.part")) == []
    assert checkpoint.load(folder)["progress"] == {"epoch": 3}


def test_too_little_space_is_told_at_the_start(folder):
    checkpoint.need_space(folder, 1000)
    with pytest.raises(EnvironmentLacks, match=r"3 checkpoints of 1,000,000,000\.0 MB must fit"):
        checkpoint.need_space(folder, 10**15)


def test_weights_are_plain_tensors(folder):
    from safetensors.torch import load_file

    shared = torch.randn(4, 6)
    checkpoint.save_weights(folder, {"a": shared, "b": shared.T, "c": shared})
    read = load_file(folder.weights)
    assert torch.equal(read["b"], shared.T)
    assert torch.equal(read["c"], read["a"])
    checkpoint.save(folder, state(1))
    checkpoint.remove(folder)
    assert [p.name for p in Path(folder.root / "checkpoint").iterdir()] == ["weights.safetensors"]
