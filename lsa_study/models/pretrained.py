"""Released weights of the article's layers and their counterparts, brought into our layout.

| source | release | what differs from ours |
|---|---|---|
| timm | timm's Swin and VOLO | Swin's table is (offsets, heads) over pos(i) - pos(j) |
| swin | Swin's authors | as timm; merges stand at the end of a stage, the head has no ``fc`` |
| elsa | ELSA's authors | window attention projects to v, q, k; two ghosts have an axis more |
| dwnet | DWNet's authors | the block's parts are called ``attn2conv`` and ``bn`` |
| ddf | decoupled dynamic filters | none, for an operator or a ResNet |
| involution | involution's authors | other names, for the operator alone |
| volo | VOLO's authors | none |
| lsa | runs of this project | none |

Merges, head and wrappers differ alike in swin, elsa and dwnet.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed_nhwc
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from lsa_study import ops
from lsa_study.errors import ConfigError

Source = Literal["timm", "swin", "elsa", "dwnet", "ddf", "involution", "volo", "lsa"]
State = dict[str, Tensor]

HEADS = ("head.", "aux_head.", "fc.")
"""The classifiers of Swin, DeiT and VOLO, and of ResNets."""

DERIVED = ("relative_position_index", "relative_id", "attn_mask")
"""Buffers some releases store though they follow from the settings."""

SWINS = (
    # They merge at the end of a stage, we at the start of the next.
    (r"^layers\.(\d+)\.downsample\.", lambda at: f"layers.{int(at[1]) + 1}.downsample."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
RENAMES: dict[str, tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = {
    "swin": SWINS,
    "elsa": SWINS,
    "dwnet": (
        *SWINS,
        (r"(^|\.)attn2conv\.", r"\1attn."),
        (r"^(layers\.\d+\.blocks\.\d+\.)bn\.", r"\1norm2."),
    ),
    "involution": (
        (r"(^|\.)conv1\.conv\.", r"\1reduce."),
        (r"(^|\.)conv1\.bn\.", r"\1norm."),
        (r"(^|\.)conv2\.conv\.", r"\1span."),
    ),
}
"""source -> patterns of their names, and ours."""


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a ``.safetensors`` file, or one of torch's own, without running code from it.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds more than weights and plain
            settings.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            # Training scripts store their arguments beside the weights; they are plain values.
            with (
                torch.serialization.safe_globals([argparse.Namespace]),
                warnings.catch_warnings(action="ignore"),  # other releases would have written it so
            ):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own message advises to run what the file holds
        if (named := re.search(r"GLOBAL ([\w.]+)", str(error))) is not None:
            raise ConfigError(
                f"{path}: holds an object that would run code when read ({named[1]}); give a file "
                "of tensors alone, as torch.save(model.state_dict(), path) writes"
            ) from None
        raise ConfigError(
            f"{path}: cannot be read as weights ({type(error).__name__}): the file is damaged or "
            "of another kind; fetch it again, or give a .safetensors or .pth file"
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{path}: holds a {type(content).__name__}; give tensors by name, as state_dict() does"
        )
    return content


def load_official(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    source: Source,
    head: Literal["kept", "drawn", "mapped"] | None = None,
    rows: Sequence[int] = (),
) -> None:
    """Fill a network, a block or an operator from released weights.

    Args:
        module: what to fill; its settings must be those of the release.
        state_dict: tensors by name, or a checkpoint that holds them under ``model`` or
            ``state_dict``; prefixes of data-parallel training are dropped.
        source: whose layout it is; see the table above.
        head: given for a network of another image size: its maps and tables of positions are
            interpolated bicubically, as Swin's authors do it. kept: the classifier comes along,
            for the same classes; drawn: the network keeps its own; mapped: it takes ``rows`` of
            the other, in the order of the network's classes.

    Raises:
        ValueError: rows that the other classifier has not, an unknown source, or weights that do
            not fit: names left over on either side and both shapes where they differ. Nothing is
            loaded then.
    """
    own = module.state_dict()
    state = in_our_layout(module, state_dict, source=source)
    if head == "drawn":
        drawn = {name: tensor for name, tensor in own.items() if name.startswith(HEADS)}
        state = {k: t for k, t in state.items() if not k.startswith(HEADS)} | drawn
    if head == "mapped":
        state |= {
            name: _mapped(name, t, rows) for name, t in state.items() if name.startswith(HEADS)
        }
    if head is not None:
        for name in state.keys() & own.keys():
            state[name] = resized(name, state[name], own[name])
    differ = [
        f"{name} {tuple(state[name].shape)}, here {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = {
        "they lack": [name for name in own if name not in state],
        "nothing here takes": [name for name in state if name not in own],
        "shapes differ": differ,
    }
    if found := [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]:
        what = f"{source} weights for {type(module).__name__}"
        raise ValueError(f"{what} do not fit: {'; '.join(found)}")
    module.load_state_dict(state)


def _mapped(name: str, theirs: Tensor, rows: Sequence[int]) -> Tensor:
    if max(rows, default=0) >= len(theirs):
        raise ValueError(f"{name} has {len(theirs)} rows, and the map asks for row {max(rows)}")
    return theirs[list(rows)]


def resized(name: str, theirs: Tensor, ours: Tensor) -> Tensor:
    """A map or table of positions in the size of ours, bicubically; all else as it is."""
    kind = name.rpartition(".")[2]
    if theirs.shape == ours.shape or theirs.dim() != ours.dim():
        return theirs
    if kind == "pos_embed" and theirs.shape[-1] == ours.shape[-1]:
        position_map: Tensor = resample_abs_pos_embed_nhwc(
            theirs, list(ours.shape[1:3]), antialias=False
        )
        return position_map
    alike = theirs.shape[:1] + theirs.shape[2:] == ours.shape[:1] + ours.shape[2:]
    if kind not in ("rel_bias", "rel_k", "rel_q") or not alike:
        return theirs
    # (heads, offsets, ...) -> timm's (offsets, all others), and back.
    flat = theirs.movedim(1, 0).flatten(1)
    side = (math.isqrt(ours.shape[1]) + 1) // 2
    wide = resize_rel_pos_bias_table_simple(flat, (side, side), (ours.shape[1], flat.shape[1]))
    table: Tensor = wide.unflatten(1, (ours.shape[0], *ours.shape[2:])).movedim(0, 1)
    return table.contiguous()


def in_our_layout(module: nn.Module, state_dict: Mapping[str, Any], *, source: Source) -> State:
    """Released weights under our names and in our shapes; see ``load_official``.

    Raises:
        ValueError: an unknown source, or something else than tensors by name.
    """
    if source not in get_args(Source):
        raise ValueError(f"source={source!r} is unknown; known: {', '.join(get_args(Source))}")
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    named = {str(name).removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if other := [f"{n} ({type(t).__name__})" for n, t in named.items() if not torch.is_tensor(t)]:
        raise ValueError(
            f"the weights hold {', '.join(other)}; give tensors by name, alone or under "
            "state_dict or model"
        )
    state = {
        _renamed(name, source): tensor
        for name, tensor in named.items()
        if name.rpartition(".")[2] not in DERIVED
    }
    for name, part in module.named_modules():
        convert = CONVERTERS.get((source, type(part)))
        if convert is not None:
            prefix = f"{name}." if name else ""
            theirs = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
            part_state = convert({key.removeprefix(prefix): t for key, t in theirs.items()})
            state |= {prefix + key: tensor for key, tensor in part_state.items()}
    for name, tensor in module.state_dict().items():
        # Batch norm's count of training steps is no weight; a release may lack it.
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
    return state


def _renamed(name: str, source: str) -> str:
    for pattern, ours in RENAMES.get(source, ()):
        name = re.sub(pattern, ours, name)
    return name


def _swin_attention(state: State) -> State:
    if (table := state.pop("relative_position_bias_table", None)) is not None:
        # Their index is pos(i) - pos(j): the same table read backwards.
        state["rel_bias"] = table.flip(0).T.contiguous()
    return state


def _elsa_window_attention(theirs: State) -> State:
    ours = {name.replace("post_proj.", "proj."): tensor for name, tensor in theirs.items()}
    for name in ("weight", "bias"):
        if f"pre_proj.{name}" in ours:
            v, q, k = ours.pop(f"pre_proj.{name}").chunk(3)
            ours[f"qkv.{name}"] = torch.cat([q, k, v])
    if "rb" in ours:
        ours["rel_bias"] = ours.pop("rb")
    return ours


def _elsa(state: State) -> State:
    if "ghost_head" in state and state["ghost_head"].dim() == 5:
        # Theirs is (2, 1, C, K, K); torch cannot bring five axes into channels-last memory.
        state["ghost_head"] = state["ghost_head"].flatten(0, 1)
    return state


CONVERTERS: dict[tuple[str, type[nn.Module]], Callable[[State], State]] = {
    ("timm", ops.UnifiedSpatialOp): _swin_attention,
    ("swin", ops.UnifiedSpatialOp): _swin_attention,
    ("elsa", ops.UnifiedSpatialOp): _elsa_window_attention,
    ("elsa", ops.ELSA): _elsa,
}
"""(source, our operator) -> from their tensors to ours. Without a line, names are the same."""
