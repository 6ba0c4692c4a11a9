"""Operators and networks of other packages: built as their settings ask, and tried once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsa_study import measure
from lsa_study.config import imports
from lsa_study.config.operators import OutsideOp
from lsa_study.config.outside import OF_OPERATOR
from lsa_study.config.settings import Model
from lsa_study.errors import ConfigError

_TRIED: set[tuple[Any, ...]] = set()
"""What was found to map its input as it should; a network holds many equal operators."""


def build_operator(op: OutsideOp, *, dim: int, heads: int, map_size: tuple[int, int]) -> nn.Module:
    """Build an operator as ``Class(dim, heads, **arguments)``.

    Args:
        dim: channels C of its map.
        heads: those of the backbone at this place, which the operator may use or not.
        map_size: height and width of its map in pixels.

    Raises:
        ConfigError: the class raises, is no ``nn.Module``, or does not map (B, H, W, C) to the same
            shape and type.
    """
    given = imports.arguments(op.kind, op.arguments, OF_OPERATOR)
    module = _built(op.kind, lambda cls: cls(dim, heads, **given))
    shape = (2, *map_size, dim)
    _try(module, op.kind, shape, shape, (repr(op), dim, heads))
    return module


def build_backbone(
    model: Model, build: Callable[..., nn.Module], *, image_size: int, num_classes: int
) -> nn.Module:
    """Build a network as ``Class(op=..., num_classes=...)`` around the operator of a study.

    It is given ``image_size`` and ``drop_path`` too where it takes them. ``op`` builds an operator:
    ``op(dim, num_heads, map_size, odd=False, last_stage=False)``, with ``map_size`` the side or the
    sides of its map; windows are shifted where ``odd``.

    Args:
        build: from the fields of ``BlockContext`` to the operator of ``model``.

    Raises:
        ConfigError: the class raises, is no ``nn.Module``, or does not map images to logits.
    """

    def op(
        dim: int, num_heads: int, map_size: int | tuple[int, int], *, odd: bool = False,
        last_stage: bool = False,
    ) -> nn.Module:  # fmt: skip
        sides = (map_size, map_size) if isinstance(map_size, int) else map_size
        return build(dim, num_heads, sides, odd, last_stage)

    path = model.backbone
    known, others = imports.parameters(path)
    known_or_any = {"op": op, "num_classes": num_classes} | {
        name: value
        for name, value in (("image_size", image_size), ("drop_path", model.drop_path))
        if others or name in known
    }
    network = _built(path, lambda cls: cls(**known_or_any))
    shape = (2, 3, image_size, image_size)
    _try(network, path, shape, (2, num_classes), (repr(model), num_classes))
    return network


def _built(path: str, build: Callable[[Any], Any]) -> nn.Module:
    try:
        module = build(imports.load(path))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{path}: building it raised {type(error).__name__}: {error}; mend the class, or give "
            "it other arguments"
        ) from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ConfigError(f"{path}: made a {kind}; give a class that is a torch.nn.Module")
    if type(module) not in measure.FORMULAS:
        measure.OUTSIDE.add(type(module))
    return module


def _try(
    module: nn.Module, path: str, given: Sequence[int], wanted: Sequence[int], key: tuple[Any, ...]
) -> None:
    """See once what it makes of two random inputs; the random numbers of a run stay as they are."""
    if torch.empty(0).device.type == "meta" or (path, given, *key) in _TRIED:
        return
    training, draw = module.training, torch.Generator().manual_seed(0)
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = module(torch.randn(*given, generator=draw))
    except Exception as error:
        raise ConfigError(
            f"{path}: given {tuple(given)}, it raised {type(error).__name__}: {error}; it has to "
            f"map that to {tuple(wanted)}"
        ) from error
    finally:
        module.train(training)
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise ConfigError(f"{path}: gave a {kind}; it has to give one tensor {tuple(wanted)}")
    if tuple(found.shape) != tuple(wanted) or found.dtype != torch.float32:
        raise ConfigError(
            f"{path}: made {tuple(given)} float32 to {tuple(found.shape)} "
            f"{str(found.dtype).removeprefix('torch.')}; it has to be {tuple(wanted)} float32"
        )
    _TRIED.add((path, given, *key))
