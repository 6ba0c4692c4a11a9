"""The training loop: epochs of steps, evaluation, checkpoints at step boundaries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from lsa_study.config.settings import Settings
from lsa_study.data import DataLacks
from lsa_study.data.sampler import Epoch
from lsa_study.data.sets import Sets
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint, environment
from lsa_study.training.distributed import ALONE, Ranks
from lsa_study.training.evaluate import Scores, evaluate
from lsa_study.training.monitor import Monitor
from lsa_study.training.progress import Progress, Report
from lsa_study.training.step import Stepper
from lsa_study.training.trace import trace

GPU_CHECK_STEPS = 50
"""On a GPU, looking at a loss waits for all queued work; so look now and then."""


class Diverged(Exception):
    """A loss was not finite: a result. The text says epoch, step and learning rate."""


class Stopped(Exception):
    """Somebody asked to stop; the state is saved."""


@dataclass(frozen=True)
class Life:
    """One attempt of a run: where and for whom a loop runs."""

    run_dir: RunDir
    settings: Settings
    attempt: int
    monitor: Monitor
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
    """One attempt of a run, from where the last checkpoint stands to the last epoch."""

    def __init__(self, life: Life, model: nn.Module, sets: Sets) -> None:
        self.life, self.settings, self.sets = life, life.settings, sets
        self.monitor, self.ranks = life.monitor, life.ranks
        self.device = sets.device
        self.progress = Progress(fingerprint=sets.source.fingerprint)
        self.steps = self._plan().steps
        self.stepper = Stepper(
            life.settings, model.to(self.device), life.ranks, device=self.device, steps=self.steps
        )
        self._noted = self._saved = time.monotonic()

    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: weights, two moments, averaged and best weights."""
        averaged = self.settings.train.ema_decay is not None
        copies = 3 + averaged + (self.settings.evaluation.epoch == "best")
        return copies * checkpoint.num_bytes(self.stepper.model.state_dict())

    def resume(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint stands.

        Raises:
            DataLacks: the data are not those the run began with.
        """
        try:
            progress = Progress.from_plain(state.pop("progress"))
        except (TypeError, KeyError) as error:
            raise DataLacks(
                f"{self.life.run_dir.root}: its checkpoint was written by another version of this "
                f"code ({error}); finish the run with that version, or move the folder away to "
                "begin anew"
            ) from None
        if progress.fingerprint != self.sets.source.fingerprint:
            raise DataLacks(
                f"{self.life.run_dir.root}: was begun with data {progress.fingerprint}, found are "
                f"{self.sets.source.fingerprint}; bring back the old files, or move the folder "
                "away to begin anew"
            )
        self.progress = progress
        self.stepper.load_state_dict(state)
        self.monitor.say(f"resumed at epoch {progress.epoch + 1}, step {progress.step + 1}")

    def run(self) -> None:
        """Train and evaluate all epochs that are left.

        Raises:
            Diverged: a loss was not finite.
            Stopped: ``stop`` turned true; the state is saved.
        """
        self.monitor.begin(self._done())
        self.stepper.model.train()
        self._noted = self._saved = time.monotonic()
        steps = self.settings.runtime.trace_steps if self.ranks.first else 0
        path = self.life.run_dir.attempt_folder(self.life.attempt) / "trace.json"
        try:
            with trace(path, steps, self.device) as self._step_done:
                while self.progress.epoch < self.settings.train.epochs:
                    self._end_epoch(self._train_epoch())
                    self._save()
        finally:
            self._note_costs()

    def final_weights(self) -> dict[str, Tensor]:
        """The weights of the epoch that is reported."""
        return self.progress.best_weights or self.stepper.reported().state_dict()

    # -- steps --------------------------------------------------------------------------------

    def _plan(self) -> Epoch:
        parts, mine = self.ranks.parts(self.settings.runtime.accumulate)
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
                loss = self.stepper.do(at.epoch, step, batches)
            except Exception:
                # A signal to the whole job ends the loading processes before it is looked at here.
                self._stop_if_asked(watch)
                raise
            watch.add(loss, plan.batch, step)
            if (step + 1) % every == 0 or step + 1 == plan.steps:
                self._look(watch)
            at.step = step + 1
            at.epoch_seconds = before + time.monotonic() - begun
            self._step_done()
            self._stop_if_asked(watch)
            if time.monotonic() - self._saved >= self.settings.runtime.checkpoint_seconds:
                self._look(watch)
                self._save()
            self._tick(f"step {at.step}/{self.steps}")
        return at.loss_sum / (plan.steps * plan.batch)

    def _look(self, watch: LossWatch) -> None:
        """Copy the sum of losses from the device; raise if one was not finite."""
        at, step = self.progress, int(watch.bad_step)
        at.loss_sum = float(watch.sum)
        if step >= 0:
            raise Diverged(
                f"epoch {at.epoch + 1}, step {step + 1}: training loss {float(watch.bad_loss)} "
                f"at lr {self.stepper.rate((at.epoch, step)):.3g}"
            )

    def _stop_if_asked(self, watch: LossWatch) -> None:
        if self.ranks.any(self.life.stop()):
            self._look(watch)
            self._save()
            raise Stopped

    def _tick(self, doing: str) -> None:
        at = self.progress
        shown = f"epoch {at.epoch + 1}/{self.settings.train.epochs}  {doing}"
        if at.last.epoch:
            shown += f"  acc1 {at.last.acc1:.2f} %"
        self.monitor.beat(self._done(), shown, epoch=at.epoch, step=at.step)

    def _done(self) -> float:
        return self.progress.epoch + self.progress.step / self.steps

    # -- epochs -------------------------------------------------------------------------------

    def _evaluate(self, model: nn.Module) -> Scores:
        try:
            scores = evaluate(
                model, self.sets, self.settings.evaluation.batch_size,
                precision=self.stepper.precision, ranks=self.ranks, tick=self._tick_or_stop,
            )  # fmt: skip
        except RuntimeError:
            self._tick_or_stop()
            raise
        if not math.isfinite(scores.loss):
            raise Diverged(
                f"epoch {self.progress.epoch + 1}, after step {self.steps}: test loss "
                f"{scores.loss} at lr {self.stepper.rate():.3g}"
            )
        return scores

    def _tick_or_stop(self) -> None:
        # All steps of the epoch are done: the next attempt begins with the evaluation.
        if self.ranks.count == 1 and self.life.stop():
            self._save()
            raise Stopped
        self._tick("testing")

    def _end_epoch(self, train_loss: float) -> None:
        at, begun, stepper = self.progress, time.monotonic(), self.stepper
        plain = chosen = self._evaluate(stepper.model)
        averaged = None if stepper.ema is None else self._evaluate(stepper.ema.module)
        if averaged is not None and self.settings.evaluation.weights == "ema":
            chosen = averaged
        at.last = Report(
            epoch=at.epoch + 1, loss=chosen.loss, acc1=chosen.acc1, acc5=chosen.acc5,
            model_acc1=plain.acc1, ema_acc1=None if averaged is None else averaged.acc1,
            bits=chosen.correct,
        )  # fmt: skip
        if at.best.epoch == 0 or at.last.acc1 > at.best.acc1:
            at.best = at.last
            if self.settings.evaluation.epoch == "best":
                weights = stepper.reported().state_dict()
                at.best_weights = {name: w.cpu().clone() for name, w in weights.items()}
        self._record(train_loss, time.monotonic() - begun)
        at.epoch, at.step, at.loss_sum, at.epoch_seconds = at.epoch + 1, 0, 0.0, 0.0

    def _record(self, train_loss: float, seconds: float) -> None:
        if not self.ranks.first:
            return
        at, report = self.progress, self.progress.last
        speed = self.steps * self._plan().batch / at.epoch_seconds
        record: dict[str, Any] = {
            "epoch": report.epoch, "attempt": self.life.attempt,
            "step": report.epoch * self.steps, "lr": self.stepper.rate(),
            "train_loss": train_loss, "loss": report.loss, "acc1": report.acc1,
            "acc5": report.acc5, "model_acc1": report.model_acc1, "ema_acc1": report.ema_acc1,
            "seconds": at.epoch_seconds + seconds, "images_per_second": speed,
        }  # fmt: skip
        self.life.run_dir.log_metrics(record)
        left = self.monitor.eta(self._done())
        message = (
            f"epoch {report.epoch}/{self.settings.train.epochs}  loss {train_loss:.4f}  "
            f"test {report.loss:.4f}  acc1 {report.acc1:.2f} %  {speed:.0f} images/s"
        )
        if left is not None:
            message += f"  left {timedelta(seconds=round(left))}"
        self.monitor.epoch(message)
        self.monitor.status(
            "running", epoch=report.epoch, step=0, acc1=report.acc1, message=message,
            eta_seconds=left,
        )  # fmt: skip

    # -- saving -------------------------------------------------------------------------------

    def _note_costs(self) -> None:
        now, at = time.monotonic(), self.progress
        at.seconds, self._noted = at.seconds + now - self._noted, now
        at.peak_memory = max(at.peak_memory, environment.peak_memory(self.device))

    def _save(self) -> None:
        self._note_costs()
        if self.ranks.first:
            state = {**self.stepper.state_dict(), "progress": self.progress.plain()}
            checkpoint.save(self.life.run_dir, state)
        self._saved = time.monotonic()
