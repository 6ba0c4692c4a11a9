"""Our weights under the names and in the order of other releases, written by their rules."""

import torch


def as_released_by_swin(state):
    """The layout of Swin's authors: merges at the end of stages, no ``fc``, index buffers."""
    theirs = {}
    for name, tensor in state.items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}", f"layers.{stage - 1}")
        theirs[name.replace("head.fc.", "head.")] = tensor
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return theirs


def as_released_by_elsa(state):
    """The layout of ELSA's authors: window attention projects to v, q, k; data-parallel names."""
    theirs = {}
    for name, tensor in state.items():
        parent = name.rpartition(".")[0]
        if name.endswith("rel_bias"):
            name = f"{parent}.rb"
        elif ".attn.qkv." in name:
            third = len(tensor) // 3
            tensor = torch.cat([tensor[2 * third :], tensor[: 2 * third]])
            name = name.replace("qkv", "pre_proj")
        elif ".attn.proj." in name:
            name = name.replace("proj", "post_proj")
        theirs[name] = tensor
    return {f"module.{name}": t for name, t in as_released_by_swin(theirs).items()}
