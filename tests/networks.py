"""Networks of any size without their numbers."""

import torch

from lsa_study.models.ablation_check import Unbounded


def on_meta(build, *args, **options):
    """What ``build`` returns, on the meta device, in evaluation mode."""
    with torch.device("meta"), Unbounded():
        return build(*args, **options).eval()
