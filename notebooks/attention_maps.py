# %% [markdown]
# # Look at attention maps
# What does one pixel read, in windows and in its own neighborhood, with and without each summand
# of Eq. 4, with and without the ghost head? The weights are read off the operator's definition.

# %%
import tempfile
from pathlib import Path

from IPython.display import SVG

from lsa_study import data, rundir, training
from lsa_study.analysis.plots import style
from lsa_study.analysis.plots.attention import attention_maps, effective_areas
from lsa_study.config import shipped, study
from lsa_study.models.attention_maps import attention, effective_area, inputs, load_run

results, tier = shipped.find("results"), "toy"
rows = {"table1": "net7", "table3": "net7_n_unfold", "table4": "elsa", "table5": "dwconv"}

# %% [markdown]
# ## Trained networks
# After `lsa run all --again` the run folders hold the weights. A fresh clone has none: then a few
# steps of training stand in for them, enough to see how the maps are made but not what the networks
# learned.

# %%
here = rundir.existing(results, tier)
asked = [study.load_study(name, tier=tier, only=row).runs()[0] for name, row in rows.items()]
if not all(run.identity in here and here[run.identity].weights.exists() for run in asked):
    short = ["train.epochs=1", "data.train_limit=160", "evaluation.batch_size=497"]
    asked = [
        study.load_study(name, tier=tier, only=row, overrides=short).runs()[0]
        for name, row in rows.items()
    ]
    scratch = Path(tempfile.mkdtemp())
    here = {run.identity: rundir.RunDir(scratch / run.name) for run in asked}
    for run in asked:
        here[run.identity].create(run.settings, variant=run.variant)
        training.train(here[run.identity], stop=lambda: False)
networks = {run.variant: load_run(here[run.identity]) for run in asked}

# %% [markdown]
# ## A picture and a pixel
# The first block works on a map of 14 x 14 pixels; the chosen one is marked.

# %%
number, pixel, block = 3, (6, 6), "layers.0.blocks.0.attn"
_, images, labels = next(data.load(asked[0].settings).test(number + 1))
image = images[number:]
picture = ((image[0, 0] - image[0, 0].min()) / (image[0, 0].max() - image[0, 0].min())).numpy()
f"a {labels[number]}"

# %%
weights = {}
for name, network in networks.items():
    operator, x = inputs(network, image)[block]
    weights[name] = {"all": attention(operator, x)}
    for part in getattr(operator, "terms", ["ghost"] if name == "elsa" else []):
        weights[name][f"without {part}"] = attention(operator, x, without={part})

# %%
head = 0
shown = {
    name: {part: found[head, pixel[0], pixel[1]] for part, found in parts.items()}
    for name, parts in weights.items()
}
with style.styled():
    drawn = attention_maps(picture, shown, pixel, title="What the marked pixel reads, first head")
SVG(style.svg(drawn))

# %% [markdown]
# ## How many pixels does a head read?
# `(sum |w|)^2 / sum w^2`, averaged over the map: 1 for a head that reads a single pixel, 49 for one
# that weighs its whole 7 x 7 area alike. Pixels at the border have smaller areas. With a ghost head
# every channel reads by itself, so that row has a dot for each channel.

# %%
areas = {
    f"{name}, {part}": effective_area(found)
    for name, parts in weights.items()
    for part, found in parts.items()
    if part in ("all", "without ghost")
}
with style.styled():
    drawn = effective_areas(areas, largest=49, title="Effective area of each head")
SVG(style.svg(drawn))
