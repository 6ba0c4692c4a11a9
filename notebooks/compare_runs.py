# %% [markdown]
# # Compare two runs
# What differs between them, how they learned, and which test pictures changed sides.

# %%
import numpy as np
import pandas as pd
from IPython.display import SVG

import lsa_study
from lsa_study import data
from lsa_study.analysis.collect import collect
from lsa_study.analysis.contrasts import by_image, correct
from lsa_study.analysis.plots import style
from lsa_study.analysis.provenance import diff, diff_text
from lsa_study.config import shipped, study

results, tier = shipped.find("results"), "toy"
names = ("swin-s0", "elsa-s0")

# %% [markdown]
# ## Settings, code, environment, metrics
# The same as `lsa diff swin-s0 elsa-s0 --tier toy`. A run is named by the start of its name or
# identity.

# %%
print(diff_text(diff(results, *names, tier)))

# %% [markdown]
# ## Learning curves

# %%
epochs = lsa_study.curves(results, tier=tier)
epochs["run"] = epochs["variant"] + "-s" + epochs["seed"].astype(str)
epochs[epochs["run"].isin(names)].pivot(index="epoch", columns="run", values="acc1").tail(3)

# %% [markdown]
# ## The test pictures
# Every run stores one bit for each test picture. With one seed the exact McNemar test says whether
# those that changed sides could be a fair coin. It judges these two trained networks; it does not
# know how much another seed would move them.

# %%
runs = lsa_study.load_results(results, tier=tier)
chosen = [runs[runs["name"].str.startswith(f"{name}-")]["identity"].item() for name in names]
one, other = collect(results, tier).of(chosen).values()
by_image([(other, one)])

# %%
first, second = correct([one, other]).astype(bool)
pd.crosstab(pd.Series(first, name=names[0]), pd.Series(second, name=names[1]))

# %% [markdown]
# Pictures that only the second network got right.

# %%
sets = data.load(study.load_study("table4", tier=tier).variants["swin"])
images = np.concatenate([batch.numpy() for _, batch, _ in sets.test(256)])
with style.styled():
    drawn = style.figure(7, 1.6, f"Right only by {names[1]}")
    for axes, at in zip(drawn.subplots(1, 8), np.flatnonzero(second & ~first), strict=False):
        axes.imshow(images[at, 0], cmap="gray")
        axes.set_title(f"no. {at}", fontsize=7)
    for axes in drawn.axes:
        axes.axis("off")
SVG(style.svg(drawn))
