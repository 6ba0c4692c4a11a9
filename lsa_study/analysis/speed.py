"""Figures of ``lsa bench`` beside the rows of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lsa_study.config.study import Study
from lsa_study.errors import ConfigError

MODES = ("inference", "training")


def measured(study: Study) -> tuple[dict[str, dict[str, str]], str]:
    """Cells of every row that was timed, and what was timed where; empty without a benchmark.

    Ratios are to the study's baseline row.

    Raises:
        ConfigError: the file holds no figures of these rows.
    """
    path = _path(study)
    if path is None or not path.exists():
        return {}, ""
    try:
        found = json.loads(path.read_text("utf-8"))
        networks, machine = found["networks"], found["machine"]
        base = networks[study.file.variants[study.file.baseline].network]
        cells = {
            name: _cells(networks[row.network], base)
            for name, row in study.file.variants.items()
            if row.network in networks
        }
        note = (
            f"Images/s: medians of interleaved steps of {found['batch']} images of "
            f"{found['size']} pixels in {found['precision']} on {machine['device']}, "
            f"{machine['threads']} threads, torch {machine['torch']}; in brackets the ratio to "
            "the first row."
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no figures of these rows ({error}); run lsa bench") from None
    return cells, note


def _path(study: Study) -> Path | None:
    written = study.file.benchmark
    return None if written is None else study.document.path.parent / written


def _cells(one: dict[str, Any], base: dict[str, Any]) -> dict[str, str]:
    cells = {}
    for mode in MODES:
        rate, of_base = (network[mode]["images_per_second"] for network in (one, base))
        cells[f"{mode.capitalize()} (images/s)"] = f"{rate:.3g} ({rate / of_base:.2f})"
    return cells
