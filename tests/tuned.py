"""A study of two rows, of which the second goes on with the weights of the first."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TEXT = f"""
study: tuned
title: Tuned
question: Does a network learn more from trained weights?
factor: [model.op]
baseline: whole
article: {{csv: {ROOT}/results/paper/table1.csv, source: none}}
set:
  train.epochs: 1
  train.batch_size: 32
  data.train_limit: 64
  model.op: {{kind: unified, terms: [qk, bias], norm: softmax, application: window}}
variants:
  tuned:
    label: Tuned
    against: tuned
    set: {{train.lr: 1.0e-12, train.warmup_lr: 0.0, train.min_lr: 0.0, train.start: {{row: whole}}}}
  whole: {{label: Whole, set: {{}}}}
"""


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The study as a file, some of its words replaced."""
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "tuned.yaml"
    path.write_text(text)
    return path
