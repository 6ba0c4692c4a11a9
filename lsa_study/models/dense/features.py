"""A Swin of any operator as the backbone of detectors and segmenters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lsa_study import ops
from lsa_study.models.pretrained import HEADS, Source, in_our_layout, resized

STAGES = 4


def detection_backbone(network: nn.Module) -> Any:
    """Make a Swin the backbone of a detector, in place, as the article's released code has it.

    Each of the four stages gets a layer norm of its own, ``norm0`` to ``norm3``; the norm and the
    classifier behind the last stage go. Images of any size pass, and windows are padded before
    they are rolled. Build the network for images of 224 pixels: for others, windows may be smaller.

    Raises:
        ValueError: it is no Swin of four stages.
    """
    layers = getattr(network, "layers", None)
    stages = len(layers) if isinstance(layers, nn.Sequential) else 0
    if stages != STAGES or not hasattr(network, "patch_embed"):
        found = f"{type(network).__name__} of {stages} stages" if stages else type(network).__name__
        raise ValueError(f"a {found} has not the four maps that detectors read; give a Swin of 4")
    backbone: Any = network
    for index, info in enumerate(backbone.feature_info):
        backbone.add_module(f"norm{index}", nn.LayerNorm(info["num_chs"]))
    backbone.norm = nn.Identity()
    backbone.reset_classifier(0)
    backbone.patch_embed.strict_img_size = False
    for part in backbone.modules():
        if isinstance(part, ops.UnifiedSpatialOp):
            part.pads_first = True
    return backbone


def detection_features(network: Any, images: Tensor) -> list[Tensor]:
    """The normed maps of the four stages, at a 4th, 8th, 16th and 32nd of the image.

    Args:
        network: what ``detection_backbone`` returned.
        images: (B, 3, H, W), any H and W; padded with zeros to whole patches.

    Returns:
        four tensors (B, C, ceil(H/4), ceil(W/4)), and so on.

    Raises:
        ValueError: the network has not been made a backbone of detectors.
    """
    if not hasattr(network, "norm0"):
        raise ValueError(
            "detection_features: the network has no norm for each stage; give what "
            "detection_backbone(network) returns"
        )
    rows, columns = network.patch_embed.patch_size
    height, width = images.shape[2:]
    if height % rows or width % columns:
        images = F.pad(images, (0, -width % columns, 0, -height % rows))
    x, maps = network.patch_embed(images), []
    for index, stage in enumerate(network.layers):
        x = stage(x)
        # timm's forward_intermediates would give copies with the channels first.
        maps.append(network.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
    return maps


def begin_from(backbone: nn.Module, weights: Mapping[str, Any], *, source: Source) -> None:
    """Fill a backbone with the weights of a classifier; the norms of its maps stay as they are.

    Tables of positions of other windows are interpolated, as by ``load_official``.

    Args:
        backbone: what ``detection_backbone`` returned.
        weights: of the same network as a classifier; its last norm and its head are left aside.
        source: whose layout it is; see ``load_official``.

    Raises:
        ValueError: names are left over on either side, or shapes differ. Nothing is loaded then.
    """
    own = backbone.state_dict()
    norms = {name for name in own if name.startswith("norm") and name.partition(".")[0][4:]}
    state = {
        name: tensor
        for name, tensor in in_our_layout(backbone, weights, source=source).items()
        if not name.startswith(("norm.", *HEADS))
    }
    state = {n: resized(n, t, own[n]) if n in own else t for n, t in state.items()}
    wrong = sorted(own.keys() - norms - state.keys()) + sorted(state.keys() - (own.keys() - norms))
    wrong += [name for name in state.keys() & own.keys() if state[name].shape != own[name].shape]
    if wrong:
        raise ValueError(
            f"{source} weights do not fit the backbone: {', '.join(wrong)}; give those of the same "
            "network, trained to classify"
        )
    backbone.load_state_dict(state, strict=False)
