"""Judge released weights on a validation set: the answer of ``lsa eval``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

from lsa_study import rundir, study
from lsa_study.errors import ConfigError


def evaluate_weights(
    name: str, weights: Path, *, source: str, root: str | None, image_size: int, crop_share: float,
    results: Path,
) -> dict[str, Any]:  # fmt: skip
    """Load released weights into a network and measure top-1 and top-5 on ImageNet's val images.

    Args:
        name: a network of ``lsa_study.models.MODELS``, or of timm.
        weights: the checkpoint; only tensors and plain settings are read from it.
        source: whose layout it has; see ``models.official``.
        root: the folder that holds ``imagenet/{train,val}/<wnid>/``; None means LSA_DATA. The
            folders under train name the classes.
        image_size: side of the crop, in pixels.
        crop_share: the crop's share of the resized image's shorter side.
        results: where ``released/<name>-<source>.json`` is written.

    Raises:
        ConfigError: an unknown network or source, or a file that is no checkpoint.
        ValueError: the weights do not fit; every leftover is named.
        DataLacks: the images are missing.
    """
    overrides = [f"data.image_size={image_size}", f"evaluation.crop_share={crop_share}",
                 "data.train_limit=1", *([f"data.root={root}"] if root else [])]  # fmt: skip
    settings = (
        study.load("table1", tier="paper", only="swin", overrides=overrides).runs()[0].settings
    )
    # Imported here, not above: the command line must start without torch.
    import timm
    import torch

    from lsa_study import data
    from lsa_study.models import MODELS, build_model, load_official, official, read_checkpoint
    from lsa_study.training.evaluate import evaluate

    if source not in get_args(official.Source):
        known = ", ".join(get_args(official.Source))
        raise ConfigError(f"--source {source}: no such release; known: {known}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sets = data.load(settings, device=device)
    classes = sets.source.num_classes
    if name in MODELS:
        network = build_model(name, num_classes=classes)
    elif name in timm.list_models():
        network = timm.create_model(name, num_classes=classes)
    else:
        raise ConfigError(f"{name}: no such network; known: {', '.join(sorted(MODELS))}, or timm's")
    load_official(network, read_checkpoint(weights), source=source)  # type: ignore[arg-type]
    begun = time.monotonic()
    scores = evaluate(network.to(device), sets, settings.evaluation.batch_size)
    found = {
        "model": name, "weights": weights.name, "source": source, "acc1": scores.acc1,
        "acc5": scores.acc5, "images": sets.source.test_images, "image_size": image_size,
        "crop_share": crop_share, "data_fingerprint": sets.source.fingerprint,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    path = results / "released" / f"{name}-{source}.json"
    with rundir.writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_json(path, found)
    return found
