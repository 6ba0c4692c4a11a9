"""The training loop: epochs of steps, evaluation, checkpoints at step boundaries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lsa_study.config import Settings
from lsa_study.data import DataLacks, seeds
from lsa_study.data.plan import Epoch
from lsa_study.data.sets import Batch, Sets
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint, environment, optimise
from lsa_study.training.evaluate import Scores, evaluate
from lsa_study.training.monitor import Silent
from lsa_study.training.outcome import Diverged, Stopped
from lsa_study.training.progress import Progress, Report
from lsa_study.training.ranks import ALONE, Ranks

GPU_CHECK_STEPS = 50
"""On a GPU, looking at a loss waits for all queued work; so look now and then."""


@dataclass(frozen=True)
class Life:
    """Where and for whom a loop runs."""

    run_dir: RunDir
    settings: Settings
    attempt: int
    monitor: Silent
    stop: Callable[[], bool]
    ranks: Ranks = ALONE


class LossWatch:
    """Sums the losses of an epoch on their device and remembers the first that is not finite."""

    def __init__(self, device: torch.device, loss_sum: float) -> None:
        self.sum = torch.tensor(loss_sum, dtype=torch.float64, device=device)
        self.bad_step = torch.tensor(-1, device=device)
        self.bad_loss = torch.tensor(0.0, device=device)

    def add(self, loss: Tensor, images: int, step: int) -> None:
        """Note the mean loss of a step."""
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        self.bad_loss = torch.where(bad, loss, self.bad_loss)
        self.sum += loss.double() * images


class Loop:
    """One life of a run, from where the last checkpoint stands to the last epoch."""

    def __init__(self, life: Life, model: nn.Module, sets: Sets) -> None:
        train, runtime = life.settings.train, life.settings.runtime
        self.life, self.settings, self.sets = life, life.settings, sets
        self.monitor, self.ranks = life.monitor, life.ranks
        self.device = sets.device
        self.model = model.to(self.device)
        self.precision = environment.precision(train, self.device)
        self.ema = None if train.ema_decay is None else ModelEmaV3(model, decay=train.ema_decay)
        self.optimizer = optimise.optimiser(model, train)
        self.accumulate = runtime.accumulate
        self.progress = Progress(fingerprint=sets.source.fingerprint)
        self.steps = self._plan().steps
        self.schedule = optimise.Schedule(self.optimizer, train, steps=self.steps)
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(model) if runtime.compile else model
        )
        self.running = [
            statistic
            for part in model.modules()
            if isinstance(part, _BatchNorm)
            for statistic in (part.running_mean, part.running_var)
            if statistic is not None
        ]
        self._noted = self._saved = time.monotonic()

    @property
    def effective_batch(self) -> int:
        """Images of an optimiser step."""
        return self._plan().batch

    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: weights, two moments, averaged and best weights."""
        copies = 3 + (self.ema is not None) + (self.settings.evaluation.epoch == "best")
        return copies * checkpoint.num_bytes(self.model.state_dict())

    def resume(self) -> None:
        """Go to where the last checkpoint stands, if there is one.

        Raises:
            DataLacks: the data are not those the run began with.
        """
        state = checkpoint.load(self.life.run_dir)
        if state is None:
            return
        progress = Progress.from_plain(state["progress"])
        if progress.fingerprint != self.sets.source.fingerprint:
            raise DataLacks(
                f"{self.life.run_dir.root}: was begun with data {progress.fingerprint}, found are "
                f"{self.sets.source.fingerprint}; bring back the old files, or move the folder "
                "away to begin anew"
            )
        self.progress = progress
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.monitor.say(f"resumed at epoch {progress.epoch + 1}, step {progress.step + 1}")

    def run(self) -> None:
        """Train and evaluate all epochs that are left.

        Raises:
            Diverged: a loss was not finite.
            Stopped: ``stop`` turned true; the state is saved.
        """
        self.monitor.begin(self._done())
        self.model.train()
        self._noted = self._saved = time.monotonic()
        try:
            while self.progress.epoch < self.settings.train.epochs:
                self._end_epoch(self._train_epoch())
                self._save()
        finally:
            self._note_costs()

    # -- steps --------------------------------------------------------------------------------

    def _plan(self) -> Epoch:
        parts, mine = self.ranks.parts(self.accumulate)
        at = self.progress
        return self.sets.epoch(
            at.epoch, self.settings.train.batch_size, first_step=at.step, parts=parts, mine=mine
        )

    def _train_epoch(self) -> float:
        """Do the steps that are left of this epoch; returns the epoch's mean training loss."""
        plan, at = self._plan(), self.progress
        watch = LossWatch(self.device, at.loss_sum)
        batches = iter(self.sets.train(plan))
        before, begun = at.epoch_seconds, time.monotonic()
        every = 1 if self.device.type == "cpu" else GPU_CHECK_STEPS
        for step in range(at.step, plan.steps):
            try:
                loss = self._step(step, batches)
            except Exception:
                # A signal to the whole job ends the loading processes before it is looked at here.
                self._stop_if_asked(watch)
                raise
            watch.add(loss, plan.batch, step)
            if (step + 1) % every == 0 or step + 1 == plan.steps:
                self._look(watch)
            at.step = step + 1
            at.epoch_seconds = before + time.monotonic() - begun
            self._between_steps(watch)
        self._look(watch)
        return at.loss_sum / (plan.steps * plan.batch)

    def _step(self, step: int, batches: Iterator[Batch]) -> Tensor:
        """One optimiser step; returns the mean loss over the effective batch."""
        self.schedule.set(self.progress.epoch, step)
        loss = self.ranks.together(lambda: self._gradients(step, batches))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.ranks.average([loss, *gradients, *self.running])
        if self.settings.train.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.train.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return loss

    def _gradients(self, step: int, batches: Iterator[Batch]) -> Tensor:
        """Gradients of this process's parts of a step; returns their mean loss."""
        total = torch.zeros((), device=self.device)
        for part in self.ranks.parts(self.accumulate)[1]:
            batch = next(batches)
            words = (self.settings.seed, "step", self.progress.epoch, step, part)
            torch.manual_seed(seeds.derive(*words))
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ):
                logits = self.forward(batch.images)
            loss = self._loss(logits.float(), batch.targets) / self.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Mixed targets are smoothed already.
        smoothing = 0.0 if targets.ndim == 2 else self.settings.augment.label_smoothing
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _look(self, watch: LossWatch) -> None:
        """Copy the sum of losses from the device; raise if one was not finite."""
        self.progress.loss_sum = float(watch.sum)
        step = int(watch.bad_step)
        if step < 0:
            return
        self.schedule.set(self.progress.epoch, step)
        raise Diverged(
            f"epoch {self.progress.epoch + 1}, step {step + 1}: training loss "
            f"{float(watch.bad_loss)} at lr {self._rate():.3g}"
        )

    def _between_steps(self, watch: LossWatch) -> None:
        at = self.progress
        self._stop_if_asked(watch)
        if time.monotonic() - self._saved >= self.settings.runtime.checkpoint_seconds:
            self._look(watch)
            self._save()
        self._tick(f"step {at.step}/{self.steps}")

    def _stop_if_asked(self, watch: LossWatch) -> None:
        if self.ranks.any(self.life.stop()):
            self._look(watch)
            self._save()
            raise Stopped

    def _tick(self, words: str) -> None:
        at = self.progress
        shown = f"epoch {at.epoch + 1}/{self.settings.train.epochs}  {words}"
        if at.last.epoch:
            shown += f"  acc1 {at.last.acc1:.2f} %"
        self.monitor.beat(self._done(), shown, epoch=at.epoch, step=at.step)

    def _done(self) -> float:
        return self.progress.epoch + self.progress.step / self.steps

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    # -- epochs -------------------------------------------------------------------------------

    def _evaluate(self, model: nn.Module) -> Scores:
        try:
            scores = evaluate(
                model, self.sets, self.settings.evaluation.batch_size, precision=self.precision,
                ranks=self.ranks, tick=self._tick_or_stop,
            )  # fmt: skip
        except RuntimeError:
            self._tick_or_stop()
            raise
        if not math.isfinite(scores.loss):
            raise Diverged(
                f"epoch {self.progress.epoch + 1}, after step {self.steps}: test loss "
                f"{scores.loss} at lr {self._rate():.3g}"
            )
        return scores

    def _tick_or_stop(self) -> None:
        # All steps of the epoch are done: the next life begins with the evaluation.
        if self.ranks.count == 1 and self.life.stop():
            self._save()
            raise Stopped
        self._tick("testing")

    def _end_epoch(self, train_loss: float) -> None:
        at, begun = self.progress, time.monotonic()
        plain = self._evaluate(self.model)
        averaged = None if self.ema is None else self._evaluate(self.ema.module)
        use_ema = averaged is not None and self.settings.evaluation.weights == "ema"
        chosen = averaged if use_ema and averaged is not None else plain
        report = Report(
            epoch=at.epoch + 1, loss=chosen.loss, acc1=chosen.acc1, acc5=chosen.acc5,
            model_acc1=plain.acc1, ema_acc1=averaged.acc1 if averaged is not None else None,
            bits=chosen.correct,
        )  # fmt: skip
        at.last = report
        if at.best.epoch == 0 or report.acc1 > at.best.acc1:
            at.best = report
            if self.settings.evaluation.epoch == "best":
                at.best_weights = {k: v.cpu().clone() for k, v in self.reported_weights().items()}
        record = {
            "epoch": report.epoch, "attempt": self.life.attempt,
            "step": report.epoch * self.steps, "lr": self._rate(), "train_loss": train_loss,
            "loss": report.loss, "acc1": report.acc1, "acc5": report.acc5,
            "ema_acc1": report.ema_acc1,
            "seconds": at.epoch_seconds + time.monotonic() - begun,
            "images_per_second": self.steps * self.effective_batch / at.epoch_seconds,
        }  # fmt: skip
        self._tell(record)
        at.epoch, at.step, at.loss_sum, at.epoch_seconds = at.epoch + 1, 0, 0.0, 0.0

    def _tell(self, record: dict[str, Any]) -> None:
        if not self.ranks.first:
            return
        self.life.run_dir.log_metrics(record)
        left = self.monitor.eta(self._done())
        words = (
            f"epoch {record['epoch']}/{self.settings.train.epochs}  "
            f"loss {record['train_loss']:.4f}  test {record['loss']:.4f}  "
            f"acc1 {record['acc1']:.2f} %  {record['images_per_second']:.0f} images/s"
        )
        if left is not None:
            words += f"  left {timedelta(seconds=round(left))}"
        self.monitor.epoch(words)
        self.monitor.status(
            "running", epoch=int(record["epoch"]), step=0, acc1=record["acc1"], message=words,
            eta_seconds=left,
        )  # fmt: skip

    def reported_weights(self) -> dict[str, Tensor]:
        """The weights whose accuracy is reported, as they are now."""
        use_ema = self.ema is not None and self.settings.evaluation.weights == "ema"
        source = self.ema.module if use_ema and self.ema is not None else self.model
        return source.state_dict()

    def final_weights(self) -> dict[str, Tensor]:
        """The weights of the epoch that is reported."""
        return self.progress.best_weights or self.reported_weights()

    def _note_costs(self) -> None:
        now, at = time.monotonic(), self.progress
        at.seconds, self._noted = at.seconds + now - self._noted, now
        at.peak_memory = max(at.peak_memory, environment.peak_memory(self.device))

    def _save(self) -> None:
        self._note_costs()
        if self.ranks.first:
            state = {
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": self.progress.plain(),
            }
            checkpoint.save(self.life.run_dir, state)
        self._saved = time.monotonic()
