# %% [markdown]
# # Explore a study
# Tables, verdicts and figures follow from the finished runs alone: from run folders where they are,
# else from the committed `results/<tier>/runs.parquet`. Nothing here needs a GPU, or even torch.

# %%
import pandas as pd
from IPython.display import SVG, Markdown

import lsa_study
from lsa_study.analysis import claims
from lsa_study.analysis.collect import collect
from lsa_study.analysis.formats import contents
from lsa_study.analysis.plots import figures, style
from lsa_study.analysis.provenance import why, why_text
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.table import build
from lsa_study.config import shipped, study

results, tier = shipped.find("results"), "toy"
runs = lsa_study.load_results(results, tier=tier)
facts = ["name", "study", "outcome", "acc1", "params", "macs", "seconds", "commit"]
runs[facts].sort_values("acc1", ascending=False).head(8)

# %% [markdown]
# ## A table, as `lsa table` writes it
# The same object gives CSV, LaTeX, Markdown and JSON.

# %%
table1, collected = study.load_study("table1", tier=tier), collect(results, tier)
table = build(table1, collected)
Markdown(contents(table)["table1.md"])

# %% [markdown]
# ## Its figures

# %%
drawn = figures([(table1, rows_of(table1, collected))])
SVG(style.svg(drawn["table1-differences"]))

# %%
SVG(style.svg(drawn["throughput"]))

# %% [markdown]
# ## What is behind a cell
# The same as `lsa why table1 net7`: runs, seeds, commits, files.

# %%
print(why_text(why(table1, "net7", collected, results)))

# %% [markdown]
# ## What the runs say of the article's claims

# %%
verdicts = claims.judge_tier(results, tier, collected=collected)
pd.DataFrame([one.as_json() for one in verdicts])[["id", "verdict", "estimate", "low", "high"]]

# %% [markdown]
# Any setting is a column of the runs, so any other question is one line of pandas; and so are those
# about epochs.

# %%
runs.groupby("model.op.application")["acc1"].agg(["mean", "count"])

# %%
epochs = lsa_study.curves(results, tier=tier)
epochs[epochs["acc1"] > 75].groupby("variant")["epoch"].min().sort_values().head(8)
