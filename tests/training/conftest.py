import pytest
import torch

from lsa_study import study
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
