"""Evaluate released weights on a validation set: the answer of ``lsa eval``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from torch import nn

from lsa_study import data
from lsa_study.config import study
from lsa_study.config.names import nearest
from lsa_study.config.settings import Settings
from lsa_study.errors import ConfigError
from lsa_study.files import write_json
from lsa_study.machine import cores, device_kind
from lsa_study.models import MODELS, TIMM_MODELS, pretrained, read_checkpoint
from lsa_study.training.evaluate import evaluate


def evaluate_weights(
    name: str, weights: Path, *, source: str, root: str | None, image_size: int | None,
    crop_share: float | None, window: int | None, results: Path,
) -> dict[str, Any]:  # fmt: skip
    """Load released weights into a network and measure top-1 and top-5 on ImageNet's val images.

    Args:
        name: a network of ``lsa_study.models``, or a Swin or VOLO of timm. Its own are the side
            of the crop and of windows, in pixels, and the crop's share of the resized image's
            shorter side where these are None.
        weights: the checkpoint; only tensors and plain settings are read from it.
        source: whose layout it has; see ``models.pretrained``.
        root: the folder that holds ``imagenet/{train,val}/<wnid>/``; None means LSA_DATA. The
            folders under train name the classes.
        results: where ``released/<name>-<source>.json`` is written.

    Raises:
        ConfigError: an unknown network or source, a file that is no checkpoint, or weights that do
            not fit; every leftover is named.
        DataLacks: the images are missing.
    """
    if source not in get_args(pretrained.Source):
        hint = nearest(source, get_args(pretrained.Source))
        raise ConfigError(f"--source {source}: no such release; {hint}")
    settings = _settings(name, root, image_size, crop_share)
    state = read_checkpoint(weights)
    device = device_kind("auto")
    sets = data.load(settings, device=device)
    network = _network(name, settings.data.image_size, sets.source.num_classes, window)
    try:
        pretrained.load_official(network, state, source=source)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(
            f"{weights}: {error}. Give the weights of {name} as released by {source}, or what they "
            "are with MODEL, --source, --size and --window"
        ) from None
    begun = time.monotonic()
    scores = evaluate(network.to(device), sets, settings.evaluation.batch_size)
    found = {
        "model": name, "weights": weights.name, "source": source, "acc1": scores.acc1,
        "acc5": scores.acc5, "images": sets.source.test_images,
        "image_size": settings.data.image_size, "crop_share": settings.evaluation.crop_share,
        "data_fingerprint": sets.source.fingerprint,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    write_json(results / "released" / f"{name}-{source}.json", found, make_folder=True)
    return found


def _settings(
    name: str, root: str | None, image_size: int | None, crop_share: float | None
) -> Settings:
    """The article's protocol at the network's own image size and crop, unless others are given."""
    timms = timm.list_models(["swin_*", "volo_*"], exclude_filters=list(MODELS))
    known = [*MODELS, *TIMM_MODELS]
    if name not in (*known, *timms):
        raise ConfigError(f"{name}: no such network; {nearest(name, [*known, *timms])}")
    own = timm.get_pretrained_cfg(TIMM_MODELS.get(name, name))
    overrides = [
        f"data.image_size={image_size or own.input_size[-1]}",
        f"evaluation.crop_share={own.crop_pct if crop_share is None else crop_share}",
        # Not for training: the images under train only name the classes.
        "data.train_limit=1",
        f"runtime.workers={min(8, cores())}",
        *([f"data.root={root}"] if root else []),
    ]
    loaded = study.load_study("table1", tier="paper", only="swin", overrides=overrides)
    return loaded.variants["swin"]


def _network(name: str, side: int, classes: int, window: int | None) -> nn.Module:
    options = {"img_size": side, "num_classes": classes}
    if window is not None:
        options["window_size"] = window
    try:
        network: nn.Module = timm.create_model(name, **options)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{name}: cannot be built with {options}: {error}; give another --size or --window"
        ) from None
    return network
