"""A package outside of ours, and studies that take from it, for tests."""

from __future__ import annotations

import itertools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = itertools.count()
OPS = """
from __future__ import annotations
from typing import Literal
import torch
from torch import nn

print("modules may print")
PI = 3

class Gated(nn.Module):
    def __init__(self, dim: int, num_heads: int, *, gate: Literal["own", "none"] = "own",
                 share: float = 1.0, sides: tuple[int, ...] = (3, 5)) -> None:
        super().__init__()
        assert isinstance(sides, tuple)
        self.share, self.gate = share, nn.Linear(dim, dim) if gate == "own" else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        mean = self.share * x.mean((1, 2), keepdim=True).expand_as(x)
        return self.out(mean if self.gate is None else mean * self.gate(x).sigmoid())

class Said(Gated):
    def macs(self, shape):
        return 12_345

class Dead(Gated):
    def __init__(self, dim, num_heads, *, idle: int = 1):
        super().__init__(dim, num_heads)

class Flat(nn.Module):
    def __init__(self, dim, num_heads, *, how="flat"):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "raises":
            raise RuntimeError("no such luck")
        return {"flat": x.flatten(1, 2), "half": x.half(), "pair": (x, x)}[self.how]

class OneArgument(nn.Module):
    def __init__(self, dim, *, size=3):
        super().__init__()

class Needs(nn.Module):
    def __init__(self, dim, num_heads, *, size: int):
        super().__init__()

def no_module(dim, num_heads):
    return 3
"""
DATA = """
import numpy as np

class Spots:
    num_classes = 3
    def __init__(self, root):
        self.root = root
    def fingerprint(self):
        return "spots-1"
    def train(self):
        return self.make(0, 96)
    test = property(lambda self: self.make(1, 30))
    def make(self, seed, n):
        draw = np.random.default_rng(seed)
        labels = np.arange(n) % 3
        return draw.integers(0, 255, (n, 3, 28, 28)).astype("uint8") // (1 + labels)[
            :, None, None, None].astype("uint8"), labels

class Nameless:
    train = test = None

class Empty(Spots):
    def fingerprint(self):
        return ""

class Gone(Spots):
    def train(self):
        raise FileNotFoundError("no spots here")

class Floats(Spots):
    def train(self):
        images, labels = super().train()
        return images / 255, labels

class Few(Spots):
    num_classes = 2
"""
METRICS = """
import math

def margin(logits, targets):
    top = logits.topk(2, 1).values
    return (top[:, 0] - top[:, 1]).mean()

def images(logits, targets):
    return len(targets)

def late(logits, targets):
    if len(targets) != 64:
        raise KeyError("only on the test set")
    return 1.0

def nan(logits, targets):
    return math.nan

def vector(logits, targets):
    return logits.mean(0)

def raises(logits, targets):
    raise ValueError("cannot")

def greedy(logits, targets, weights):
    return 0.0
"""
NETS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, op, num_classes, image_size):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.op = op(16, 2, image_size // 4)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head((x + self.op(x)).mean((1, 2)))

class Wide(Tiny):
    def forward(self, x):
        return super().forward(x)[:, :-1]

class Bare(nn.Module):
    def __init__(self, classes):
        super().__init__()
"""


def write_package(folder: Path) -> str:
    """Write a package of a name that nobody has imported; gives the name."""
    name = f"lab{next(NUMBERS)}"
    package = folder / name
    package.mkdir(parents=True)
    files = {"__init__": "", "ops": OPS, "data": DATA, "metrics": METRICS, "nets": NETS,
             "broken": "import no_such_module_at_all\n"}  # fmt: skip
    for module, text in files.items():
        (package / f"{module}.py").write_text(text)
    return name


def write_study(folder: Path, rows: dict[str, str], *, every: str = "", factor="model.op") -> Path:
    """Write a study of rows, each its settings in YAML's braces; the first is the baseline."""
    lines = [
        "study: own", "title: Own", "question: Does it run?", f"factor: [{factor}]",
        f"baseline: {next(iter(rows))}",
        f"article: {{csv: {ROOT}/results/paper/table1.csv, source: none}}",
        f"set: {{train.epochs: 1, train.batch_size: 32, data.train_limit: 64{every}}}",
        "variants:",
    ]  # fmt: skip
    lines += [
        f"  {name}: {{label: {name}, set: {{{settings}}}}}" for name, settings in rows.items()
    ]
    path = folder / "own.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


SWIN = "model.op: {kind: unified, terms: [qk, bias], norm: softmax, application: window}"
