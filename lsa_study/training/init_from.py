"""Weights that a run begins from: those of another run, or a file's."""

from __future__ import annotations

import hashlib

from torch import nn

from lsa_study.config.settings import Settings
from lsa_study.data import DataLacks, paths
from lsa_study.errors import ConfigError
from lsa_study.models import dense, load_official, read_checkpoint
from lsa_study.rundir import RunDir


def load_initial_weights(network: nn.Module, run_dir: RunDir, settings: Settings) -> str | None:
    """Fill a network, randomly initialised so far, from what ``train.start`` names.

    Returns:
        What it begins from, for the result: a run's name, or a file and its SHA-256; None where
        the weights stay as they are.

    Raises:
        DataLacks: the run has not been trained, or the file is not there.
        ConfigError: the weights do not fit.
    """
    start = settings.train.start
    if start is None:
        return None
    if start.weights is None:
        identity = str(run_dir.config().get("start"))
        before = run_dir.sibling(identity)
        result = None if before is None else before.result()
        if before is None or result is None or result.outcome != "done":
            name = start.what if before is None else before.root.name
            why = "has not been trained; train it first"
            if result is not None:
                why = f"ended {result.outcome}; give another row, or mend that one"
            raise DataLacks(f"{run_dir.root.name}: begins from {name} ({identity}), which {why}")
        path, source, begun = before.weights, "lsa", before.root.name
    else:
        assert start.source is not None
        path, source = paths.weights(settings.data, start.weights), start.source
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        begun = f"{start.weights} sha256:{digest}"
    rows: list[int] = []
    if start.map is not None:
        rows = paths.head_rows(settings.data, start.map)
        numbers = "\n".join(map(str, rows))
        begun += f", head by {start.map} sha256:{hashlib.sha256(numbers.encode()).hexdigest()}"
    state = read_checkpoint(path)
    try:
        if settings.task.kind != "classify":
            dense.begin_from(network.backbone, state, source=source)  # type: ignore[arg-type]
            return begun
        load_official(network, state, source=source, head=start.head, rows=rows)  # type: ignore[arg-type]
    except ValueError as error:
        cure = (
            ". Give weights of the same network; for other classes, train.start.head: drawn, or "
            "mapped with a map that fits both"
        )
        cure = cure if settings.task.kind == "classify" else ""
        raise ConfigError(f"train.start: {path}: {error}{cure}") from None
    return begun
