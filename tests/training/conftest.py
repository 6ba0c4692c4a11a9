import numpy as np
import pytest
import torch
from lives import Life
from PIL import Image

from lsa_study.config import study
from lsa_study.rundir import RunDir

SMALL = {"train.epochs": 2, "data.train_limit": 96, "train.batch_size": 32}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks on a shared machine: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder of a few seconds: table 1's Swin on 96 digits, changed as asked."""

    def make(name="run", variant="swin", tier="toy", seed=0, **changes) -> RunDir:
        asked = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
        overrides = [f"{key}={value}" for key, value in asked.items()]
        (run,) = study.load(
            "table1", tier=tier, only=variant, seeds=[seed], overrides=overrides
        ).runs()
        folder = RunDir(tmp_path / name)
        folder.create(run.settings, variant=variant)
        return folder

    return make


@pytest.fixture
def start():
    """Start a function in a process of its own; the imports are shared, so it takes no time."""
    started = []

    def begin(target, *arguments, **environment):
        started.append(Life(target, arguments, environment))
        return started[-1]

    yield begin
    for life in started:
        life.kill()
        life.join()


@pytest.fixture
def image_folder(tmp_path):
    """ImageNet's layout with 64 random training images in 4 classes and 4 test images."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 1)):
        for label in range(4):
            folder = tmp_path / "images" / "imagenet" / split / f"n{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    return tmp_path / "images"
