"""Code of other packages in a run: tried before anything starts, and asked for its metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lsa_study import measure, models
from lsa_study.config import imports
from lsa_study.config.settings import Settings
from lsa_study.data.sets import CHANNELS
from lsa_study.errors import ConfigError

TRIAL = (64, 10)
"""Images and classes of the random logits on which a metric is tried."""


def check(settings: Settings) -> None:
    """Try what a run takes from outside, so that mistakes show before anything is trained.

    Its network sees random images and is counted; its metrics see random logits.

    Raises:
        ConfigError: all that is not as it should be.
    """
    images, classes = TRIAL
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, generator=draw)
    targets = torch.randint(classes, (images,), generator=draw)
    tried = measured(settings.evaluation.metrics, logits, targets)
    mistakes = [
        f"evaluation.metrics.{name}: {settings.evaluation.metrics[name]}: on random logits "
        f"{tuple(logits.shape)} it {found}; give one finite number"
        for name, found in tried.items()
        if isinstance(found, str)
    ]
    model, side = settings.model, settings.data.image_size
    if ":" in model.backbone or ":" in model.op.kind:
        try:
            with torch.random.fork_rng(devices=[]):
                network = models.from_settings(model, image_size=side, num_classes=classes)
            measure.count(network, (CHANNELS, side, side))
        except ConfigError as error:
            mistakes += error.mistakes
        except Exception as error:  # of the class's own macs()
            mistakes.append(
                f"model: its multiply-adds cannot be counted ({type(error).__name__}: {error}); "
                "give the class macs(shape), a whole number"
            )
    if mistakes:
        raise ConfigError(*mistakes)


def measured(metrics: Mapping[str, str], logits: Tensor, targets: Tensor) -> dict[str, float | str]:
    """Ask functions from outside about all images; a run is never lost to them.

    Args:
        metrics: import paths by name.
        logits: (images, classes) float32.
        targets: (images,) class numbers.

    Returns:
        By name, the number, or what the function did in its place.
    """
    found: dict[str, float | str] = {}
    for name, path in metrics.items():
        try:
            value = imports.load(path)(logits.clone(), targets.clone())
        except Exception as error:
            said = str(error).partition("\n")[0][:200]
            found[name] = f"raised {type(error).__name__}: {said}"
            continue
        shape = tuple(getattr(value, "shape", ()))
        number = math.nan
        if not shape:
            with contextlib.suppress(TypeError, ValueError):
                number = float(value)
        kind = f"a {type(value).__name__} {shape}" if shape else f"{value!s:.40}"
        found[name] = number if math.isfinite(number) else f"gave {kind}"
    return found
