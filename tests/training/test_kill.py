"""Real processes, really killed: what they leave behind is enough to end with the same bits."""

import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from lsa_study.rundir import RunDir
from lsa_study.training import train

ALL_RANDOM = {
    "model__drop_path": 0.3, "augment__mixup": 0.8, "augment__hflip": 0.5,
    "augment__erasing": 0.3, "train__ema_decay": 0.9, "train__epochs": 4,
    "runtime__checkpoint_seconds": 0.0001,
}  # fmt: skip


def live(root) -> int:
    return int(train(RunDir(root)) != "done")


def live_until_half_a_checkpoint_is_written(root, writings) -> None:
    original, left = torch.save, [writings]

    def half(state, file):
        original(state, file)
        left[0] -= 1
        if left[0] == 0:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    live(root)


def wait_for(condition, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process.is_alive(), f"the process ended with {process.exitcode}"
        time.sleep(0.001)


def version(folder: RunDir) -> int:
    try:
        return folder.last_checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(make_run, start):
    """Three kills at random moments, between and within epochs, and one while writing."""
    whole, killed = make_run("whole", **ALL_RANDOM), make_run("killed", **ALL_RANDOM)
    unharmed = start(live, whole.root)
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    for _ in range(3):
        process, before = start(live, killed.root), version(killed)
        for _ in range(draw.randint(1, 2)):
            wait_for(lambda before=before: version(killed) > before, process)
            before = version(killed)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"seed {seed}"
    process = start(live_until_half_a_checkpoint_is_written, killed.root, 2)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert killed.result() is None
    assert killed.status().state == "running"
    last = start(live, killed.root)
    last.join(60)
    unharmed.join(60)
    assert (last.exitcode, unharmed.exitcode) == (0, 0), f"seed {seed}"
    one, other = load_file(whole.weights), load_file(killed.weights)
    assert all(torch.equal(one[name], other[name]) for name in one), f"seed {seed}"
    assert whole.correct_bits.read_bytes() == killed.correct_bits.read_bytes()
    for first, second in zip(whole.metrics(), killed.metrics(), strict=True):
        for key in ("epoch", "step", "lr", "train_loss", "loss", "acc1", "acc5", "ema_acc1"):
            assert first[key] == second[key], f"seed {seed}: {key}"
    assert killed.result().attempts == 5
    assert sorted(p.name for p in (killed.root / "checkpoint").iterdir()) == ["weights.safetensors"]
