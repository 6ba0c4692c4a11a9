"""Optimiser, learning rate and averaged weights, as the settings ask for them; all from timm."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from lsa_study.config.protocol import Train
from lsa_study.models.swin import POSITION_TABLES


def optimiser(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """AdamW or SGD, whose peak rate is ``lr`` scaled linearly from ``lr_batch`` to ``batch_size``.

    Not decayed are biases, 1-D parameters and what the network names in its ``no_weight_decay``,
    such as VOLO's position map and class token; but Swin's position tables are spared only with
    ``no_decay: swin``.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    if train.no_decay == "mmdet":
        return _made(_decayed_by_name(model, train.weight_decay), train)
    if train.no_decay == "timm":
        spared = {name for name in spared if name.rpartition(".")[2] not in POSITION_TABLES}
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        model, train.weight_decay, no_weight_decay_list=spared
    )
    return _made(groups, train)


def _decayed_by_name(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """All parameters in two groups: of the backbone, norms and Swin's tables are not decayed.

    mmdet goes by the same names, but those of its heads' norms hold no ``norm``.
    """
    spared: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        bare = name.startswith("backbone.") and (
            "norm" in name or name.rpartition(".")[2] in POSITION_TABLES
        )
        (spared if bare else others).append(parameter)
    return [
        {"params": spared, "weight_decay": 0.0},
        {"params": others, "weight_decay": decay},
    ]


def _made(groups: list[dict[str, Any]], train: Train) -> torch.optim.Optimizer:
    peak = train.lr * train.batch_size / train.lr_batch
    rule = train.optimizer
    if rule.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=peak, momentum=rule.momentum or 0.0, nesterov=rule.nesterov, fused=True
        )
    made: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt="adamw", lr=peak, weight_decay=train.weight_decay, fused=True
    )
    return made


def schedule(
    optimizer: torch.optim.Optimizer, train: Train, *, steps: int
) -> Callable[[int, int], None]:
    """Linear warm-up, cosine or another decay, then ``min_lr`` for the cool-down.

    The cosine is counted from epoch 0 over ``epochs - cooldown_epochs``, warm-up included, so it
    has already fallen a little when the warm-up ends: with the article's 20 + 280 + 10 epochs the
    first rate after it is 9.89e-4 of a peak of 1e-3. If warm-up and cool-down pass half of the
    epochs, both shrink in proportion.

    Returns:
        What gives the optimiser the rate of (epoch, step), both counted from 0.
    """
    around = train.warmup_epochs + train.cooldown_epochs
    shrink = min(1.0, train.epochs / 2 / around) if around else 1.0
    by_epoch = train.schedule == "epoch"
    unit = 1 if by_epoch else steps
    length = round((train.epochs - train.cooldown_epochs * shrink) * unit)
    warm = round(train.warmup_epochs * shrink * unit)
    if train.decay.kind == "cosine":
        rate_at = CosineLRScheduler(
            optimizer, length, lr_min=train.min_lr, t_in_epochs=False, warmup_t=warm,
            warmup_lr_init=train.warmup_lr,
        ).step_update  # fmt: skip
    else:
        rate_at = _decaying(optimizer, train, unit=unit, length=length, warm=warm)
    return lambda epoch, step: rate_at(epoch if by_epoch else epoch * steps + step)


def _decaying(
    optimizer: torch.optim.Optimizer, train: Train, *, unit: int, length: int, warm: int
) -> Callable[[int], None]:
    r"""Steps or a power, as mmdet and mmsegmentation move a rate: the decay runs in warm-up too.

    .. math:: r_t \, (w_t + (1 - w_t) \, f / p), \quad w_t = \min(1, t / \mathrm{warm})

    of the decayed rate r, the peak p and the first rate f. (timm warms up to the whole peak, and
    its steps fall a step early.)
    """
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    times = [milestone * unit for milestone in train.decay.milestones]

    def decayed(peak: float, t: int) -> float:
        if train.decay.kind == "steps":
            return peak * math.pow(0.1, bisect.bisect_right(times, t))
        left = math.pow(max(0.0, 1 - t / length), train.decay.power)
        return train.min_lr + (peak - train.min_lr) * left

    def rate_at(t: int) -> None:
        warmed = min(1.0, t / warm) if warm else 1.0
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = decayed(peak, t) * (warmed + (1 - warmed) * train.warmup_lr / peak)

    return rate_at
