"""The lives of a run in tests: how they begin, when they stop, and whether they did the same.

Not in conftest.py: a new process imports it by name, and there are several modules of that name.
"""

import contextlib
import os
import pickle
import subprocess
import sys

import torch
import zygote
from safetensors.torch import load_file

_SCENES = {
    "data": "{name: scenes, image_size: 64, train_limit: 8, test_limit: 4}",
    "augment": "{crop: multi_scale, hflip: 0.5}", "train__batch_size": 4, "train__lr_batch": 4,
    "model__backbone": "swin_micro4",
}  # fmt: skip
"""Changes that ``make_run`` makes into a run of another task, a second or two long."""
DETECT = {**_SCENES, "task": "{kind: detect, size: micro}"}
CASCADE = {
    **_SCENES,
    "task": "{kind: detect, framework: cascade_mask_rcnn, upsample: ddf_up, size: micro}",
}
SEGMENT = {
    **_SCENES,
    "task": "{kind: segment, size: micro, test_scales: [1.0, 1.5], test_flip: true}",
}


class Life(zygote.Popen):
    """A process that calls a function of a test's module, whose answer is its exit code."""

    def __init__(self, target, arguments, environment):
        # Functions are sent by their module's name, which the path has to lead to.
        known = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        super().__init__(
            [sys.executable, "-m", "lives"], stdin=subprocess.PIPE,
            env=os.environ | known | environment,
        )  # fmt: skip
        with self.stdin as stdin:
            pickle.dump((target, arguments), stdin)

    def join(self, seconds=None):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)

    def is_alive(self):
        return self.poll() is None

    @property
    def exitcode(self):
        return self.poll()


class StopAfter:
    """Asks to stop when it has been asked so many times."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def without_times(records):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "attempt")}
        for r in records
    ]


def weights_of(folder):
    return load_file(folder.weights)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


if __name__ == "__main__":
    target, arguments = pickle.load(sys.stdin.buffer)
    sys.exit(target(*arguments))
