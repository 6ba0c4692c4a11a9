"""Networks of any size without their numbers, or without the blocks that repeat others."""

import dataclasses

import pytest
import torch

from lsa_study.models import swin, volo
from lsa_study.models.ablation_check import Unbounded


def on_meta(build, *args, **options):
    """What ``build`` returns, on the meta device, in evaluation mode."""
    with torch.device("meta"), Unbounded():
        return build(*args, **options).eval()


@pytest.fixture
def shallow(monkeypatch):
    """Two blocks a stage, an even and an odd one; in a backbone, all others repeat these."""
    for sizes, field in ((swin.SIZES, "depths"), (volo.SIZES, "layers")):
        for name, size in list(sizes.items()):
            blocks = tuple(min(2, number) for number in getattr(size, field))
            monkeypatch.setitem(sizes, name, dataclasses.replace(size, **{field: blocks}))
