"""One optimiser step: gradients of the effective batch, the update, the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from lsa_study.config import parts
from lsa_study.config.settings import Settings
from lsa_study.data import rng
from lsa_study.errors import ConfigError
from lsa_study.training import environment, optim, tasks
from lsa_study.training.batch_norm import GroupedBatchNorm
from lsa_study.training.buckets import Buckets
from lsa_study.training.distributed import Distributed, PeersLost


class Stepper:
    """A network with all that changes it.

    Args:
        model: on its device already.
        steps: optimiser steps of an epoch, for the schedule.

    Raises:
        ConfigError: a step cannot be cut into the parts that are asked for.
    """

    def __init__(
        self, settings: Settings, model: nn.Module, ranks: Distributed, *, steps: int
    ) -> None:
        train = settings.train
        self.settings, self.model, self.ranks = settings, model, ranks
        self.device = next(model.parameters()).device
        self.precision = environment.precision(train, self.device)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )
        self.skipped = 0
        """Steps without an update, as a gradient had overflowed."""
        self.ema = None if train.ema_decay is None else ModelEmaV3(model, decay=train.ema_decay)
        self.optimizer = optim.optimiser(model, train)
        self.set_rate = optim.schedule(self.optimizer, train, steps=steps)
        self.forward: Any = torch.compile(model) if settings.runtime.compile else model
        self.task = tasks.of(settings)
        if reason := parts.why_not(settings, ranks.count):
            raise ConfigError(reason)
        self.norms = GroupedBatchNorm(model, images=train.norm_batch)
        self.buckets = Buckets(model.parameters(), ranks)
        self.failed: Exception | None = None
        """What this one of several processes failed of: it takes part in exchanges alone, until
        they vote and all raise it."""

    def train_step(self, epoch: int, step: int, batches: Iterator[Any]) -> Tensor:
        """Do one step; returns the mean loss over the effective batch, on the device.

        Epochs and their steps are counted from 0; ``batches`` gives this process's parts next.
        Where one of several processes fails, see ``failed``, the weights are of no use any more.

        Raises:
            PeersLost: another process has gone.
        """
        self.set_rate(epoch, step)
        loss = torch.zeros((), device=self.device)
        if self.failed is None:
            try:
                loss = self._gradients(epoch, step, batches)
            except Exception as error:
                if self.ranks.count == 1 or isinstance(error, PeersLost):
                    raise
                if isinstance(error, torch.OutOfMemoryError):
                    error.__traceback__ = None  # its frames hold the tensors of the whole pass
                self.failed = error
                self.optimizer.zero_grad()
        self.buckets.finish([loss, *self.norms.running])
        if self.failed is None:
            self._update()
        return loss

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if (most := self.settings.train.clip_grad) is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), most)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < scale
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def rate(self, at: tuple[int, int] | None = None) -> float:
        """The learning rate of the last step, or of an (epoch, step), both from 0."""
        if at is not None:
            self.set_rate(*at)
        return float(self.optimizer.param_groups[0]["lr"])

    def reported(self) -> nn.Module:
        """The network whose accuracy is reported: the trained or the averaged one."""
        if self.ema is not None and self.settings.evaluation.weights == "ema":
            averaged: nn.Module = self.ema.module
            return averaged
        return self.model

    def weights(self) -> list[Tensor]:
        """Those of the network and its averaged copy, which must be equal in all processes."""
        copies = (self.model, *([self.ema.module] if self.ema is not None else []))
        return [tensor for copy in copies for tensor in copy.state_dict().values()]

    def state_dict(self) -> dict[str, Any]:
        """Weights, averaged weights, moments and the loss scale, for a checkpoint."""
        return {
            "scaler": self.scaler.state_dict() | {"skipped": self.skipped},
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        scaler = state["scaler"]
        self.skipped = scaler.pop("skipped")
        if scaler:  # empty where a device without float16 saved it
            self.scaler.load_state_dict(scaler)

    def _gradients(self, epoch: int, step: int, batches: Iterator[Any]) -> Tensor:
        """Gradients of this process's parts of a step; returns their mean loss."""
        accumulate = self.settings.runtime.accumulate
        total = torch.zeros((), device=self.device)
        with self.norms.step() as norms_of_part:
            parts = self.ranks.parts(accumulate)[1]
            for part in parts:
                batch = next(batches)
                # Drop path and dropout draw from the global generators.
                torch.manual_seed(rng.derive(self.settings.seed, "step", epoch, step, part))
                with norms_of_part():
                    loss = self._loss_of(batch, epoch, part) / accumulate
                    with self.buckets.sending(part == parts[-1]):
                        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        return total

    def _loss_of(self, batch: Any, epoch: int, part: int) -> Tensor:
        amp = torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        )
        return self.task.loss(self.forward, batch, amp, epoch=epoch, part=part)
