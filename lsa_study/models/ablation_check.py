"""Prove that a study's options reach its networks: rows that should differ do.

Every variant is built as it will be trained, on the meta device, which costs no memory. Then its
operator is put into a micro network of the same kind, behind its stem, whose weights follow from
their names alone, and sees one fixed picture. Two variants whose operators or stems differ must
answer differently or have other weights; other backbones must have other weights, other stochastic
depths other rates. Where they have not, an option does nothing.

Run as ``python -m lsa_study.models.ablation_check``: reads ``{"variant": settings, ...}`` as JSON
and prints ``{"built": number, "inactive": [message, ...]}``. Planning itself need not import torch.
"""

from __future__ import annotations

import itertools
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lsa_study.config.networks import family
from lsa_study.config.operators import Op
from lsa_study.config.settings import Model, Settings
from lsa_study.models.registry import from_settings, stem_of
from lsa_study.models.volo import Volo, VoloSize

MICRO_SIDE = 28
MICRO_VOLO = VoloSize((2, 1, 1, 1), (16, 32), (2, 4), stem_dim=8)
MICRO_VOLO_SIDE = 112
"""Its first stage then has 14 x 14 pixels: more than one window."""


@dataclass(frozen=True)
class _Built:
    """What shows of a variant: its weights, its drop rates, and its operator's answer."""

    shapes: dict[str, torch.Size]
    rates: list[float]
    answer: Tensor

    def shows(self, option: str, other: _Built) -> bool:
        """Whether the two networks differ where ``option`` should make them."""
        if option == "drop_path":
            return self.rates != other.rates
        if self.shapes != other.shapes:
            return True
        return option in ("op", "stem") and not torch.allclose(
            self.answer, other.answer, rtol=1e-5, atol=1e-7
        )


class Unbounded(TorchFunctionMode):
    """Leaves out the clamp of truncated normals: on meta it costs more than all the rest."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run every other call as it is."""
        return args[0] if func is Tensor.clamp_ else func(*args, **(kwargs or {}))


def inactive_options(variants: Mapping[str, Settings]) -> list[str]:
    """Name every pair of variants with an option that changes nothing; none if all is well.

    Raises:
        ConfigError: a variant cannot be built.
    """
    built = {name: _build(settings) for name, settings in variants.items()}
    found = []
    for one, other in itertools.combinations(built, 2):
        # How an operator is computed does not change what is computed.
        differ = variants[one].differing(variants[other]).keys() - {"model.op.implementation"}
        for option in ("backbone", "op", "drop_path", "stem"):
            changes = sorted(key for key in differ if key.startswith(f"model.{option}"))
            if changes and not built[one].shows(option, built[other]):
                found.append(
                    f"{one} and {other} differ in {', '.join(changes)}, but their networks do not: "
                    "the option does not reach them. Fix the option, or drop a row"
                )
    return found


def _build(settings: Settings) -> _Built:
    model, op = settings.model, settings.model.op
    with torch.device("meta"), Unbounded():
        whole = from_settings(model, image_size=settings.data.image_size, num_classes=1000)
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    rates = [part.drop_prob for part in whole.modules() if isinstance(part, DropPath)]
    # By the definition, in float64: planning must not wait for kernels to be compiled.
    if "implementation" in type(op).model_fields:
        op = op.model_copy(update={"implementation": "reference"})
    network = _micro(model, op)
    side = MICRO_VOLO_SIDE if isinstance(network, Volo) else MICRO_SIDE
    network.double().eval()
    with torch.inference_mode():
        for name, parameter in network.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
        draw = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 3, side, side, generator=draw, dtype=torch.float64)
        return _Built(shapes, rates, network(picture))


def _micro(model: Model, op: Op) -> nn.Module:
    """A small network of the same kind around an operator, behind the same stem."""
    kind = family(model.backbone)
    if kind == "volo":
        return Volo(MICRO_VOLO, op, img_size=MICRO_VOLO_SIDE, num_classes=10, **stem_of(model))
    small = {"backbone": f"{kind}_micro", "op": op, "drop_path": 0.0}
    return from_settings(model.model_copy(update=small), image_size=MICRO_SIDE, num_classes=10)


def main() -> None:
    """Answer one question from standard input."""
    settings = json.load(sys.stdin)
    variants = {name: Settings.model_validate_json(text) for name, text in settings.items()}
    answer = {"built": len(variants), "inactive": inactive_options(variants)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
