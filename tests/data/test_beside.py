"""Batches that a GPU prepares beside its steps; see ``gpu`` in conftest."""

import pytest
import torch

from lsa_study import data
from lsa_study.config import study
from lsa_study.data.sets import beside


def epoch(device):
    (run,) = study.load_study(
        "table1", only="swin",
        overrides=["data.train_limit=256", "train.batch_size=32", "augment.mixup=0.8"],
    ).runs()  # fmt: skip
    sets = data.load(run.settings, device=str(device))
    return lambda: sets.train(sets.epoch(0, 32))


@pytest.mark.gpu
def test_they_are_the_same_while_the_device_is_busy(gpu):
    batches = epoch(gpu)
    plain = [(batch.images.clone(), batch.targets.clone()) for batch in batches()]
    work = torch.randn(2000 if gpu.type == "cuda" else 20, 2000, device=gpu)
    seen = []
    for batch in beside(batches(), gpu):
        for _ in range(20):
            torch.mm(work, work.T)
        seen.append((batch.images + 0, batch.targets + 0))
        del batch  # its memory is free for the next one, which must wait for these sums
    assert len(seen) == len(plain) == 8
    for mine, theirs in zip(seen, plain, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_an_error_of_the_data_comes_through():
    def broken():
        yield from epoch("cpu")()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(beside(broken(), torch.device("cpu")))
