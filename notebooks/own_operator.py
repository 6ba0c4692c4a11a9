# %% [markdown]
# # Your own operator, ablated in ten lines
# An operator is a module that maps (B, H, W, C) to (B, H, W, C). Here: the mean of each pixel's
# neighborhood, times a gate that the pixel computes itself. Does the gate matter?

# %%
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from lsa_study import data, measure
from lsa_study.analysis.contrasts import mcnemar
from lsa_study.config import study
from lsa_study.models import from_settings
from lsa_study.models.blocks import SpatialBlock
from lsa_study.training.evaluate import evaluate
from lsa_study.training.optim import optimiser


class GatedMean(nn.Module):
    """Mean of the 7 x 7 neighborhood, gated by the pixel itself or not."""

    def __init__(self, dim, gate):
        super().__init__()
        self.gate = nn.Linear(dim, dim) if gate == "own" else None
        self.project = nn.Linear(dim, dim)

    def forward(self, x):
        mean = F.avg_pool2d(x.permute(0, 3, 1, 2), 7, 1, 3).permute(0, 2, 3, 1)
        return self.project(mean if self.gate is None else mean * self.gate(x).sigmoid())


# %% [markdown]
# ## The ablation
# Both rows start from the same seed and see the same pictures in the same order. Half the training
# set and two epochs keep this short; nothing here is evidence.

# %%
settings = study.load_study("table4", overrides=["data.train_limit=640"]).variants["swin"]
sets, scores, rows = data.load(settings), {}, []
for gate in ("none", "own"):
    torch.manual_seed(settings.seed)
    network = from_settings(settings.model, image_size=28, num_classes=10)
    for block in (m for m in network.modules() if isinstance(m, SpatialBlock)):
        block.attn = GatedMean(block.norm1.normalized_shape[0], gate)
    steps = optimiser(network, settings.train)
    for batch in (b for epoch in range(2) for b in sets.train(sets.epoch(epoch, 32))):
        steps.zero_grad()
        F.cross_entropy(network(batch.images), batch.targets).backward()
        steps.step()
    scores[gate] = evaluate(network, sets, 256)
    rows.append({"gate": gate, "acc1": scores[gate].acc1, "loss": scores[gate].loss,
                 "params": measure.count(network, (3, 28, 28)).params})  # fmt: skip
pd.DataFrame(rows)

# %% [markdown]
# ## Is it more than the luck of these test pictures?
# McNemar's test on the pictures that changed sides. For a claim about training, several seeds are
# needed.

# %%
without, own = (scores[gate].bits.bool() for gate in ("none", "own"))
gained, lost = int((own & ~without).sum()), int((without & ~own).sum())
f"{gained} gained, {lost} lost, p = {mcnemar(gained, lost):.2g}"

# %% [markdown]
# To give it a row in a table, with seeds, resume, SLURM and intervals, give it settings and a name:
# the recipe "An operator" in CONTRIBUTING.md.
