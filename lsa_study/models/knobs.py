"""Prove that a study's options reach its networks: rows that should differ do.

Every variant is built as it will be trained, on the meta device, which costs no memory. Then its
operator is put into a micro Swin whose weights follow from their names alone, and sees one fixed
picture: two variants with the same answer differ in an option that does nothing.

Run as ``python -m lsa_study.models.knobs``: reads ``{"variant": settings, ...}`` as JSON and
prints ``{"built": number, "dead": [words, ...]}``. Planning itself need not import torch.
"""

from __future__ import annotations

import itertools
import json
import sys
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lsa_study.config import Settings
from lsa_study.models.registry import from_settings

MICRO_SIDE = 28


def dead_options(variants: Mapping[str, Settings]) -> list[str]:
    """Name every pair of variants that compute the same; none if all is as it should be.

    Raises:
        ConfigError: a variant cannot be built.
    """
    answers: dict[str, Tensor] = {}
    for name, settings in variants.items():
        with torch.device("meta"):
            from_settings(settings.model, image_size=settings.data.image_size, num_classes=1000)
        if settings.model.backbone.startswith("swin"):
            answers[name] = _answer(settings)
    return [
        f"{one} and {other} compute the same: the options in which they differ do not reach the "
        "network. Fix the option, or drop a row"
        for one, other in itertools.combinations(answers, 2)
        if torch.allclose(answers[one], answers[other], rtol=1e-5, atol=1e-7)
    ]


def _answer(settings: Settings) -> Tensor:
    model = settings.model.model_copy(update={"backbone": "swin_micro", "drop_path": 0.0})
    network = from_settings(model, image_size=MICRO_SIDE, num_classes=10).eval()
    fill_by_name(network)
    picture = torch.randn(1, 3, MICRO_SIDE, MICRO_SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out: Tensor = network(picture)
    return out


def fill_by_name(network: nn.Module) -> None:
    """Give every parameter values that follow from its name and shape."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def main() -> None:
    """Serve one question from standard input."""
    asked = json.load(sys.stdin)
    variants = {name: Settings.model_validate_json(text) for name, text in asked.items()}
    json.dump({"built": len(variants), "dead": dead_options(variants)}, sys.stdout)


if __name__ == "__main__":
    main()
