"""Real processes, really killed: what they leave behind is enough to end with the same bits."""

import os
import random
import signal
import time

import pytest
import torch
from lives import DETECT, SEGMENT, equal, weights_of, without_times

from lsa_study.rundir import RunDir
from lsa_study.training import train
from lsa_study.training.evaluate import Report

LONG = {
    "model__drop_path": 0.3, "train__ema_decay": 0.9, "train__epochs": 5,
    "runtime__checkpoint_seconds": 0.0001, "evaluation__epoch": "best",
}  # fmt: skip
TASKS = {
    "classify": {"augment__mixup": 0.8, "augment__hflip": 0.5, "augment__erasing": 0.3},
    "detect": DETECT | {"data": "{name: scenes, image_size: 64, train_limit: 12, test_limit: 4}"},
    "segment": SEGMENT | {"data": "{name: scenes, image_size: 64, train_limit: 12, test_limit: 4}"},
}
"""All draw at random, and have three steps an epoch."""


def live(root) -> int:
    """The first epoch counts as the best, so that later lives have to keep its weights."""
    Report.score = property(lambda report: -report.epoch)
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
@pytest.mark.parametrize("task", TASKS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(make_run, start, task):
    """One kill while a checkpoint is half written, and three at random moments."""
    row = LONG | TASKS[task]
    whole, killed = make_run("whole", **row), make_run("killed", **row)
    unharmed = start(live, whole.root)
    process = start(live_until_half_a_checkpoint_is_written, killed.root, 2)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
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
    assert killed.result() is None
    assert killed.status().state == "running"
    last = start(live, killed.root)
    last.join(60)
    unharmed.join(60)
    assert (last.exitcode, unharmed.exitcode) == (0, 0), f"seed {seed}"
    second = (killed.attempt_folder(2) / "log.txt").read_text()
    assert "resumed at epoch 1, step 2" in second, "in the middle of an epoch"
    assert equal(weights_of(whole), weights_of(killed)), f"seed {seed}"
    for name in ("correct_bits", "image_scores_file"):
        one, other = getattr(whole, name), getattr(killed, name)
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes(), f"seed {seed}"
    for first, again in zip(whole.metrics(), killed.metrics(), strict=True):
        assert without_times([first]) == without_times([again]), f"seed {seed}"
    one, other = whole.result(), killed.result()
    assert (one.epoch, one.score, one.metrics) == (1, other.score, other.metrics)
    assert other.epoch == 1
    assert other.attempts == 5
    assert sorted(p.name for p in (killed.root / "checkpoint").iterdir()) == ["weights.safetensors"]
