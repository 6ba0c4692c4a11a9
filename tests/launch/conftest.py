import pytest

from lsa_study.config import study
from lsa_study.rundir import RunDir


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder of a few seconds: table 1's Swin on 96 digits."""

    def make(name="swin-s0-0123456789", tracker="none") -> RunDir:
        small = ["train.epochs=2", "data.train_limit=96", "train.batch_size=32"]
        overrides = [*small, f"runtime.tracker={tracker}"]
        (run,) = study.load_study("table1", only="swin", seeds=[0], overrides=overrides).runs()
        folder = RunDir(tmp_path / "results" / "toy" / "runs" / name)
        folder.create(run.settings, variant="swin")
        return folder

    return make
